from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tagreel import checkpoint
from tagreel.distributed import ALONE, Ranks
from tagreel.errors import RecipeError
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.log import read_log
from tagreel.recipe import find, override
from tagreel.runtime import pick_device
from tagreel.source import Source
from tagreel.train import train
from tests.conftest import REPOSITORY, payload_damaged, write_shard

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs a PyTorch with gloo",
)

# Batches of eleven of a hundred videos: slices that differ, and of the last batch, of one, an empty one.
RECIPES = """
import os
from dataclasses import replace
from functools import partial
from torch.optim import SGD, Adagrad, AdamW
import torch
from tagreel.errors import RecipeError
from tagreel.heads.chained_experts import ChainedExperts
from tagreel.heads.logistic import Logistic
from tagreel.heads.mixture_of_residual_experts import MixtureOfResidualExperts
from tagreel.layers.context_gating import ContextGating
from tagreel.layers.dropout import Dropout
from tagreel.layers.mixture import Mixture
from tagreel.layers.projection import Projection
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.batch_norm_lstm import BatchNormLSTM
from tagreel.pools.netvlad import NetVLAD
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.recipe import Ensemble, Recipe, Stream, Training
from tagreel.sampling import AllFrames, RandomFrames
from tagreel.schedule import Staircase

plain = Recipe(
    features={"rgb": 12, "audio": 6},
    classes=120,
    streams={
        "rgb": Stream(pool=partial(NeXtVLAD, clusters=4, groups=2)),
        "audio": Stream(pool=partial(NetVLAD, clusters=2)),
    },
    body=(partial(Projection, width=32), partial(ContextGating)),
    head=partial(Logistic),
    loss=partial(CrossEntropy),
    sampling=partial(RandomFrames, frames=9),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(AdamW, lr=3e-3, weight_decay=0.01),
        schedule=partial(Staircase, every=90),
        batch_size=11,
        epochs=2,
        accumulate=2,
        clip="global",
        ema=0.9,
        head_l2=1e-4,
    ),
)
late = replace(
    plain,
    late=(partial(ContextGating),),
    head=partial(ChainedExperts, links=1, width=8),
    training=Training(
        optimizer=partial(Adagrad, lr=0.02, initial_accumulator_value=0.1),
        schedule=partial(Staircase),
        batch_size=11,
        epochs=2,
        late_epochs=1,
    ),
)
branches = replace(
    plain,
    mixture=partial(Mixture, branches=2),
    training=replace(plain.training, optimizer=partial(SGD, lr=0.01, momentum=0.9), clip="tensor"),
)
more = replace(
    plain,
    body=(),
    head=partial(MixtureOfResidualExperts, experts=3, hidden=48, dropout=0.0),
    training=replace(plain.training, optimizer=partial(SGD, lr=0.05), ema=0.0),
)
lacking = replace(
    plain, optional=("audio",), training=replace(plain.training, batch_size=3, epochs=1, accumulate=1)
)
taught = replace(plain, training=replace(plain.training, distill=0.4, forgive=0.2))
steps = replace(plain, streams={**plain.streams, "rgb": Stream(pool=partial(BatchNormLSTM, units=(4,)))})
pair = Ensemble(members={"one": plain, "two": late})


class Drawing(CrossEntropy):
    "Notes what is drawn in each step, and goes wrong on one rank alone where that is asked for."

    def forward(self, logits, labels, rated=None):
        rank = os.environ.get("RANK", "0")
        with open(os.environ["DRAWS"] + rank, "a") as file:
            print(torch.rand(()).item(), file=file)
        if os.environ.get("FAILS") == rank:
            raise RecipeError("loss: this rank alone cannot")
        return super().forward(logits, labels, rated)


drawing = replace(plain, loss=partial(Drawing))
"""

WORKER = """
import json, sys
from pathlib import Path
import torch
from tagreel.distributed import join
from tagreel.errors import TagreelError
from tagreel.optimization import Optimization
from tagreel.recipe import find
from tagreel.sharding import gathered
from tagreel.tagger import build
from tests.test_distributed import alone

ranks = join(torch.device("cpu"))
for job in json.loads(sys.argv[1]):
    try:
        alone(job)
    except TagreelError as error:
        Path(job["out"] + f" says {ranks.number}").write_text(str(error))

model = build(find(sys.argv[2]))
total = sum(p.numel() for p in model.parameters())
optimization = Optimization(model, model.recipe.training, shard_on=torch.device("cpu"))
own = sum(p.to_local().untyped_storage().nbytes() // 4 for p in model.parameters())
for p in model.parameters():
    p.grad = torch.zeros_like(p)
optimization.step(1, examples=0, total_examples=9)
state = sum(t.to_local().numel() for name, t in optimization.tensors().items() if "exp_avg" in name)
kept = len(gathered(model.state_dict(), keep=ranks.first))
Path(f"{sys.argv[3]}{ranks.number}").write_text(json.dumps([total, own, state, kept]))
"""


@dataclass
class Place:
    """Recipes, data and a worker to start, all files."""

    folder: Path
    shards: Path

    @property
    def recipes(self) -> Path:
        return self.folder / "mine.py"

    def job(self, recipe: str, out: Path, **options: Any) -> dict[str, Any]:
        data = {"data": f"{self.shards}/train*.tfrecord", "validation": f"{self.shards}/test*.tfrecord"}
        return {"recipe": f"{self.recipes}:{recipe}", "out": str(out)} | data | options

    def start(self, processes: int, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return subprocess.Popen(
            [*launcher, "--nproc-per-node", str(processes), *arguments],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, processes: int, *arguments: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(processes, *arguments, **environment)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err

    def train(self, processes: int, *jobs: dict[str, Any], **environment: str) -> None:
        """Several trainings, one after the other, by one launch, and then the sizes of a divided model."""
        sizes = str(self.folder / f"sizes of {processes} ")
        arguments = [str(self.folder / "worker.py"), json.dumps(jobs), f"{self.recipes}:plain", sizes]
        code, out, err = self.run(processes, *arguments, **environment)
        assert code == 0, out + err
        assert "Warning" not in err

    def command(self, recipe: str, run: Path, *more: str) -> list[str]:
        data = ["--data", f"{self.shards}/train*.tfrecord", "--validate", f"{self.shards}/test*.tfrecord"]
        options = ["--out", str(run), "--device", "cpu", "--log-every", "1"]
        return ["-m", "tagreel", "train", f"{self.recipes}:{recipe}", *data, *options, *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory, shards) -> Place:
    folder = tmp_path_factory.mktemp("several")
    (folder / "mine.py").write_text(RECIPES)
    (folder / "worker.py").write_text(WORKER)
    return Place(folder, shards)


def alone(job: dict[str, Any]) -> None:
    """A training by this process, or this one among others."""
    job = dict(job)
    recipe = find(job.pop("recipe"))
    for setting in job.pop("settings", ()):
        recipe = override(recipe, setting)
    for name in ("data", "validation"):
        job[name] = Source(job[name])
    for name in ("out", "teacher"):
        if name in job:
            job[name] = Path(job[name])
    train(recipe, device="cpu", log_every=1, **job)


def rows(run: Path, event: str) -> list[dict[str, Any]]:
    return [row for row in read_log(run) if row["event"] == event]


def assert_same(one: Path, other: Path) -> None:
    """The same losses, metrics and checkpoints, to rounding; counts and positions exactly."""
    for event, exact, near in (
        ("train", ("step", "epoch", "examples", "lr"), ("loss", "gap@20")),
        ("validate", ("step", "hit@1", "perr"), ("gap@20", "map", "map_top20", "calibration_error")),
    ):
        first, second = rows(one, event), rows(other, event)
        assert len(first) == len(second) > 0
        for name in exact:
            assert [row[name] for row in first] == [row[name] for row in second]
        for name in near:
            assert [row[name] for row in first] == pytest.approx(
                [row[name] for row in second], rel=1e-6, abs=1e-6
            )
    folders = [checkpoint.checkpoints(run)[-1] for run in (one, other)]
    for file in ("model", "training"):
        ours, theirs = (load_file(folder / f"{file}.safetensors") for folder in folders)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=3e-6, msg=name)
    counts = [checkpoint.facts(folder)["train_counts"] for folder in folders]
    assert counts[0] == counts[1]
    positions = [json.loads((folder / "training.json").read_text()) for folder in folders]
    for name in ("step", "epoch", "batch", "examples", "damaged", "data", "seed"):
        assert positions[0][name] == positions[1][name]


# ---------------------------------------------------------------------- the same as one process

JOBS: dict[str, dict[str, Any]] = {
    "plain": {"recipe": "plain"},
    "plain, divided": {"recipe": "plain", "shard": True},
    "late": {"recipe": "late"},
    "late, divided": {"recipe": "late", "shard": True},
    "branches": {"recipe": "branches"},
    "branches, divided": {"recipe": "branches", "shard": True},
    "more, divided": {"recipe": "more", "shard": True},
    "taught": {"recipe": "taught", "teacher": "teacher.parquet"},
    "lacking": {"recipe": "lacking", "data": "lacking"},
    "damaged": {"recipe": "plain", "data": "damaged", "skip_damaged": 2},
    "bytes": {"recipe": "plain", "settings": ["training.precision='bfloat16'"]},
}


@pytest.fixture(scope="module")
def runs(place, planted) -> Path:
    """A folder `one` of runs by one process, and others `2` and `3` of the same by so many."""
    folder, damaged = place.folder / "runs", place.folder / "damaged"
    _predictions(place.folder / "teacher.parquet", Source(f"{place.shards}/train*.tfrecord"))
    # Two of three lack a stream, so that all of a slice often do.
    videos = list(planted.examples(0, 30))
    for video in videos:
        if zlib.crc32(video.id.encode()) % 3:
            del video.streams["audio"]
    (place.folder / "lacking").mkdir()
    write_shard(place.folder / "lacking" / "train.tfrecord", videos)
    damaged.mkdir()
    # One record of either process's slice, so that the number allowed is reached by both together.
    with payload_damaged(place.shards / "train0.tfrecord", 3):
        shutil.copy(place.shards / "train0.tfrecord", damaged)
    with payload_damaged(place.shards / "train2.tfrecord", 9):
        shutil.copy(place.shards / "train2.tfrecord", damaged)

    def job(name: str, processes: str) -> dict[str, Any]:
        options = dict(JOBS[name])
        for key in {"teacher", "data"} & options.keys():
            options[key] = str(place.folder / options[key])
        return place.job(options.pop("recipe"), folder / processes / name, **options)

    def handed_on(last: int, **options: Any) -> dict[str, Any]:
        settings = [f"training.steps={last}"]
        return place.job("plain", folder / "handed on", settings=settings, validate_every=5, **options)

    for name in JOBS:
        alone({key: value for key, value in job(name, "one").items() if key != "shard"})
    alone(handed_on(2))
    place.train(
        2,
        *(job(name, "2") for name in JOBS),
        handed_on(4, resume=True),
        handed_on(6, resume=True, shard=True),
        place.job("drawing", folder / "drawn"),
        place.job("steps", folder / "steps"),
        {**job("damaged", "too many"), "skip_damaged": 1},
        DRAWS=str(folder / "draws"),
    )
    alone(handed_on(10, resume=True))
    place.train(3, job("plain", "3"), job("more, divided", "3"))
    return folder


def _predictions(path: Path, data: Source) -> Path:
    """Ten classes of every video, at random."""
    rng = np.random.default_rng(0)
    ids = [data.open(s)[i].id for s, count in enumerate(data.counts) for i in range(count)]
    table = {
        "id": pa.array(ids),
        "labels": pa.array([rng.choice(120, 10, replace=False).tolist() for _ in ids], pa.list_(pa.int32())),
        "probabilities": pa.array(
            [np.sort(rng.random(10))[::-1].tolist() for _ in ids], pa.list_(pa.float32())
        ),
    }
    pq.write_table(pa.table(table), path)
    return path


@pytest.mark.parametrize("name", [name for name in JOBS if name != "bytes"])
def test_two_processes_train_as_one_does(name, runs):
    assert_same(runs / "one" / name, runs / "2" / name)


@pytest.mark.parametrize("name", ["plain", "more, divided"])
def test_so_do_three(name, runs):
    assert_same(runs / "one" / name, runs / "3" / name)


def test_in_half_precision_they_come_close(runs):
    losses = [[row["loss"] for row in rows(runs / which / "bytes", "train")] for which in ("one", "2")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_log_says_how_many_there_are(runs):
    [began] = rows(runs / "2" / "plain", "start")
    assert began["device"] == "2 × cpu"
    assert rows(runs / "one" / "plain", "start")[0]["device"] == "cpu"


def test_a_run_goes_on_with_another_number_of_processes(runs):
    """Two steps by one process, two by two of them, two by two that divide the model, the rest by one."""
    out, whole = runs / "handed on", runs / "one" / "plain"
    losses = [[row["loss"] for row in rows(run, "train")] for run in (out, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    ours, theirs = (checkpoint.load(run, checkpoint="last").state_dict() for run in (out, whole))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=3e-6, msg=name)
    facts = [checkpoint.facts(checkpoint.checkpoints(run)[-1])["train_counts"] for run in (out, whole)]
    assert facts[0] == facts[1]


def test_what_is_drawn_in_a_step_differs_from_process_to_process(runs):
    drawn = [(runs / f"draws{rank}").read_text().split() for rank in (0, 1)]
    assert len(drawn[0]) == len(drawn[1]) == 20
    assert not set(drawn[0]) & set(drawn[1])


@pytest.mark.parametrize("processes", [2, 3])
def test_each_process_keeps_its_part_of_weights_and_optimizer(processes, runs, place):
    for rank in range(processes):
        sizes = json.loads((place.folder / f"sizes of {processes} {rank}").read_text())
        total, own, state, gathered = sizes
        assert 0.9 * total < own * processes < 1.2 * total
        assert 0.9 * total < state / 2 * processes < 1.2 * total  # two numbers a weight
        assert bool(gathered) == (rank == 0)


# ---------------------------------------------------------------------- when something goes wrong


def test_a_damaged_record_ends_all_with_one_line(place):
    with payload_damaged(place.shards / "train1.tfrecord", 7):
        code, out, err = place.run(2, *place.command("plain", place.folder / "damaged"))
    assert code != 0
    said = [line for line in (out + err).splitlines() if line.startswith("tagreel: ")]
    assert len(said) == 1, out + err
    assert "train1.tfrecord, record 7: " in said[0]
    # The first to end is the one that speaks; torchrun ends the others, or they end alike.
    assert re.search(r"Root Cause.*?exitcode +: 2 ", err, re.DOTALL)
    assert "Traceback" not in err.partition("torch/distributed/run.py")[0].replace(
        'Traceback (most recent call last):\n  File "<frozen runpy>"', ""
    )


def test_damage_that_one_process_finds_is_known_to_all(runs):
    folder = checkpoint.checkpoints(runs / "2" / "damaged")[-1]
    assert len(json.loads((folder / "training.json").read_text())["damaged"]) == 2
    for rank in (0, 1):
        said = (runs / "too many" / f"damaged says {rank}").read_text()
        assert "this is damaged record number 2, and --skip-damaged allows 1" in said


def test_what_goes_wrong_on_one_process_alone_ends_the_others_too(place):
    """An error that nobody could foresee: its process says it, and none is left waiting."""
    began = time.monotonic()
    code, _, err = place.run(
        2, *place.command("drawing", place.folder / "alone"), DRAWS=str(place.folder / "x"), FAILS="1"
    )
    assert code != 0
    assert err.count("tagreel: loss: this rank alone cannot\n") == 1
    assert time.monotonic() - began < 120


def test_sigterm_saves_and_another_number_goes_on(place, runs):
    out = place.folder / "stopped"
    more = ["--save-minutes", "60", "--validate-every", "5"]
    process = place.start(2, *place.command("plain", out, "--epochs", "400", *more))
    deadline = time.monotonic() + 200
    while len(rows(out, "train")) < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, err = process.communicate(timeout=120)
    assert "go on with the same command and --resume" in said, said + err
    last = checkpoint.checkpoints(out)[-1]
    step = rows(out, "train")[-1]["step"]
    assert int(last.name[5:]) == step >= 4
    whole = place.folder / "not stopped"
    long = place.job("plain", out, settings=[f"training.steps={step + 2}"], validate_every=5, resume=True)
    alone(long)
    alone({**long, "out": str(whole), "resume": False})
    losses = [[row["loss"] for row in rows(run, "train")] for run in (out, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ---------------------------------------------------------------------- evaluating


def test_several_processes_evaluate_as_one_does(place, runs, cli):
    found = {}
    for name, processes in (("one", 1), ("three", 3)):
        folder = place.folder / f"report {name}"
        arguments = ["evaluate", str(runs / "one" / "plain"), "--data", f"{place.shards}/test*.tfrecord"]
        arguments += ["--report", str(folder), "--device", "cpu", "--json", "--batch-size", "7"]
        code, out, err = (
            cli(*arguments) if processes == 1 else place.run(processes, "-m", "tagreel", *arguments)
        )
        assert code == 0, err
        found[name] = json.loads(out)
        assert (folder / "report.html").exists()
    assert found["three"]["videos"] == found["one"]["videos"] == 50
    for name in ("gap@20", "map", "map_top20", "hit@1", "perr", "calibration_error"):
        assert found["three"][name] == pytest.approx(found["one"][name], rel=1e-6, abs=1e-9)


# ---------------------------------------------------------------------- refusals


def test_dividing_takes_several(place, tiny, training_data, tmp_path):
    with pytest.raises(RecipeError, match="--shard divides the model among processes; start several"):
        train(tiny, data=training_data, out=tmp_path / "run", device="cpu", shard=True)
    assert not (tmp_path / "run").exists()


def test_a_part_with_statistics_of_its_own_is_refused(runs):
    for rank in (0, 1):
        said = (runs / f"steps says {rank}").read_text()
        assert said == (
            "streams.rgb.pool.layers.0.cells.0.state_norm: normalises each step by the videos of one "
            "process; train without torchrun"
        )
    assert not (runs / "steps").exists()


def test_an_ensemble_is_not_trained_by_several(place, cli, monkeypatch, tmp_path):
    class Two(Ranks):
        def together(self):
            return nullcontext()

    several = nullcontext((torch.device("cpu"), Two(0, 2)))
    monkeypatch.setattr("tagreel.distributed.one_of_several", lambda device: several)
    code, _, err = cli(*place.command("pair", tmp_path / "run")[2:])
    assert code == 2
    assert "pair is an ensemble, which one process trains; start it without torchrun" in err


def test_other_commands_are_not_for_torchrun(monkeypatch, cli, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = cli("predict", tmp_path, "--data", tmp_path, "--out", tmp_path / "x.csv")
    assert code == 2
    assert "torchrun is for `tagreel train` and `tagreel evaluate`" in err


@pytest.mark.parametrize(
    ("name", "gpus", "reason"),
    [
        ("cuda:1", 4, "several processes share out the GPUs; expected auto, cpu or cuda"),
        ("mps", 0, "several processes share out the GPUs; expected auto, cpu or cuda"),
        ("cuda", 2, "this is process 4 of its machine, which has 2 GPUs; start one for each"),
        ("auto", 2, "this is process 4 of its machine, which has 2 GPUs; start one for each"),
    ],
)
def test_a_device_that_several_cannot_share_is_refused(name, gpus, reason, monkeypatch):
    for variable, value in (("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(RecipeError, match=re.escape(reason)):
        pick_device(name)


def test_each_process_takes_its_own_gpu(monkeypatch):
    for variable, value in (("RANK", "7"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(variable, value)
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 3)
    assert chosen == [torch.device("cuda", 3)] * 2
    assert pick_device("cpu") == torch.device("cpu")


# ---------------------------------------------------------------------- the parts


@pytest.mark.parametrize("total", [0, 1, 2, 7, 12])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_slices_are_nearly_equal_and_leave_nothing_out(total, count):
    shares = [list(range(total))[Ranks(number, count).slice(total)] for number in range(count)]
    assert [one for share in shares for one in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_everything_gives_back_what_it_was_given():
    tensor = torch.arange(3)
    assert ALONE.add_up(2, 3.5) == [2, 3.5]
    assert ALONE.share("a") == ALONE.gather("a") == ["a"]
    assert ALONE.tell("a") == "a"
    assert torch.equal(ALONE.total(tensor), tensor)
    with pytest.raises(RecipeError, match="mine"), ALONE.together():
        raise RecipeError("mine")


def test_batch_norm_over_all_is_that_of_the_batch():
    torch.manual_seed(0)
    rows = torch.randn(9, 4, dtype=torch.float64) * 3 + 50
    ours, theirs = MaskedBatchNorm(4).double(), MaskedBatchNorm(4).double()
    ours.across = lambda sums: sums
    for step in range(3):
        x, y = (rows * (step + 1)).requires_grad_(), (rows * (step + 1)).requires_grad_()
        first, second = ours(x), theirs(y)
        torch.testing.assert_close(first, second)
        for out in (first, second):
            (out**2 * torch.arange(4) + out.sin()).sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name])
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_rows_of_all_use_the_running_statistics(count):
    norm, plain = MaskedBatchNorm(4), MaskedBatchNorm(4)
    rows = torch.randn(6, 4)
    for each in (norm, plain):
        each(rows)
    norm.across = lambda sums: sums
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    torch.testing.assert_close(norm(rows[:count]), plain.eval()(rows[:count]))
    for name, tensor in norm.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert math.isfinite(norm.running_var.sum())
