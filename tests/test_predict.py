from __future__ import annotations

import csv
import heapq
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
from tagreel.evaluate import scoring_loader
from tagreel.loader import Loader
from tagreel.predict import Prediction, predict, read_classes
from tagreel.predict_parts import Parts
from tagreel.readers.synthetic import Planted
from tagreel.recorded import Recorded
from tagreel.source import Source
from tagreel.tagger import Tagger, build
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
    assert (result.rows, result.resumed, result.damaged, len(found)) == (100, 0, [], 100)
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
    assert (result.resumed, result.rows) == (whole, 100)
    assert out.read_bytes() == expected.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, expected.name])


def test_a_part_cut_off_while_it_is_written_does_not_count(model, training_data, tmp_path, monkeypatch):
    out = tmp_path / "x.csv"
    write(model, training_data, tmp_path / "whole.csv")
    real, calls = os.replace, []

    def dying(source, target):
        calls.append(target)
        if len(calls) == 3:  # two parts, then this
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


# ---------------------------------------------------------------------- segments and rankings


def in_segments(
    model: Tagger, data, out: Path, *, batch_size: int = 8, skip_damaged: int = 0, **options
) -> Prediction:
    loader = scoring_loader(model, data, batch_size=batch_size, skip_damaged=skip_damaged, whole=True)
    return predict(model, loader, out, device=CPU, segments=5, **options)


def by_hand(model: Tagger, data) -> dict[str, np.ndarray]:
    """The scores of every segment, each cut out and scored on its own."""
    found = {}
    for example in each(data):
        for start in range(0, len(example.streams["rgb"]), 5):
            part = {name: frames[None, start : start + 5] for name, frames in example.streams.items()}
            found[f"{example.id}:{start}"] = model.scores(part)[0].numpy()
    return found


def ranking(path: Path) -> dict[int, list[str]]:
    header, *lines = path.read_text().split("\n")[:-1]
    assert header == "Class,Segments"
    return {int(label): listed.split() for label, listed in (line.split(",") for line in lines)}


def heaps(scores: dict[str, np.ndarray], per_class: int, classes) -> dict[int, list[str]]:
    """The starter code's way: a heap a class, one segment after the other; the earlier among equals."""
    found = {}
    for c in classes:
        heap: list[tuple[float, int, str]] = []
        for number, (name, row) in enumerate(scores.items()):
            push = heapq.heappush if len(heap) < per_class else heapq.heappushpop
            push(heap, (float(row[c]), -number, name))
        found[c] = [name for _, _, name in sorted(heap, reverse=True)]
    return found


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_each_segment_is_tagged_as_a_video_of_its_frames(ending, model, test_data, tmp_path):
    out = tmp_path / f"x.{ending}"
    result = in_segments(model, test_data, out, top_k=3)
    expected = by_hand(model, test_data)
    found = rows(out)
    assert [row[0] for row in found] == list(expected)
    assert result.rows == len(expected) > 100
    for name, labels, probabilities in found:
        assert probabilities == pytest.approx(np.sort(expected[name])[:-4:-1].tolist(), rel=1e-5)
        assert probabilities == pytest.approx(expected[name][labels].tolist(), rel=1e-5)


@pytest.mark.parametrize(("per_class", "only"), [(7, None), (1000, [119, 3, 50]), (1, [0])])
@pytest.mark.parametrize("batch_size", [3, 50])
def test_a_ranking_is_what_heaps_keep(per_class, only, batch_size, model, test_data, tmp_path, monkeypatch):
    monkeypatch.setattr("tagreel.ranking._SLACK", 8)
    out = tmp_path / "x.csv"
    in_segments(model, test_data, out, batch_size=batch_size, per_class=per_class, only=only)
    classes = range(120) if only is None else sorted(only)
    scores = by_hand(model, test_data)
    expected, found = heaps(scores, per_class, classes), ranking(out)
    assert list(found) == list(classes)
    for c in classes:
        # By their scores: in another batch two that nearly tie may change places.
        ours, theirs = ([scores[name][c] for name in names] for names in (found[c], expected[c]))
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert len(set(found[c])) == len(found[c])


@pytest.mark.parametrize("after", [8, 40, 100])
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_stopped_run_over_segments_goes_on_and_ends_in_the_same_file(
    ending, after, model, training_data, tmp_path, monkeypatch
):
    monkeypatch.setattr("tagreel.ranking._SLACK", 8)
    options = {"per_class": 9, "only": [2, 5, 77]} if ending == "csv" else {}
    out, expected = tmp_path / f"x.{ending}", tmp_path / f"whole.{ending}"
    in_segments(model, training_data, expected, **options)

    def on_batch(done: int) -> None:
        if done >= after:
            raise StopError

    with pytest.raises(StopError):
        in_segments(model, training_data, out, on_batch=on_batch, **options)
    assert not out.exists()
    result = in_segments(model, training_data, out, **options)
    assert (result.resumed > 0) == (after > 8)
    assert out.read_bytes() == expected.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_has_no_chance_is_not_kept_in_the_parts(model, training_data, tmp_path, monkeypatch):
    monkeypatch.setattr("tagreel.ranking._SLACK", 8)
    kept: list[int] = []
    add = Parts.add
    monkeypatch.setattr(
        Parts, "add", lambda self, n, rows, damaged: (kept.append(tags(rows)), add(self, n, rows, damaged))
    )

    def tags(table) -> int:
        return sum(map(len, table.column("labels").to_pylist()))

    result = in_segments(model, training_data, tmp_path / "x.csv", per_class=4)
    assert sum(kept) < 0.2 * result.rows * 120
    assert kept[-1] < 0.2 * kept[0]


def test_random_frames_of_a_segment_follow_from_its_name(model, test_data, tmp_path):
    sampled = tagreel.tagger.override(model.recipe, "evaluation_sampling=tagreel.sampling.RandomSequence")
    model.recipe = tagreel.tagger.override(sampled, "evaluation_sampling.frames=2")
    for batch_size in (3, 50):
        in_segments(model, test_data, tmp_path / f"{batch_size}.parquet", batch_size=batch_size)
    ours, theirs = (rows(tmp_path / f"{size}.parquet") for size in (3, 50))
    whole = by_hand(model, test_data)
    assert [row[0] for row in ours] == [row[0] for row in theirs]
    for (name, labels, probabilities), (_, others, same) in zip(ours, theirs, strict=True):
        assert labels == others
        assert probabilities == pytest.approx(same, rel=1e-5)
        if name.endswith(":0"):
            # Two of its five frames say something else than all five.
            assert probabilities != pytest.approx(whole[name][labels].tolist(), rel=1e-5)


def test_only_some_classes_to_choose_from(model, test_data, tmp_path):
    only = [3, 40, 41, 100]
    write(model, test_data, tmp_path / "x.csv", only=only, top_k=3)
    for example, (name, labels, probabilities) in zip(each(test_data), rows(tmp_path / "x.csv"), strict=True):
        scores = {tag.id: tag.probability for tag in model.predict(example.streams, top_k=120)}
        best = sorted(only, key=lambda c: -scores[c])[:3]
        assert (name, labels) == (example.id, best)
        assert probabilities == pytest.approx([scores[c] for c in best], rel=1e-4)


def test_a_list_of_classes_as_the_challenge_gives_it(tmp_path):
    (tmp_path / "a.csv").write_text("Index\n3\n7\n\n12\n")
    (tmp_path / "b.txt").write_text("12\r\n3\r\n7\r\n")
    (tmp_path / "c.csv").write_text('"id","name"\n"3","x"\n7,y\n12,"z"\n')
    for path in tmp_path.iterdir():
        assert read_classes(path, classes=13) == [3, 7, 12]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Index\n3\ncat\n", "line 3: 'cat'; expected one of 13 classes"),
        ("3\n13\n", r"line 2: '13'; expected one of 13 classes \(0 to 12\)"),
        ("3\n-1\n", "line 2: '-1'; expected"),
        ("3\n7\n3\n", "line 3: class 3 again, as in line 1"),
        ("Index\n", "lists no class; expected"),
        ("", "lists no class; expected"),
    ],
)
def test_a_wrong_list_of_classes_is_one_line(text, reason, tmp_path):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        read_classes(tmp_path / "x.csv", classes=13)


@pytest.mark.parametrize(
    ("ending", "options", "reason"),
    [
        ("csv", {"top_k": 5}, "--top-k is of rows, .*; give --per-class"),
        ("parquet", {"per_class": 5}, "--per-class is of a ranking; write one with --segments 5"),
        ("csv", {"per_class": 0}, "--per-class is 0; expected at least 1"),
    ],
)
def test_options_that_do_not_fit_are_told_before_anything_is_written(
    ending, options, reason, model, test_data, tmp_path
):
    with pytest.raises(RecipeError, match=reason):
        in_segments(model, test_data, tmp_path / f"x.{ending}", **options)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_cut_or_ranked_is_one_line(model, test_data, tmp_path):
    streams = {"rgb": np.ones((1, 12), np.uint8), "audio": np.ones((1, 6), np.uint8)}
    with pytest.raises(DataError, match="shard0: has one vector a video; segments are parts of frame-level"):
        in_segments(model, InMemory([video("a", **streams)]), tmp_path / "x.csv")
    streams = {name: np.repeat(frames, 7, axis=0) for name, frames in streams.items()}
    spaced = InMemory([video("a", **streams), video("b c", **streams)])
    with pytest.raises(
        RecipeError, match=r"the video 'b c' has a space in its id.*write \.parquet or \.jsonl"
    ):
        in_segments(model, spaced, tmp_path / "x.csv")
    in_segments(model, spaced, tmp_path / "x.jsonl")
    assert [row[0] for row in rows(tmp_path / "x.jsonl")] == ["a:0", "a:5", "b c:0", "b c:5"]
    write(model, test_data, tmp_path / "x.parquet")
    recorded = Recorded(tmp_path / "x.parquet")
    with pytest.raises(RecipeError, match="--segments cuts frames, and this model looks at none"):
        in_segments(recorded, test_data, tmp_path / "y.csv")


def test_scores_that_are_not_numbers_are_one_line(model, test_data, tmp_path):
    with torch.no_grad():
        next(model.head.parameters()).fill_(float("nan"))
    with pytest.raises(RecipeError, match="scores are NaN; its weights cannot be used"):
        write(model, test_data, tmp_path / "x.parquet")


def test_the_command_ranks_segments_of_listed_classes(run, shards, model, test_data, tmp_path, cli):
    (tmp_path / "only.csv").write_text("Index\n7\n3\n")
    arguments = ["predict", run, "--data", shards / "test0.tfrecord", "--segments", 5, "--device", "cpu"]
    out = tmp_path / "x.csv"
    code, printed, err = cli(*arguments, "--out", out, "--only", tmp_path / "only.csv", "--per-class", 6)
    assert code == 0, err
    assert "segments of 50 videos, the best of them for each of 2 classes" in printed
    assert [*map(len, ranking(out).values())] == [6, 6]
    code, printed, err = cli(*arguments, "--out", tmp_path / "x.jsonl", "--top-k", 4, "--json")
    assert code == 0, err
    assert json.loads(printed)["segments"] == len(by_hand(model, test_data))
    assert "segments of 50 videos × 4 tags" in err


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
    assert result.rows == 98
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
