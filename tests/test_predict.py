from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import tagreel
from tagreel.errors import DataError, RecipeError
from tagreel.loader import Loader
from tagreel.model import Tagger, build
from tagreel.predict import Prediction, predict
from tagreel.readers.synthetic import Planted
from tagreel.source import Source
from tests.conftest import REPOSITORY, InMemory, payload_damaged, video, write_shard

CPU = torch.device("cpu")
ENDINGS = ("parquet", "jsonl", "csv")


@pytest.fixture
def model(run) -> Tagger:
    return tagreel.load(run)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch) -> None:
    """Parts of sixteen videos, two batches."""
    monkeypatch.setattr("tagreel.predict.PART_VIDEOS", 16)


def write(
    model: Tagger, data, out: Path, *, batch_size: int = 8, skip_damaged: int = 0, **options
) -> Prediction:
    loader = Loader(
        data,
        features=model.features,
        classes=model.classes,
        batch_size=batch_size,
        skip_damaged=skip_damaged,
    )
    return predict(model, loader, out, device=CPU, **options)


def rows(path: Path) -> list[tuple[str, list[int], list[float]]]:
    """Id, labels and probabilities of each row, whatever the format."""
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            header, *lines = csv.reader(file)
        assert header == ["VideoId", "LabelConfidencePairs"]
        pairs = [(name, text.split(" ")) for name, text in lines]
        return [(name, [int(x) for x in p[::2]], [float(x) for x in p[1::2]]) for name, p in pairs]
    if path.suffix == ".jsonl":
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    else:
        found = pq.read_table(path).to_pylist()
    return [(row["id"], row["labels"], row["probabilities"]) for row in found]


def each(data: Source | InMemory) -> Iterator:
    return (data.open(shard)[i] for shard, count in enumerate(data.counts) for i in range(count))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("top_k", [1, 20, 500])
def test_a_row_holds_what_the_tagger_predicts_and_rows_follow_the_input(
    ending, top_k, model, training_data, tmp_path
):
    out = tmp_path / f"tags.{ending}"
    result = write(model, training_data, out, top_k=top_k)
    found = rows(out)
    assert (result.videos, result.resumed, result.damaged, len(found)) == (100, 0, [], 100)
    for example, (name, labels, probabilities) in zip(each(training_data), found, strict=True):
        tags = model.predict(example.streams, top_k=top_k)
        assert name == example.id
        assert len(labels) == min(top_k, 120)
        assert probabilities == pytest.approx([tag.probability for tag in tags], rel=1e-4)
        assert probabilities == sorted(probabilities, reverse=True)
        assert len(set(labels)) == len(labels)
        of_label = {tag.id: tag.probability for tag in tags}
        assert [of_label[label] for label in labels[:5]] == pytest.approx(probabilities[:5], rel=1e-4)


def test_the_formats_agree(model, test_data, tmp_path):
    for ending in ENDINGS:
        write(model, test_data, tmp_path / f"x.{ending}")
    parquet, jsonl, table = (rows(tmp_path / f"x.{ending}") for ending in ENDINGS)
    assert jsonl == table
    for (name, labels, exact), (other, others, rounded) in zip(parquet, jsonl, strict=True):
        assert (name, labels) == (other, others)
        assert rounded == pytest.approx(exact, rel=1e-5)
    named = [json.loads(line)["names"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert named == pq.read_table(tmp_path / "x.parquet").column("names").to_pylist()
    assert named[0] == [model.label_names[label] for label in jsonl[0][1]]


@pytest.mark.parametrize("batch_size", [1, 5, 100, 1000])
def test_the_batch_size_changes_no_row(batch_size, model, test_data, tmp_path):
    write(model, test_data, tmp_path / "a.csv")
    write(model, test_data, tmp_path / "b.csv", batch_size=batch_size)
    for ours, theirs in zip(rows(tmp_path / "b.csv"), rows(tmp_path / "a.csv"), strict=True):
        assert ours[0] == theirs[0]
        assert ours[2] == pytest.approx(theirs[2], rel=1e-4)


def test_names_and_ids_of_any_kind_survive(tiny, tmp_path):
    names = ["Gitarre, elektrisch", 'the "Blues"', "犬", "naïve\u2028line"] + [f"{i}" for i in range(116)]
    model = build(tiny, label_names=names)
    ids = ["plain", "with, comma", 'with "quotes"', "vidéo-犬", "two words"]
    streams = {"rgb": np.ones((2, 12), np.uint8), "audio": np.ones((2, 6), np.uint8)}
    data = InMemory([video(name, **streams) for name in ids])
    for ending in ENDINGS:
        write(model, data, tmp_path / f"x.{ending}", top_k=120)
        assert [row[0] for row in rows(tmp_path / f"x.{ending}")] == ids
    line = json.loads((tmp_path / "x.jsonl").read_bytes().split(b"\n")[0])
    assert set(line["names"]) == set(names)
    assert "犬".encode() in (tmp_path / "x.jsonl").read_bytes()
    assert set(pq.read_table(tmp_path / "x.parquet").column("names")[0].as_py()) == set(names)


def test_an_ordinary_submission_file_is_kaggles_to_the_byte(model, test_data, tmp_path):
    write(model, test_data, tmp_path / "x.csv", top_k=2)
    lines = (tmp_path / "x.csv").read_bytes().split(b"\n")
    assert lines[0] == b"VideoId,LabelConfidencePairs"
    assert lines[-1] == b""
    assert lines[1].startswith(b"planted-010000,")
    assert len(lines[1].split(b",")) == 2
    assert len(lines[1].split(b",")[1].split(b" ")) == 4


# ---------------------------------------------------------------------- going on after a kill


def parts(out: Path) -> list[str]:
    return sorted(path.name for path in out.with_name(out.name + ".parts").glob("*.parquet"))


class StopError(Exception):
    """Ends a run as a kill would."""


def stopped(model: Tagger, data, out: Path, *, after: int, **options) -> None:
    def on_batch(done: int) -> None:
        if done >= after:
            raise StopError

    with pytest.raises(StopError):
        write(model, data, out, on_batch=on_batch, **options)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("after", "whole"), [(8, 0), (16, 0), (24, 16), (100, 96)])
def test_a_stopped_run_goes_on_and_ends_in_the_same_file(
    ending, after, whole, model, training_data, tmp_path
):
    out, expected = tmp_path / f"x.{ending}", tmp_path / f"whole.{ending}"
    write(model, training_data, expected)
    stopped(model, training_data, out, after=after)
    assert not out.exists()
    result = write(model, training_data, out)
    assert (result.resumed, result.videos) == (whole, 100)
    assert out.read_bytes() == expected.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, expected.name])


def test_a_part_cut_off_while_it_is_written_does_not_count(model, training_data, tmp_path, monkeypatch):
    out = tmp_path / "x.csv"
    write(model, training_data, tmp_path / "whole.csv")
    real, calls = os.replace, []

    def dying(source, target):
        calls.append(target)
        if len(calls) == 4:  # the manifest, two parts, then this
            raise StopError
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(StopError):
            write(model, training_data, out)
    assert write(model, training_data, out).resumed == 32
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_file_from_before_stays_until_the_new_one_is_whole(model, training_data, tmp_path):
    out = tmp_path / "x.jsonl"
    out.write_text("from before")
    stopped(model, training_data, out, after=50)
    assert out.read_text() == "from before"
    write(model, training_data, out)
    assert len(rows(out)) == 100


def change_weights(model, shards, tmp_path):
    with torch.no_grad():
        next(model.head.parameters()).mul_(0.5)


def change_names(model, shards, tmp_path):
    model.label_names = [f"other {index}" for index in range(120)]


def change_data(model, shards, tmp_path):
    # Same names, sizes and counts: only the content and the time differ.
    planted = Planted(rgb=12, audio=6)
    path = tmp_path / "data" / "train0.tfrecord"
    write_shard(path, reversed(list(planted.examples(0, 40))))
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 10**9))


@pytest.mark.parametrize("change", [change_weights, change_names, change_data])
def test_parts_of_another_model_or_other_data_are_not_taken(change, run, shards, tmp_path):
    (tmp_path / "data").mkdir()
    for path in shards.glob("train*.tfrecord"):
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    model, out = tagreel.load(run), tmp_path / "x.jsonl"
    stopped(model, Source(tmp_path / "data"), out, after=50)
    assert parts(out)
    change(model, shards, tmp_path)
    assert write(model, Source(tmp_path / "data"), out).resumed == 0
    write(model, Source(tmp_path / "data"), tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_another_top_k_or_batch_size_starts_again(model, training_data, tmp_path):
    for options in ({"top_k": 3}, {"batch_size": 4}):
        out = tmp_path / f"{next(iter(options))}.csv"
        stopped(model, training_data, out, after=50)
        assert write(model, training_data, out, **options).resumed == 0
        write(model, training_data, tmp_path / "whole.csv", **options)
        assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_killed_process_goes_on_and_ends_in_the_same_file(run, planted, tmp_path, cli):
    folder = tmp_path / "data"
    folder.mkdir()
    small = Planted(rgb=12, audio=6)
    for shard in range(4):
        write_shard(folder / f"{shard}.tfrecord", small.examples(1000 * shard, 400))
    code = (
        "import sys, tagreel.predict, tagreel.cli;"
        "tagreel.predict.PART_VIDEOS = 16; sys.exit(tagreel.cli.run(sys.argv[1:]))"
    )

    def arguments(out: Path) -> list[str]:
        return [
            "predict",
            str(run),
            "--data",
            str(folder),
            "--out",
            str(out),
            "--batch-size",
            "4",
            "--device",
            "cpu",
        ]

    out = tmp_path / "tags.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments(out)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 120
    while len(parts(out)) < 20:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert 20 <= len(parts(out)) < 100
    assert cli(*arguments(tmp_path / "whole.jsonl"))[0] == 0
    code, printed, err = cli(*arguments(out))
    assert code == 0, err
    assert "an earlier run had left" in printed
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(rows(out)) == 1600


# ---------------------------------------------------------------------- damage and mistakes


def test_damaged_records_have_no_row_and_are_listed_after_a_restart_too(model, shards, tmp_path):
    sound = tmp_path / "sound.csv"
    write(model, Source(f"{shards}/train*"), sound)
    with payload_damaged(shards / "train0.tfrecord", 3), payload_damaged(shards / "train2.tfrecord", 29):
        data = Source(f"{shards}/train*")
        out = tmp_path / "x.csv"
        stopped(model, data, out, after=60, skip_damaged=2)
        result = write(model, data, out, skip_damaged=2)
        with pytest.raises(DataError, match=r"train0.tfrecord, record 3: the checksum"):
            write(model, data, tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()
    assert result.resumed > 0
    assert result.videos == 98
    assert [line.split(":")[0].rpartition("/")[2] for line in result.damaged] == [
        "train0.tfrecord, record 3",
        "train2.tfrecord, record 29",
    ]
    kept = [row for row in rows(sound) if row[0] not in ("planted-000003", "planted-000099")]
    found = rows(out)
    assert [row[0] for row in found] == [row[0] for row in kept]
    for ours, theirs in zip(found, kept, strict=True):
        assert ours[2] == pytest.approx(theirs[2], rel=1e-4)


def test_a_part_without_a_sound_record_is_a_part(model, tmp_path):
    streams = {"rgb": np.ones((2, 12), np.uint8), "audio": np.ones((2, 6), np.uint8)}
    bad = [DataError("the checksum is wrong", path="shard0", record=index) for index in range(20)]
    data = InMemory([*bad, *(video(f"{i}", **streams) for i in range(20, 40))])
    stopped(model, data, tmp_path / "x.jsonl", after=10, skip_damaged=20)
    result = write(model, data, tmp_path / "x.jsonl", skip_damaged=20)
    assert [row[0] for row in rows(tmp_path / "x.jsonl")] == [f"{i}" for i in range(20, 40)]
    assert len(result.damaged) == 20


def test_nothing_left_to_tag_is_an_error(model, tmp_path):
    bad = InMemory([DataError("the checksum is wrong", path="shard0", record=0)])
    with pytest.raises(DataError, match="shard0: no record could be read"):
        write(model, bad, tmp_path / "x.jsonl", skip_damaged=5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "top_k", "reason"),
    [
        ("x.txt", 20, r"x\.txt: the ending must be one of \.parquet, \.jsonl, \.csv"),
        ("x", 20, "the ending must be one of"),
        ("x.csv", 0, "--top-k is 0; expected at least 1"),
        ("folder.csv", 20, "is a folder; expected the name of a file"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(out, top_k, reason, model, test_data, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(RecipeError, match=reason):
        write(model, test_data, tmp_path / out, top_k=top_k)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


def test_folders_on_the_way_are_made(model, test_data, tmp_path):
    write(model, test_data, tmp_path / "a" / "b" / "x.jsonl")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["x.jsonl"]


def test_a_file_where_a_folder_should_be_is_one_line(model, test_data, tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        write(model, test_data, tmp_path / "a" / "x.jsonl")


def test_a_damaged_part_and_all_behind_it_are_made_again(model, training_data, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "tags.jsonl"
    write(model, training_data, whole)
    stopped(model, training_data, out, after=90)
    found = sorted((tmp_path / "tags.jsonl.parts").glob("part-*.parquet"))
    assert len(found) >= 2
    found[0].write_bytes(found[0].read_bytes()[:-20])
    write(model, training_data, out)
    assert out.read_bytes() == whole.read_bytes()
