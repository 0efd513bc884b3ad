from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tagreel import shards
from tagreel.batch import Example
from tagreel.convert import convert
from tagreel.errors import DataError, RecipeError
from tagreel.readers._tfexample import encode_sequence_example
from tagreel.readers._tfrecord import write
from tagreel.source import Source
from tests.conftest import REPOSITORY, payload_damaged, video, write_shard

DATA = REPOSITORY.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not in {DATA}")


def folder_of(path: Path, *counts: int) -> Path:
    """TFRecord shards of so many videos each, the third packed."""
    rng = np.random.default_rng(0)
    path.mkdir()
    for number, count in enumerate(counts):
        write_shard(
            path / f"train{number}.tfrecord{'.gz' if number == 2 else ''}",
            [
                video(
                    f"{number}.{n}",
                    labels=range(n % 4),
                    rgb=rng.integers(0, 256, (n % 6 + 1, 40), np.uint8),
                    audio=rng.integers(0, 256, (n % 6 + 1, 8), np.uint8),
                )
                for n in range(count)
            ],
        )
    return path


def everything(path: Path | list[Path]) -> list[Example]:
    source = Source(path)
    return [source.open(n)[i] for n, count in enumerate(source.counts) for i in range(count)]


def contents(folder: Path, pattern: str = "*") -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def assert_same(found: list[Example], expected: list[Example]) -> None:
    assert [example.id for example in found] == [example.id for example in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.labels.tolist() == other.labels.tolist()
        assert (one.rated is None) == (other.rated is None)
        assert one.rated is None or one.rated.tolist() == other.rated.tolist()
        for name, frames in other.streams.items():
            assert one.streams[name].dtype == frames.dtype or not len(frames)
            assert one.streams[name].tobytes() == frames.tobytes()


def test_the_shards_hold_the_same_videos_in_the_same_order(tmp_path):
    data = folder_of(tmp_path / "in", 40, 1, 30, 50)
    done: list[int] = []
    made = convert(Source(data), tmp_path / "out", shard_size=5000, on_videos=done.append)
    assert (made.videos, made.kept, made.damaged) == (121, 0, [])
    names = [f"shard-{n:05}-of-{made.shards:05}.arrow" for n in range(made.shards)]
    assert sorted(contents(tmp_path / "out")) == names
    assert made.shards > 3
    assert_same(everything(tmp_path / "out"), everything(data))
    assert done == sorted(done)
    assert done[-1] == 121
    sizes = [(tmp_path / "out" / name).stat().st_size for name in names]
    assert max(sizes[:-1]) < 3 * min(sizes[:-1])


def test_one_shard_takes_them_all_where_they_fit(tmp_path):
    data = folder_of(tmp_path / "in", 3, 4)
    assert convert(Source(data), tmp_path / "out").shards == 1
    assert convert(Source(data), tmp_path / "each", shard_size=1).shards == 7


def test_the_number_of_jobs_changes_no_byte(tmp_path):
    data = folder_of(tmp_path / "in", 20, 10, 20)
    convert(Source(data), tmp_path / "one", shard_size=5000)
    bad = payload_damaged(data / "train1.tfrecord", 2)
    with bad, pytest.raises(DataError, match=r"train1\.tfrecord, record 2: the checksum"):
        convert(Source(data), tmp_path / "two", shard_size=5000, jobs=2)
    made = convert(Source(data), tmp_path / "two", shard_size=5000, jobs=2)
    assert made.videos == 50
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_finished_shards_are_kept_and_the_others_written(tmp_path):
    data, out = folder_of(tmp_path / "in", 20, 10, 20), tmp_path / "out"
    convert(Source(data), out, shard_size=5000)
    before = contents(out)
    first, second, *_ = sorted(out.iterdir())
    second.unlink()
    (out / f"{second.name}.partial").write_bytes(b"half")
    stamp = os.stat(first).st_mtime_ns
    made = convert(Source(data), out, shard_size=5000)
    assert made.kept == made.shards - 1
    assert made.videos == 50
    assert contents(out) == before
    assert os.stat(first).st_mtime_ns == stamp


def all_end(group: int) -> bool:
    """Whether all processes of a group end within a while."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path):
    data, out = folder_of(tmp_path / "in", 60, 60, 60), tmp_path / "out"
    convert(Source(data), tmp_path / "whole", shard_size=2500)
    whole, rng = contents(tmp_path / "whole"), random.Random(0)
    command = [sys.executable, "-m", "tagreel", "convert", data, "--out", out, "--shard-size", "2.5kB"]
    process = subprocess.Popen(
        [*command, "--jobs", "2"], stdout=subprocess.DEVNULL, cwd=REPOSITORY, start_new_session=True
    )
    while process.poll() is None and len(list(out.glob("*.arrow"))) < 2:
        time.sleep(0.001)
    time.sleep(rng.random() * 0.02)
    process.kill()
    process.wait()
    try:
        assert all_end(process.pid), (
            "the workers outlive what started them, and may write when it is run again"
        )
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    finished = contents(out, "*.arrow")
    assert finished.items() <= whole.items()
    made = convert(Source(data), out, shard_size=2500)
    assert (made.kept, made.videos) == (len(finished), 180)
    assert contents(out) == whole


def test_what_was_made_of_other_files_is_not_overwritten(tmp_path):
    data, out = folder_of(tmp_path / "in", 8, 8), tmp_path / "out"
    convert(Source(data), out)
    before = contents(out)
    with pytest.raises(RecipeError, match=r"holds shard-00000-of-00001\.arrow, which is not of these files"):
        convert(Source(data), out, shard_size=1000)
    with pytest.raises(RecipeError, match=r"holds shard-00000-of-00001\.arrow, which is not of these files"):
        convert(Source(data / "train0.tfrecord"), out)
    with pytest.raises(RecipeError, match=r"is to be read; expected another folder than the data's"):
        convert(Source(out), out)
    assert contents(out) == before


def test_damaged_records_end_it_or_are_left_out_and_told_again(tmp_path):
    data, out = folder_of(tmp_path / "in", 10, 10), tmp_path / "out"
    with payload_damaged(data / "train0.tfrecord", 2), payload_damaged(data / "train1.tfrecord", 7):
        with pytest.raises(DataError, match=r"train0\.tfrecord, record 2: the checksum"):
            convert(Source(data), out, shard_size=2000)
        with pytest.raises(DataError, match=r"this is damaged record number 2, and --skip-damaged allows 1"):
            convert(Source(data), out, shard_size=2000, skip_damaged=1)
        made = convert(Source(data), out, shard_size=2000, skip_damaged=2)
        again = convert(Source(data), out, shard_size=2000, skip_damaged=2)
    for one in (made, again):
        assert one.videos == 18
        assert [(Path(error.path).name, error.record) for error in one.damaged] == [
            ("train0.tfrecord", 2),
            ("train1.tfrecord", 7),
        ]
    assert again.kept == again.shards
    found = [example.id for example in everything(out)]
    assert found == [f"{n}.{i}" for n in (0, 1) for i in range(10) if (n, i) not in ((0, 2), (1, 7))]


def test_a_video_of_another_width_is_damaged(tmp_path):
    data = folder_of(tmp_path / "in", 6)
    write_shard(data / "train1.tfrecord", [video("odd", rgb=np.zeros((2, 8), np.uint8))])
    with pytest.raises(
        DataError, match=r"train1\.tfrecord, record 0: video 'odd': 'rgb' is uint8, 8 wide, and uint8, 40"
    ):
        convert(Source(data), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    made = convert(Source(data), tmp_path / "out", skip_damaged=1)
    assert (made.videos, len(made.damaged)) == (6, 1)


def test_what_does_not_read_back_is_not_left(tmp_path, monkeypatch):
    data, real = folder_of(tmp_path / "in", 6), shards.write

    def careless(path, examples, **about):
        count = real(path, examples, **about)
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
        return count

    monkeypatch.setattr(shards, "write", careless)
    with pytest.raises(DataError):
        convert(Source(data), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert convert(Source(data), tmp_path / "out", verify=False).videos == 6


def test_rated_segments_names_of_classes_and_missing_streams_are_kept(tmp_path):
    (tmp_path / "in").mkdir()
    frames = np.arange(48, dtype=np.uint8).reshape(12, 4)
    segments = {"segment_start_times": [0, 5], "segment_labels": [3, 4], "segment_scores": [1.0, 0.0]}
    write(
        tmp_path / "in" / "b.tfrecord",
        [encode_sequence_example({"id": "a", "labels": [1], **segments}, {"rgb": frames})],
    )
    names = np.array(["a", "b"])
    np.savez(
        tmp_path / "in" / "a.npz", id=np.array(["x"]), audio=np.zeros((1, 3), np.float32), label_names=names
    )
    for name, whole in (("parts", False), ("whole", True)):
        source = Source(tmp_path / "in", whole_videos=whole)
        convert(source, tmp_path / name)
        found = Source(tmp_path / name)
        assert found.label_names == ["a", "b"]
        expected = [source.open(n)[i] for n, count in enumerate(source.counts) for i in range(count)]
        assert_same(everything(tmp_path / name), expected)
    assert [example.id for example in everything(tmp_path / "parts")] == ["x", "a:0", "a:5"]
    with pytest.raises(RecipeError, match="not of these files"):
        convert(Source(tmp_path / "in"), tmp_path / "whole")


def test_shards_are_a_source_as_well(tmp_path):
    data = folder_of(tmp_path / "in", 20)
    convert(Source(data), tmp_path / "small", shard_size=1000)
    convert(Source(tmp_path / "small"), tmp_path / "large")
    assert_same(everything(tmp_path / "large"), everything(data))


def test_the_command_says_what_it_wrote(tmp_path, cli):
    data = folder_of(tmp_path / "in", 20)
    code, out, _ = cli("convert", data, "--out", tmp_path / "out", "--shard-size", "1kB")
    assert code == 0
    shards_written = len(list((tmp_path / "out").iterdir()))
    assert f"wrote {tmp_path}/out: 20 videos in {shards_written} shards\n" in out
    code, out, err = cli("convert", data, "--out", tmp_path / "out", "--shard-size", "1kB", "--json")
    result = {
        "out": f"{tmp_path}/out",
        "videos": 20,
        "shards": shards_written,
        "kept": shards_written,
        "damaged": 0,
    }
    assert json.loads(out) == result
    assert "of them there already" in err


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--shard-size", "huge"], "--shard-size huge: expected a size such as 250MB"),
        (["--shard-size", "0GB"], "--shard-size is 0"),
    ],
)
def test_the_command_refuses_what_it_cannot_use_in_one_line(tmp_path, cli, more, reason):
    code, _, err = cli("convert", folder_of(tmp_path / "in", 2), "--out", tmp_path / "out", *more)
    assert code == 2
    assert reason in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_errors_come_back_from_processes():
    error = DataError("it is odd", path="a.arrow", record=3)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (str(copy), copy.reason, copy.path, copy.record) == (str(error), "it is odd", "a.arrow", 3)


@needs_data
def test_real_shards_are_the_same_afterwards(tmp_path):
    paths = [DATA / "audioset" / "small_shards", DATA / "yt8m" / "video_level" / "validate0000.tfrecord"]
    for number, path in enumerate(paths):
        convert(Source(path), tmp_path / str(number))
        assert_same(everything(tmp_path / str(number)), everything(path))
