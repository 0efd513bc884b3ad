"""A file that several processes make: shares of the work, restarts, parts that are not what they were."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import tagreel
from tagreel.errors import DataError
from tagreel.evaluate import scoring_loader
from tagreel.predict import Prediction, predict, videos_of
from tagreel.predict_parts import Parts
from tagreel.predict_rows import Ranked
from tagreel.readers.synthetic import Planted
from tagreel.source import Source
from tests.conftest import REPOSITORY, payload_damaged, write_shard

ENDINGS = ("parquet", "jsonl", "csv")


@pytest.fixture
def model(run):
    return tagreel.load(run)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch) -> None:
    """Parts of sixteen videos, two batches: 100 videos make 7."""
    monkeypatch.setattr("tagreel.predict.PART_VIDEOS", 16)


def write(model, data, out: Path, *, skip_damaged: int = 0, **options) -> Prediction:
    loader = scoring_loader(model, data, batch_size=8, skip_damaged=skip_damaged, whole="segments" in options)
    return predict(model, loader, out, device=torch.device("cpu"), **options)


def parts(out: Path) -> list[Path]:
    return sorted(out.with_name(out.name + ".parts").glob("part-*.parquet"))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_shares_in_any_order_make_the_same_file(ending, order, model, training_data, tmp_path):
    out, whole = tmp_path / f"x.{ending}", tmp_path / f"whole.{ending}"
    write(model, training_data, whole)
    *first, last = [write(model, training_data, out, part=(i, 3)) for i in order]
    assert [(made.whole, made.videos) for made in first] == [(False, (0, 32, 32, 36)[i]) for i in order[:2]]
    assert (last.whole, last.rows, last.videos) == (True, 100, (0, 32, 32, 36)[order[2]])
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, whole.name])


@pytest.mark.parametrize("shares", [1, 2, 3, 7, 12])
def test_every_video_is_in_one_share(shares, model, training_data):
    loader = scoring_loader(model, training_data, batch_size=8)
    found = [videos_of(loader, (i + 1, shares)) for i in range(shares)]
    assert sum(found) == 100
    assert max(found) - min(found) <= 16


def test_a_share_that_is_done_is_not_done_again(model, training_data, tmp_path):
    out = tmp_path / "x.jsonl"
    write(model, training_data, out, part=(2, 3))
    again = write(model, training_data, out, part=(2, 3))
    assert (again.whole, again.videos, again.resumed) == (False, 0, 32)
    alone = write(model, training_data, out)
    assert (alone.whole, alone.videos, alone.resumed) == (True, 68, 32)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_whatever_parts_are_missing_are_made_again_and_no_others(ending, model, training_data, tmp_path):
    out, whole = tmp_path / f"x.{ending}", tmp_path / f"whole.{ending}"
    write(model, training_data, whole)
    for lost in ([0], [3], [6], [1, 2, 5], [0, 2, 4, 6]):
        _all_but_assembled(model, training_data, out)
        for path in [parts(out)[number] for number in lost]:
            path.unlink()
        told: list[int] = []
        made = write(model, training_data, out, on_batch=told.append)
        assert made.videos == sum(4 if number == 6 else 16 for number in lost)
        assert told[-1] == 100
        assert out.read_bytes() == whole.read_bytes()


def _all_but_assembled(model, data, out: Path) -> None:
    """Leave all parts, as somebody does who is killed before there is a file."""
    out.unlink(missing_ok=True)

    class KilledError(Exception):
        pass

    def die(*_: object) -> None:
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tagreel.predict._assemble", die)
        with pytest.raises(KilledError):
            write(model, data, out)
    assert len(parts(out)) == 7


def test_two_that_end_at_the_same_time_both_succeed(model, training_data, tmp_path, monkeypatch):
    """The second one begins to put the file together and finds the parts gone: the first has done it."""
    out, whole = tmp_path / "x.parquet", tmp_path / "whole.parquet"
    write(model, training_data, whole)
    tables = Parts.tables
    raced: list[Prediction] = []

    def meanwhile(self, *columns):
        for number, rows in enumerate(tables(self, *columns)):
            if number == 3 and not raced:
                raced.append(None)
                raced[0] = write(model, training_data, out)
            yield rows

    monkeypatch.setattr(Parts, "tables", meanwhile)
    result = write(model, training_data, out)
    assert result.whole
    assert raced[0].whole
    assert out.read_bytes() == whole.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_part_that_changed_on_the_disk_is_told_and_made_again(model, training_data, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "x.jsonl"
    write(model, training_data, whole)
    _all_but_assembled(model, training_data, out)
    damaged = parts(out)[2]
    probabilities = pq.read_metadata(damaged).row_group(0).column(3)
    assert probabilities.path_in_schema.startswith("probabilities")
    content = bytearray(damaged.read_bytes())
    content[probabilities.dictionary_page_offset + probabilities.total_compressed_size - 9] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(
        DataError, match=r"part-000002.parquet: was damaged after it was written, and is remo"
    ):
        write(model, training_data, out)
    assert not out.exists()
    assert write(model, training_data, out).videos == 16
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(("allowed", "told"), [(0, "checksum"), (1, "record number 2, and .* allows 1")])
def test_damage_is_counted_over_all_shares(allowed, told, model, shards, tmp_path):
    out = tmp_path / "x.jsonl"
    with payload_damaged(shards / "train0.tfrecord", 3), payload_damaged(shards / "train2.tfrecord", 29):
        data = Source(f"{shards}/train*")
        if allowed:
            assert write(model, data, out, part=(1, 2), skip_damaged=allowed).damaged
        with pytest.raises(DataError, match=told):
            write(model, data, out, part=(2, 2), skip_damaged=allowed)
        assert len(parts(out)) == (7 if allowed else 3)  # what was right is kept
        result = write(model, data, out, skip_damaged=2)
    assert result.rows == 98
    assert [error.rpartition("/")[2].split(":")[0] for error in result.damaged] == [
        "train0.tfrecord, record 3",
        "train2.tfrecord, record 29",
    ]


def test_fewer_may_be_damaged_than_when_it_was_begun(model, shards, tmp_path):
    out = tmp_path / "x.jsonl"
    with payload_damaged(shards / "train0.tfrecord", 3):
        data = Source(f"{shards}/train*")
        write(model, data, out, part=(1, 2), skip_damaged=1)
        with pytest.raises(DataError, match=r"train0.tfrecord, record 3: the checksum"):
            write(model, data, out)


def test_what_fails_at_once_leaves_nothing_behind(model, shards, tmp_path):
    with payload_damaged(shards / "train0.tfrecord", 3), pytest.raises(DataError):
        write(model, Source(f"{shards}/train*"), tmp_path / "x.jsonl")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- rankings


@pytest.fixture
def tied(model, monkeypatch):
    """A model whose scores are rounded so far that many segments tie."""
    probabilities = model.probabilities
    monkeypatch.setattr(model, "probabilities", lambda batch: (probabilities(batch) * 12).round() / 12)
    return model


@pytest.mark.parametrize("seed", range(4))
def test_a_ranking_does_not_depend_on_who_made_its_parts_nor_when(
    seed, tied, training_data, tmp_path, monkeypatch
):
    monkeypatch.setattr("tagreel.ranking._SLACK", 8)
    monkeypatch.setattr("tagreel.predict.PART_VIDEOS", 8 * 64)
    options = {"segments": 5, "per_class": 9}
    whole, out = tmp_path / "whole.csv", tmp_path / "x.csv"
    write(tied, training_data, whole, **options)
    order = list(range(1, 14))
    random.Random(seed).shuffle(order)
    assert not any(write(tied, training_data, out, part=(i, 13), **options).whole for i in order[:-1])
    assert write(tied, training_data, out, part=(order[-1], 13), **options).whole
    assert out.read_bytes() == whole.read_bytes()


def test_one_worker_may_make_the_parts_of_a_ranking_in_any_order(tmp_path, monkeypatch):
    """A worker that goes on behind a part, and then is given an earlier one, in which there are equals."""
    monkeypatch.setattr("tagreel.ranking._SLACK", 2)
    rng, per_class = np.random.default_rng(0), 3
    scores = [torch.from_numpy(rng.integers(1, 5, (6, 4)).astype(np.float32)) for _ in range(5)]
    contents = set()
    for number, order in enumerate(itertools.permutations(range(5))):
        out = tmp_path / f"{number}.csv"
        pieces = Parts(out, run="x", count=5)
        ranked = Ranked(np.arange(4), per_class)
        for part in order:
            ranked.begin(part, pieces)
            pieces.add(part, ranked.rows([f"{part}:{i}" for i in range(6)], scores[part]), [])
        ranked.write(out, pieces, ".csv")
        contents.add(out.read_bytes())
    everything = torch.cat(scores).numpy()
    names = [f"{part}:{i}" for part in range(5) for i in range(6)]
    best = [
        " ".join(names[i] for i in np.argsort(-everything[:, c], kind="stable")[:per_class]) for c in range(4)
    ]
    expected = "".join(f"{line}\n" for line in ("Class,Segments", *(f"{c},{b}" for c, b in enumerate(best))))
    assert contents == {expected.encode()}


def test_what_others_have_ranked_is_not_kept_again(tmp_path):
    pieces = Parts(tmp_path / "x.csv", run="x", count=2)
    kept = []
    for part in range(2):
        ranked = Ranked(np.arange(1), 2)  # another worker each time
        ranked.begin(part, pieces)
        rows = ranked.rows([f"{part}:{i}" for i in range(5000)], torch.full((5000, 1), 0.5))
        kept.append(sum(map(len, rows.column("labels").to_pylist())))
        pieces.add(part, rows, [])
    assert kept[0] > 0
    assert kept[1] == 0


# ---------------------------------------------------------------------- processes that are killed


def test_shares_in_processes_that_are_killed_make_the_same_file(run, tmp_path, cli):
    folder = tmp_path / "data"
    folder.mkdir()
    small = Planted(rgb=12, audio=6)
    for shard in range(4):
        write_shard(folder / f"{shard}.tfrecord", small.examples(1000 * shard, 300))
    code = (
        "import sys, tagreel.predict, tagreel.cli;"
        "tagreel.predict.PART_VIDEOS = 16; sys.exit(tagreel.cli.run(sys.argv[1:]))"
    )
    out, whole = tmp_path / "x.parquet", tmp_path / "whole.parquet"
    common = ["predict", str(run), "--data", str(folder), "--batch-size", "4", "--device", "cpu", "--out"]

    def begin(part: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", code, *common, str(out), "--part", part],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    running = {part: begin(part) for part in ("1/2", "2/2")}
    deadline = time.monotonic() + 120
    while len(parts(out)) < 10:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    running["2/2"].kill()
    running["2/2"].communicate()
    assert running["2/2"].returncode == -signal.SIGKILL
    printed = running["1/2"].communicate()[0].decode()
    assert running["1/2"].returncode == 0, printed
    assert f"part 1/2 of {out} is done; the file is whole when the others are" in printed
    assert not out.exists()
    again = begin("2/2")
    printed = again.communicate()[0].decode()
    assert again.returncode == 0, printed
    assert f"wrote {out}: 1,200 videos" in printed
    assert cli(*common, whole)[0] == 0
    # In parts of another size, so that the rows are compared and not the bytes.
    assert pq.read_table(out).equals(pq.read_table(whole))


def test_the_command_says_what_is_left_to_do(run, shards, tmp_path, cli):
    common = ["predict", run, "--data", f"{shards}/train*.tfrecord", "--batch-size", 8, "--device", "cpu"]
    out = tmp_path / "x.jsonl"
    code, printed, err = cli(*common, "--out", out, "--part", "1/2", "--json")
    assert code == 0, err
    assert printed == f'{{"out": "{out}", "whole": false, "damaged": 0}}\n'
    assert f"part 1/2 of {out} is done; the file is whole when the others are" in err
    code, printed, err = cli(*common, "--out", out, "--part", "2/2")
    assert code == 0, err
    assert f"wrote {out}: 100 videos × 20 tags" in printed
    assert "waiting for data" in printed


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/", ""])
def test_a_wrong_share_is_one_line(part, run, shards, tmp_path, cli):
    code, _, err = cli("predict", run, "--data", shards, "--out", tmp_path / "x.csv", f"--part={part}")
    assert code == 2
    assert err == f"tagreel: --part {part}: expected I/N, such as 2/8, I from 1 to N\n"
    assert not list(tmp_path.iterdir())
