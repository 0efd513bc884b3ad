from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyarrow import ipc

from tagreel import shards
from tagreel.batch import Example
from tagreel.errors import DataError
from tagreel.provenance import Provenance
from tagreel.readers.arrow import Arrow
from tagreel.shards import made_of, verify, write
from tests.conftest import video


@pytest.fixture
def small_batches(monkeypatch) -> None:
    monkeypatch.setattr(shards, "BATCH_VIDEOS", 4)


def videos(count: int, *, first: int = 0) -> list[Example]:
    rng = np.random.default_rng(first)
    return [
        video(
            f"v{number}",
            labels=range(number % 3),
            rgb=rng.integers(0, 256, (number % 5 + 1, 4), np.uint8),
            clip=rng.normal(size=(number % 5 + 1, 3)).astype(np.float16),
        )
        for number in range(first, first + count)
    ]


def test_what_is_written_is_read_to_the_bit(tmp_path, small_batches):
    examples = videos(11)
    examples[3].streams["clip"][0, 0] = np.nan
    examples[5].rated = np.array([1, 7])
    examples[6].rated = np.array([], np.int64)
    assert write(tmp_path / "a.arrow", examples) == 11
    read = Arrow(tmp_path / "a.arrow")
    for found, expected in zip(read, examples, strict=True):
        assert (found.id, found.labels.tolist()) == (expected.id, expected.labels.tolist())
        assert (found.rated is None) == (expected.rated is None)
        assert list(found.streams) == ["rgb", "clip"]
        for name, frames in expected.streams.items():
            assert found.streams[name].dtype == frames.dtype
            assert found.streams[name].tobytes() == frames.tobytes()
    assert read[5].rated.tolist() == [1, 7]
    assert read[6].rated.tolist() == []
    verify(tmp_path / "a.arrow", examples)


def test_anyone_with_arrow_reads_it(tmp_path):
    examples = videos(3)
    write(tmp_path / "a.arrow", examples, label_names=["x", "ü"], inputs={"n": 1})
    table = ipc.open_file(tmp_path / "a.arrow").read_all()
    assert {field.name: str(field.type) for field in table.schema} == {
        "id": "string",
        "labels": "list<item: int32>",
        "rgb": "list<item: fixed_size_list<item: uint8>[4]>",
        "clip": "list<item: fixed_size_list<item: halffloat>[3]>",
        "crc32c": "uint32",
    }
    assert table["id"].to_pylist() == ["v0", "v1", "v2"]
    assert table["rgb"].to_pylist() == [example.streams["rgb"].tolist() for example in examples]
    about = json.loads(table.schema.metadata[b"tagreel"])
    assert about == {"format": 1, "inputs": {"n": 1}, "label_names": ["x", "ü"], "provenance": None}


def test_the_same_examples_give_the_same_bytes(tmp_path, small_batches):
    made_by = [Provenance({"rgb": {"a": 1, "b": 2}}), Provenance({"rgb": {"b": 2, "a": 1}})]
    for name, provenance in zip("ab", made_by, strict=True):
        write(tmp_path / name, videos(9), provenance=provenance)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_made_the_features_travels_with_its_files(tmp_path):
    made_by = Provenance(
        {"rgb": {"kind": "onnx", "projection": {"sha256": "ab12"}}}, {"ab12": bytes(range(256))}
    )
    write(tmp_path / "a.arrow", videos(1), provenance=made_by)
    assert Arrow(tmp_path / "a.arrow").provenance == made_by


def test_a_batch_ends_at_256_videos_or_64_mib(tmp_path, monkeypatch):
    write(tmp_path / "a.arrow", videos(600))
    assert sizes(tmp_path / "a.arrow") == [256, 256, 88, 0]
    monkeypatch.setattr(shards, "BATCH_BYTES", 1000)
    wide = [video(str(number), rgb=np.zeros((3, 100), np.uint8)) for number in range(9)]
    write(tmp_path / "b.arrow", wide)
    assert sizes(tmp_path / "b.arrow") == [4, 4, 1, 0]


def sizes(path: Path) -> list[int]:
    file = ipc.open_file(path)
    return [file.get_batch(number).num_rows for number in range(file.num_record_batches)]


def test_no_more_than_a_batch_is_held(tmp_path, small_batches):
    given: list[weakref.ref[np.ndarray]] = []

    def watched() -> Iterator[Example]:
        for number in range(40):
            frames = np.zeros((2, 4), np.uint8)
            given.append(weakref.ref(frames))
            yield video(str(number), rgb=frames)
            del frames
            assert sum(one() is not None for one in given) <= 2 * 4

    assert write(tmp_path / "a.arrow", watched()) == 40


def test_a_stream_that_comes_late_is_null_before(tmp_path, small_batches):
    late = videos(3, first=20)
    late[1].rated = np.array([2])
    early = [video(f"v{n}", clip=example.streams["clip"]) for n, example in enumerate(videos(10))]
    without = video("none", clip=np.empty((0, 0), np.float16))
    write(tmp_path / "a.arrow", [without, *early, *late])
    verify(tmp_path / "a.arrow", [without, *early, *late])
    table = ipc.open_file(tmp_path / "a.arrow").read_all()
    assert table.column_names == ["id", "labels", "rated", "clip", "rgb", "crc32c"]
    assert table["rgb"].null_count == 11
    assert table["clip"].null_count == 1
    assert table["rated"].null_count == 13
    assert [path.name for path in tmp_path.iterdir()] == ["a.arrow"]


def test_a_file_without_videos_is_whole(tmp_path):
    assert write(tmp_path / "a.arrow", [], inputs="nothing") == 0
    assert made_of(tmp_path / "a.arrow") == ("nothing", 0)
    verify(tmp_path / "a.arrow", [])


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (
            {"rgb": np.zeros((2, 5), np.uint8)},
            "'rgb' is uint8, 5 wide, and uint8, 4 wide in the videos before it",
        ),
        (
            {"rgb": np.zeros((2, 4), np.float32)},
            "'rgb' is float32, 4 wide, and uint8, 4 wide in the videos be",
        ),
        (
            {"new": np.zeros((2, 4))},
            r"'new' is \(2, 4\) float64; expected frames in uint8, float16 or float32",
        ),
        ({"new": np.zeros(4, np.uint8)}, r"'new' is \(4,\) uint8; expected frames"),
        ({"id": np.zeros((2, 4), np.uint8)}, r"'id' is \(2, 4\) uint8; expected frames"),
    ],
)
def test_streams_that_do_not_fit_are_named_and_nothing_is_left(tmp_path, small_batches, odd, reason):
    with pytest.raises(DataError, match=rf"a\.arrow: video 'odd': {reason}"):
        write(tmp_path / "a.arrow", [*videos(9), video("odd", **odd)])
    assert not list(tmp_path.iterdir())


def test_a_class_that_does_not_fit_into_the_file_is_named(tmp_path):
    with pytest.raises(DataError, match="video 'odd': class 2,147,483,648; expected at most 2,147,483,647"):
        write(tmp_path / "a.arrow", [video("odd", labels=[1, 2**31])])


def test_nothing_is_left_where_the_examples_end_in_an_error(tmp_path, small_batches):
    def broken() -> Iterator[Example]:
        yield from videos(9)
        raise KeyboardInterrupt

    (tmp_path / "a.arrow").write_text("as it was")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.arrow", broken())
    assert [path.read_text() for path in tmp_path.iterdir()] == ["as it was"]


@pytest.mark.parametrize(
    ("change", "record"),
    [
        (lambda found: found.pop(), None),
        (lambda found: found.append(video("more")), 6),
        (lambda found: found.insert(2, found.pop(3)), 2),
        (lambda found: setattr(found[4], "labels", np.array([5])), 4),
        (lambda found: setattr(found[4], "rated", np.array([5])), 4),
        (lambda found: found[1].streams.pop("clip"), 1),
        (lambda found: found[1].streams.update(clip=found[1].streams["clip"].view(np.uint16)), 1),
        (lambda found: found[1].streams["rgb"].__setitem__((0, 0), 7), 1),
    ],
)
def test_verify_notices_any_difference(tmp_path, change, record):
    write(tmp_path / "a.arrow", videos(6))
    expected = videos(6)
    change(expected)
    with pytest.raises(DataError) as caught:
        verify(tmp_path / "a.arrow", expected)
    assert caught.value.record == record
