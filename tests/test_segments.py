from __future__ import annotations

import os

import numpy as np
import pytest

from tagreel.segments import segment_means, write_segments
from tagreel.source import Source
from tests.conftest import payload_damaged, video, write_shard


def _dequantized(frames):
    return frames.astype(np.float64) * 4 / 255 + 4 / 512 - 2


def _shard(folder, name="train0", lengths=(7, 9, 122, 2, 1)):
    rng = np.random.default_rng(0)
    examples = [
        video(
            f"{name}.{n}",
            labels=[n, n + 1],
            rgb=rng.integers(0, 256, (length, 6), np.uint8),
            audio=rng.integers(0, 256, (length, 2), np.uint8),
        )
        for n, length in enumerate(lengths)
    ]
    folder.mkdir(exist_ok=True)
    write_shard(folder / f"{name}.tfrecord", examples)
    return examples


def test_segments_are_the_means_of_equal_parts():
    frames = np.random.default_rng(0).integers(0, 256, (122, 5), np.uint8)
    found = segment_means(frames, 3)
    for part, row in enumerate(found):
        expected = sum(_dequantized(frames[part * 40 + t]) for t in range(40)) / 40
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)
    assert len(found) == 3
    np.testing.assert_allclose(segment_means(frames[:2], 3)[0], _dequantized(frames[:2]).mean(0), atol=1e-6)


def test_what_is_written_is_read_as_a_video_of_three_rows(tmp_path):
    examples = _shard(tmp_path / "in")
    written = write_segments(Source(tmp_path / "in"), tmp_path / "out")
    assert (written.files, written.videos, written.kept, written.damaged) == (1, 5, 0, [])
    source = Source(tmp_path / "out")
    assert source.ignored == []
    for index, example in enumerate(examples):
        found = source.open(0)[index]
        assert (found.id, found.labels.tolist()) == (example.id, example.labels.tolist())
        assert list(found.streams) == ["mean_rgb", "mean_audio"]
        for name in ("rgb", "audio"):
            expected = segment_means(example.streams[name], 3)
            assert len(expected) == (3 if len(example.streams[name]) >= 3 else 1)
            np.testing.assert_allclose(found.streams[f"mean_{name}"], expected, atol=2e-3)


def test_an_interrupted_run_goes_on_and_a_changed_shard_is_done_anew(tmp_path):
    for name in ("a", "b"):
        _shard(tmp_path / "in", name)
    write_segments(Source(tmp_path / "in"), tmp_path / "out")
    kept, redone = sorted((tmp_path / "out").iterdir())
    redone.unlink()
    before = os.stat(kept).st_mtime_ns
    written = write_segments(Source(tmp_path / "in"), tmp_path / "out")
    assert (written.videos, written.kept) == (5, 1)
    assert os.stat(kept).st_mtime_ns == before
    os.utime(tmp_path / "in" / "a.tfrecord", ns=(before + 10**12,) * 2)
    assert write_segments(Source(tmp_path / "in"), tmp_path / "out").kept == 1


def test_the_command_says_what_it_wrote_and_what_was_damaged(tmp_path, cli):
    _shard(tmp_path / "in")
    with payload_damaged(tmp_path / "in" / "train0.tfrecord", 2):
        code, _, err = cli("segments", tmp_path / "in", "--out", tmp_path / "out")
        assert code == 2
        assert "record 2" in err
        assert len(err.splitlines()) == 1
        assert not list((tmp_path / "out").iterdir())
        code, out, _ = cli("segments", tmp_path / "in", "--out", tmp_path / "out", "--skip-damaged", 1)
    assert code == 0
    assert "4 videos" in out
    assert "record 2" in out
    assert len(Source(tmp_path / "out")) == 4


def test_a_shard_more_does_not_write_the_others_twice(tmp_path):
    _shard(tmp_path / "in", "b")
    write_segments(Source(tmp_path / "in"), tmp_path / "out")
    _shard(tmp_path / "in", "a")
    written = write_segments(Source(tmp_path / "in"), tmp_path / "out")
    assert (written.videos, written.kept) == (5, 1)
    assert len(Source(tmp_path / "out")) == 10


def test_a_folder_of_other_segments_is_refused(tmp_path, cli):
    _shard(tmp_path / "in")
    assert cli("segments", tmp_path / "in", "--out", tmp_path / "out")[0] == 0
    code, _, err = cli("segments", tmp_path / "in", "--out", tmp_path / "out", "--segments", 5)
    assert code == 2
    assert "which is not of these files and this number of segments" in err


@pytest.mark.parametrize(("lengths", "reason"), [((1, 1), "one vector a video"), ((5, 0), "has no frames")])
def test_records_without_frames_are_refused(lengths, reason, tmp_path, cli):
    _shard(tmp_path / "in", lengths=lengths)
    code, _, err = cli("segments", tmp_path / "in", "--out", tmp_path / "out")
    assert code == 2
    assert reason in err
    assert not list((tmp_path / "out").iterdir())


def test_names_of_classes_travel_along(tmp_path):
    frames = np.zeros((6, 3), np.uint8)
    np.savez(
        tmp_path / "a.npz",
        id=np.array(["a"]),
        labels=np.array([1]),
        label_offsets=np.array([0, 1]),
        rgb=frames,
        frame_offsets=np.array([0, 6]),
        label_names=np.array(["cat", "dog"]),
    )
    write_segments(Source(tmp_path / "a.npz"), tmp_path / "out")
    assert Source(tmp_path / "out").label_names == ["cat", "dog"]


@pytest.mark.parametrize(("segments", "code"), [(0, 2), (5, 0)])
def test_another_number_of_segments(segments, code, tmp_path, cli):
    _shard(tmp_path / "in", lengths=(11,))
    assert cli("segments", tmp_path / "in", "--out", tmp_path / "out", "--segments", segments)[0] == code
    if not code:
        assert len(Source(tmp_path / "out").open(0)[0].streams["mean_rgb"]) == 5
