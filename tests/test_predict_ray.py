"""Prediction on a Ray cluster of two workers."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch

import tagreel
from tagreel.errors import DataError, RecipeError
from tagreel.evaluate import scoring_loader
from tagreel.predict import _room, cluster_device, predict
from tagreel.readers.synthetic import Planted
from tagreel.source import Source
from tests.conftest import payload_damaged, write_shard

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'tagreel[ray]'")
    ray.init(num_cpus=2, log_to_driver=False, logging_level="error", include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four shards of 300 videos."""
    folder = tmp_path_factory.mktemp("data")
    small = Planted(rgb=12, audio=6)
    for shard in range(4):
        write_shard(folder / f"{shard}.tfrecord", small.examples(1000 * shard, 300))
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch) -> None:
    """Parts of sixteen videos, four batches: 75 of them."""
    monkeypatch.setattr("tagreel.predict.PART_VIDEOS", 16)


def write(run, data, out: Path, *, skip_damaged: int = 0, **options):
    model = tagreel.load(run)
    loader = scoring_loader(
        model, Source(data), batch_size=4, skip_damaged=skip_damaged, whole="segments" in options
    )
    return predict(model, loader, out, device=torch.device("cpu"), **options)


def parts(out: Path) -> list[Path]:
    return list(out.with_name(out.name + ".parts").glob("part-*.parquet"))


def workers() -> list[int]:
    """The processes of this test's workers, which are below this one."""
    parents, found = {}, []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # Behind the name, which may hold anything, are the state and the parent.
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if (process / "cmdline").read_text().startswith("ray::MapWorker"):
                found.append(int(process.name))

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return list(filter(is_ours, found))


@contextlib.contextmanager
def killing(out: Path, *, at: tuple[int, ...]):
    """Kill a worker each time that so many parts are there; yields how many there were."""
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        while len(killed) < len(at) and not ended.wait(0.02):
            there = len(parts(out))
            for pid in workers()[:1] if there >= at[len(killed)] else []:
                os.kill(pid, signal.SIGKILL)
                killed.append(there)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        ended.set()
        killer.join()


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_with_workers_killed_in_the_middle_the_file_is_the_same(
    ending, cluster, run, data, tmp_path, monkeypatch
):
    out, whole = tmp_path / f"x.{ending}", tmp_path / f"whole.{ending}"
    told: list[int] = []
    options = {}
    if ending == "csv":
        monkeypatch.setattr("tagreel.predict.PART_VIDEOS", 16 * 64)
        options = {"segments": 5, "per_class": 50}
    write(run, data, whole, **options)
    with killing(out, at=(8, 20)) as killed:
        result = write(run, data, out, engine="ray", on_batch=told.append, **options)
    assert out.read_bytes() == whole.read_bytes()
    assert len(killed) == 2
    assert max(killed) < 75  # in the middle
    assert (result.whole, result.videos, told[-1]) == (True, 1200, 1200)
    assert 0 <= result.waiting < 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, whole.name])


def test_a_driver_that_is_stopped_goes_on_behind_whatever_is_there(cluster, run, data, tmp_path):
    class StopError(Exception):
        pass

    def on_batch(done: int) -> None:
        if done >= 100:
            raise StopError

    out, whole = tmp_path / "x.jsonl", tmp_path / "whole.jsonl"
    with pytest.raises(StopError):
        write(run, data, out, engine="ray", on_batch=on_batch)
    there = len(parts(out))
    assert 0 < there < 75
    result = write(run, data, out)
    assert result.videos <= 1200 - 16 * there
    write(run, data, whole)
    assert out.read_bytes() == whole.read_bytes()


def test_a_workers_error_is_the_drivers(cluster, run, data, tmp_path):
    out = tmp_path / "x.jsonl"
    with payload_damaged(data / "3.tfrecord", 200):
        with pytest.raises(DataError) as caught:
            write(run, data, out, engine="ray")
        assert (caught.value.path, caught.value.record) == (str(data / "3.tfrecord"), 200)
        assert 0 < len(parts(out)) < 75  # which are kept
        result = write(run, data, out, engine="ray", skip_damaged=1)
    assert len(result.damaged) == 1
    assert result.rows == 1199


def test_damage_is_counted_over_all_workers(cluster, run, data, tmp_path):
    with contextlib.ExitStack() as damaged:
        for shard in range(4):
            damaged.enter_context(payload_damaged(data / f"{shard}.tfrecord", 100))
        with pytest.raises(DataError, match="record number 4, and --skip-damaged allows 3"):
            write(run, data, tmp_path / "x.jsonl", engine="ray", skip_damaged=3)
        assert not (tmp_path / "x.jsonl").exists()
        result = write(run, data, tmp_path / "x.jsonl", engine="ray", skip_damaged=4)
    assert (result.rows, len(result.damaged)) == (1196, 4)


def test_the_command_with_relative_paths_and_an_ensemble(cluster, run, data, tmp_path, cli, monkeypatch):
    """Workers have other current folders."""
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(data)
    common = ["--data", "data", "--device", "cpu", "--batch-size", 4]
    members = sorted((run / "checkpoints").iterdir())
    code, _, err = cli("ensemble", "fit", *members, "--method", "uniform", *common, "--out", "both")
    assert code == 0, err
    assert cli("predict", "both", *common, "--out", "whole.jsonl")[0] == 0
    code, printed, err = cli("predict", "both", *common, "--out", "x.jsonl", "--engine", "ray")
    assert code == 0, err
    assert "wrote x.jsonl: 1,200 videos × 20 tags" in printed
    assert Path("x.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_predictions_in_an_ensemble_are_refused(cluster, run, data, tmp_path, cli):
    common = ["--data", data, "--device", "cpu"]
    recorded, both, out = tmp_path / "own.parquet", tmp_path / "both", tmp_path / "x.jsonl"
    assert cli("predict", run, *common, "--out", recorded, "--raw")[0] == 0
    assert cli("ensemble", "fit", run, recorded, "--method", "uniform", *common, "--out", both)[0] == 0
    code, _, err = cli("predict", both, *common, "--out", out, "--engine", "ray")
    assert code == 2
    assert err == (
        "tagreel: --engine ray: own.parquet holds predictions, which another process cannot look up; share "
        "the work with --part I/N\n"
    )
    assert not out.with_name("x.jsonl.parts").exists()


def test_more_cores_a_worker_than_a_machine_has_is_one_line(cluster, run, data, tmp_path, cli):
    out = tmp_path / "x.jsonl"
    code, _, err = cli("predict", run, "--data", data, "--out", out, "--engine", "ray", "--threads", 3)
    assert code == 2
    assert err.startswith(
        "tagreel: --threads 3: no machine of the cluster has 3 cores for a worker; expected"
    )
    assert not list(tmp_path.iterdir())
    with pytest.raises(RecipeError, match="device 'cuda': the cluster has no GPU; expected auto or cpu"):
        cluster_device("cuda")
    assert cluster_device("auto") == cluster_device("cpu") == torch.device("cpu")


def test_workers_are_as_many_as_machines_have_cores_and_gpus_for():
    machines = [
        {"Alive": True, "Resources": {"CPU": 7.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 4.0}},
        {"Alive": True, "Resources": {}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert [_room(machines, cores=cores, gpus=0) for cores in (1, 2, 4, 8)] == [19, 9, 4, 1]
    assert [_room(machines, cores=cores, gpus=1) for cores in (1, 2, 4)] == [5, 3, 2]
    with pytest.raises(RecipeError, match="--threads 8: no machine of the cluster has 8 cores and a GPU"):
        _room(machines, cores=8, gpus=1)


def test_what_cannot_be_is_told_without_a_cluster(run, data, tmp_path, cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["predict", run, "--data", data, "--out", tmp_path / "x.csv", "--engine", "ray"]
    code, _, err = cli(*arguments)
    assert code == 2
    assert err == "tagreel: --engine ray needs Ray; install it with pip install 'tagreel[ray]'\n"
    code, _, err = cli(*arguments, "--device", "cuda:1")
    assert code == 2
    assert err == "tagreel: device 'cuda:1' is one of a machine; of a cluster expected auto, cpu or cuda\n"
    assert not list(tmp_path.iterdir())
