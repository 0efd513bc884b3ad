from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tagreel.errors import DataError
from tagreel.readers._tfexample import encode_sequence_example
from tagreel.readers._tfrecord import write
from tagreel.readers.audioset import AudioSet
from tagreel.readers.yt8m import YT8M

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "audioset"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the AudioSet shards are not in {DATA}")

FRAMES = np.random.default_rng(0).integers(0, 256, (10, 128), np.uint8)
CONTEXT = {
    "video_id": "--cB2ZVjpnA",
    "start_time_seconds": [30.0],
    "end_time_seconds": [40.0],
    "labels": [399],
}


@pytest.mark.parametrize("name", ["a.tfrecord", "a.tfrecord.gz"])
def test_clips_are_read(tmp_path, name):
    write(tmp_path / name, [encode_sequence_example(CONTEXT, {"audio_embedding": FRAMES})])
    assert AudioSet.recognises(tmp_path / name)
    assert not YT8M.recognises(tmp_path / name)
    (example,) = AudioSet(tmp_path / name)
    assert (example.id, example.labels.tolist()) == ("--cB2ZVjpnA", [399])
    assert list(example.streams) == ["audio_embedding"]
    np.testing.assert_array_equal(example.streams["audio_embedding"], FRAMES)


def test_a_clip_without_an_id_is_named(tmp_path):
    write(tmp_path / "a.tfrecord", [encode_sequence_example({}, {"audio_embedding": FRAMES})])
    with pytest.raises(DataError, match="record 0: it has no 'video_id'"):
        AudioSet(tmp_path / "a.tfrecord")[0]


def test_youtube_8m_is_not_audioset(tmp_path):
    write(tmp_path / "a.tfrecord", [encode_sequence_example({"id": "a"}, {"rgb": FRAMES})])
    assert not AudioSet.recognises(tmp_path / "a.tfrecord")


@needs_data
@pytest.mark.parametrize(
    ("name", "clips"),
    [
        ("eval-00001-of-00004.tfrecord.gz", 5187),
        ("small_shards/bal_train_-0.tfrecord", 8),
        ("small_shards/eval_-0.tfrecord", 11),
        ("small_shards/eval_zz.tfrecord", 4),
    ],
)
def test_original_shards_are_read(name, clips):
    read = AudioSet(DATA / name)
    found = [read[index] for index in range(len(read))]
    assert len(found) == clips
    assert all(frames.shape[1] == 128 for example in found for frames in example.streams.values())
    assert all(1 <= len(example.streams["audio_embedding"]) <= 10 for example in found)
    assert max(example.labels.max() for example in found) < 527
    assert all(len(example.id) == 11 for example in found)


@needs_data
def test_the_first_clip_is_the_one_in_the_file():
    example = AudioSet(DATA / "bal_train-00000-of-00004.tfrecord.gz")[0]
    assert (example.id, example.labels.tolist()) == ("--cB2ZVjpnA", [399])
    assert example.streams["audio_embedding"].shape == (10, 128)
    assert bytes(example.streams["audio_embedding"][0, :6]) == b"_z\x93\x0ee0"
