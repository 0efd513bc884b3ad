from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tagreel.check import check
from tagreel.readers._tfexample import encode_sequence_example
from tagreel.readers._tfrecord import write
from tagreel.source import Source

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not in {DATA}")
FRAMES = np.arange(48, dtype=np.uint8).reshape(6, 8)


@pytest.fixture
def folder(tmp_path):
    """Five videos in two shards, one of them damaged, one without frames, one with the id of another."""
    videos = [("a", [1, 3], 6), ("b", [], 2), ("c", [7], 4), ("d", [1], 0), ("a", [1, 2, 9], 3)]
    payloads = [
        encode_sequence_example({"id": name, "labels": labels}, {"rgb": FRAMES[:n], "audio": FRAMES[:n, :2]})
        for name, labels, n in videos
    ]
    write(tmp_path / "one.tfrecord", payloads[:3])
    write(tmp_path / "two.tfrecord", payloads[3:])
    content = bytearray((tmp_path / "one.tfrecord").read_bytes())
    content[-10] ^= 1
    (tmp_path / "one.tfrecord").write_bytes(content)
    (tmp_path / "readme").write_text("words")
    return tmp_path


def test_everything_is_counted(folder):
    report = check(Source(folder))
    assert [(file.format, file.records, file.examples, file.damaged) for file in report.files] == [
        ("yt8m", 3, 2, 1),
        ("yt8m", 2, 2, 0),
    ]
    rgb = report.streams["rgb"]
    assert (rgb.examples, rgb.widths, rgb.dtypes, rgb.without_frames) == (4, [8], ["uint8"], 1)
    assert (rgb.shortest, rgb.median, rgb.longest) == (0, 2.5, 6)
    assert report.streams["audio"].widths == [2]
    assert (report.labels_fewest, report.labels_mean, report.labels_most) == (0, 1.5, 3)
    assert (report.unlabelled, report.classes_seen, report.largest_label) == (1, 4, 9)
    one, two = (str(folder / name) for name in ("one.tfrecord", "two.tfrecord"))
    assert report.duplicate_ids == 1
    assert report.duplicates == [f"'a': {two}, example 1 and {one}, example 0"]
    assert len(report.damage) == 1
    assert report.damage[0].startswith(f"{one}, record 2: the checksum of its")


def test_the_report_is_plain_data_and_text(folder):
    report = check(Source(folder))
    assert json.loads(json.dumps(report.to_dict()))["examples"] == 4
    text = report.text()
    for part in (
        "one.tfrecord",
        "rgb",
        "0 / 2.5 / 6",
        "(1 without frames)",
        "record 2: the checksum",
        "readme",
    ):
        assert part in text
    assert "2 files, 4 examples, 1 damaged" in text


def test_a_long_list_of_damage_still_fits_on_a_screen(tmp_path):
    payload = encode_sequence_example({"labels": [1]}, {"rgb": FRAMES})
    write(tmp_path / "a.tfrecord", [encode_sequence_example({"id": "a"}, {"rgb": FRAMES})] + [payload] * 99)
    report = check(Source(tmp_path))
    assert len(report.damage) == 99
    assert len(report.text().splitlines()) < 50
    assert "... and 79 more" in report.text()


def test_nothing_readable_is_a_report_too(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(b"")
    report = check(Source(tmp_path))
    assert (report.examples, report.damage) == (
        0,
        [f"{tmp_path}/a.tfrecord, record 0: the file is empty (0 bytes)"],
    )
    assert "damage       1" in report.text()


def test_a_lost_archive_is_one_line_and_as_many_damaged_records(folder):
    np.savez(folder / "a.npz", id=np.arange(40), rgb=np.full((40, 8), 7, np.uint8))
    content = bytearray((folder / "a.npz").read_bytes())
    content[content.index(b"\x07" * 320)] = 0
    (folder / "a.npz").write_bytes(content)
    report = check(Source(folder))
    file = report.files[0]
    assert (file.format, file.records, file.examples, file.damaged) == ("npz", 40, 0, 40)
    assert (report.damaged, report.to_dict()["damaged"]) == (41, 41)
    lost, other = report.damage
    assert lost == (
        f"{folder}/a.npz: it is damaged: the checksum of 'rgb.npy' is wrong; "
        "the whole file (40 videos) cannot be read"
    )
    assert "one.tfrecord, record 2" in other
    assert "3 files, 4 examples, 41 damaged" in report.text()
    assert "damage       41\n" in report.text()


def test_segments_are_counted(tmp_path):
    context = {
        "id": "a",
        "segment_start_times": [0, 1],
        "segment_labels": [4, 5],
        "segment_scores": np.array([1, 0], np.float32),
    }
    unrated = {"id": "b", "segment_start_times": [0]}
    write(tmp_path / "a.tfrecord", [encode_sequence_example(c, {"rgb": FRAMES}) for c in (context, unrated)])
    report = check(Source(tmp_path))
    assert report.examples == 3
    assert (report.segments, report.classes_seen) == (2, 1)


def test_progress_is_told_to_the_end(folder):
    calls: list[tuple[int, int]] = []
    check(Source(folder), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(5, 5)]


@needs_data
def test_an_original_split_is_whole():
    report = check(Source(f"{DATA}/audioset/eval-*.gz"))
    assert (report.examples, report.damage, report.duplicate_ids) == (11061, [], 0)
    assert (report.classes_seen, report.largest_label) == (527, 526)
    assert report.streams["audio_embedding"].longest == 10
