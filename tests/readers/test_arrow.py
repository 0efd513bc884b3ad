from __future__ import annotations

import json
import struct
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc

from tagreel import shards
from tagreel.batch import Example
from tagreel.errors import DataError
from tagreel.loader import Loader
from tagreel.provenance import Provenance
from tagreel.readers.arrow import Arrow, checksum
from tagreel.source import Source

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 8), np.uint8)
CLIP = RNG.normal(size=(3, 5)).astype(np.float32)
LENGTHS = [slice(0, 2), slice(2, 2), slice(2, 6)]
FRAMES = pa.list_(pa.list_(pa.uint8(), 8))
COLUMNS = {
    "id": pa.array(["ab", "cd", "éf"]),
    "labels": pa.array([[4, 1, 4], [], [0]], pa.list_(pa.int32())),
    "rgb": pa.array([RGB[rows].tolist() for rows in LENGTHS], FRAMES),
}


def opened(folder, *, options=None, metadata=None, check_crc=True, **changes) -> Arrow:
    """The file that anyone could write with pyarrow."""
    columns = {name: column for name, column in {**COLUMNS, **changes}.items() if column is not None}
    table = pa.table(columns, metadata=metadata)
    with ipc.new_file(folder / "a.arrow", table.schema, options=options) as file:
        file.write_table(table, max_chunksize=2)
    assert Arrow.recognises(folder / "a.arrow") == ("id" in columns)
    return Arrow(folder / "a.arrow", check_crc=check_crc)


def examples() -> list[Example]:
    """Ten videos of three streams, some without, some of which were rated."""
    rng = np.random.default_rng(1)
    made = []
    for number in range(10):
        frames = number % 5
        streams = {"rgb": rng.integers(0, 256, (frames, 8), np.uint8)}
        if number % 3:
            streams["audio"] = rng.normal(size=(frames, 3)).astype(np.float16)
        if number > 4:
            streams["clip"] = rng.normal(size=(1, 2)).astype(np.float32)
        rated = np.arange(4) if number == 7 else None
        made.append(Example(f"video{number}", np.arange(number % 4), streams, rated))
    return made


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BATCH_VIDEOS", 4)
    made_by = Provenance({"rgb": {"kind": "tflite", "weights": "ab"}}, {"beef": b"numbers"})
    shards.write(
        tmp_path / "a.arrow", examples(), label_names=["x", "y", "ü"], provenance=made_by, inputs=[1]
    )
    return tmp_path / "a.arrow"


def read(shard: Arrow) -> list[Example | DataError]:
    return [_one(shard, index) for index in range(len(shard))]


def _one(shard: Arrow, index: int) -> Example | DataError:
    try:
        return shard[index]
    except DataError as caught:
        error = caught
    assert (error.path, error.record) == (shard.path, index)
    assert "\n" not in str(error)
    return error


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"id": COLUMNS["id"].cast(pa.large_string())},
        {"id": COLUMNS["id"].cast(pa.string_view())},
        {"labels": COLUMNS["labels"].cast(pa.large_list(pa.int64()))},
        {"labels": COLUMNS["labels"].cast(pa.list_(pa.uint16()))},
        {"rgb": COLUMNS["rgb"].cast(pa.large_list(pa.list_(pa.uint8(), 8)))},
        {
            "title": pa.array(["a", "b", None]),
            "tags": pa.array([["x"], [], None]),
            "seconds": pa.array([1, 2, 3]),
        },
        {"options": ipc.IpcWriteOptions(compression="lz4")},
    ],
    ids=["plain", "large ids", "id views", "large labels", "short labels", "large frames", "more", "lz4"],
)
def test_what_anyone_wrote_in_these_columns_is_read(tmp_path, changes):
    shard = opened(tmp_path, **changes)
    assert [example.id for example in shard] == ["ab", "cd", "éf"]
    assert [example.labels.tolist() for example in shard] == [[1, 4], [], [0]]
    assert {example.labels.dtype for example in shard} == {np.dtype(np.int64)}
    assert [example.rated for example in shard] == [None] * 3
    for example, rows in zip(shard, LENGTHS, strict=True):
        assert list(example.streams) == ["rgb"]
        np.testing.assert_array_equal(example.streams["rgb"], RGB[rows])
    assert (shard.label_names, shard.provenance, shard.inputs) == (None, None, None)


def test_ids_may_be_numbers_and_labels_absent(tmp_path):
    shard = opened(tmp_path, id=pa.array([7, 8, 9]), labels=None)
    assert [(example.id, example.labels.tolist()) for example in shard] == [("7", []), ("8", []), ("9", [])]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8])
def test_a_vector_a_video_is_a_stream_of_one_frame(tmp_path, dtype):
    vectors = (CLIP * 100).astype(dtype)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 5)
    for index, example in enumerate(opened(tmp_path, clip=column)):
        assert example.streams["clip"].dtype == dtype
        np.testing.assert_array_equal(example.streams["clip"], vectors[index : index + 1])


def test_nulls_are_streams_without_frames_no_labels_and_all_classes(tmp_path):
    shard = opened(
        tmp_path,
        labels=pa.array([None, [2], [1]], pa.list_(pa.int32())),
        rated=pa.array([[1, 2], None, []], pa.list_(pa.int32())),
        rgb=pa.array([None, RGB[:2].tolist(), None], FRAMES),
        clip=pa.array([CLIP[0].tolist(), None, None], pa.list_(pa.float32(), 5)),
    )
    assert [example.labels.tolist() for example in shard] == [[], [2], [1]]
    assert [example.rated is None for example in shard] == [False, True, False]
    assert shard[0].rated.tolist() == [1, 2]
    assert [example.streams["rgb"].shape for example in shard] == [(0, 8), (2, 8), (0, 8)]
    assert [example.streams["clip"].shape for example in shard] == [(1, 5), (0, 5), (0, 5)]


def test_frames_are_views_of_the_mapped_file(path):
    base = Arrow(path)[1].streams["rgb"]
    while isinstance(base.base, np.ndarray):
        base = base.base
    mapped = base.base.obj if isinstance(base.base, memoryview) else base.base
    while isinstance(mapped, pa.Buffer) and mapped.parent is not None:
        mapped = mapped.parent
    assert mapped.size == path.stat().st_size


def test_labels_and_names_of_the_shard_are_those_written(path):
    shard = Arrow(path)
    assert shard.label_names == ["x", "y", "ü"]
    assert shard.provenance == Provenance({"rgb": {"kind": "tflite", "weights": "ab"}}, {"beef": b"numbers"})
    assert shard.inputs == [1]
    assert Source(path).label_names == ["x", "y", "ü"]
    assert Source(path).provenance == shard.provenance


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, "no column 'id'; it has: labels, rgb"),
        ({"id": pa.array([1.0, 2.0, 3.0])}, "'id' is double; it should be string"),
        ({"labels": pa.array([1, 2, 3])}, r"'labels' is int64; it should be list<int32>"),
        ({"labels": pa.array([["a"], [], []])}, r"'labels' is list<item: string>; it should be list<int32>"),
        ({"rgb": None}, "no stream; it has: id, labels"),
        (
            {"rgb": pa.array([[0.5], [], []])},
            r"'rgb' is list<item: double>; it should be list<fixed_size_list<T>",
        ),
        ({"rgb": pa.array([[[0.5]], [], []])}, r"'rgb' is list<item: list<item: double>>; it should be"),
        (
            {"clip": pa.array([[0.5], [1.5], [2.5]], pa.list_(pa.float64(), 1))},
            "and T uint8, float16 or float32",
        ),
        ({"crc32c": pa.array([1, 2, 3])}, "'crc32c' is int64; it should be uint32, or left out"),
        ({"metadata": {"tagreel": "{"}}, "its metadata 'tagreel' is not JSON"),
        ({"metadata": {"tagreel": "[]"}}, "its metadata 'tagreel' is no JSON object"),
        ({"metadata": {"tagreel": '{"label_names": [1]}'}}, "'label_names' that are no list of strings"),
        ({"metadata": {"tagreel": '{"provenance": 1}'}}, "a 'provenance' that is no object"),
        ({"metadata": {"tagreel": '{"format": 2}'}}, "is written in format 2; this tagreel reads format 1"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path, changes, reason):
    with pytest.raises(DataError, match=reason) as caught:
        opened(tmp_path, **changes)
    assert caught.value.path.endswith("a.arrow")
    assert caught.value.record is None


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([*COLUMNS.values(), COLUMNS["rgb"]], names=[*COLUMNS, "rgb"])
    with ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    with pytest.raises(DataError, match="two of its columns have the same name"):
        Arrow(tmp_path / "a.arrow")


@pytest.mark.parametrize(
    ("changes", "record", "reason"),
    [
        ({"id": pa.array(["ab", None, "ef"])}, 1, "its 'id' is null"),
        ({"labels": pa.array([[1], [-3], []], pa.list_(pa.int32()))}, 1, "labels: class -3 is negative"),
        ({"labels": pa.array([[1], [], [None]], pa.list_(pa.int32()))}, 2, "'labels' holds nulls"),
        ({"rgb": pa.array([[], [], [None]], FRAMES)}, 2, "'rgb' holds nulls"),
        ({"rgb": pa.array([[], [], [[0, 1, 2, 3, 4, 5, 6, None]]], FRAMES)}, 2, "'rgb' holds nulls"),
        ({"audio": COLUMNS["rgb"].take(pa.array([1, 2, 0]))}, 2, "'rgb' has 4, 'audio' has 2"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, changes, record, reason):
    shard = opened(tmp_path, **changes)
    with pytest.raises(DataError, match=reason) as caught:
        shard[record]
    assert caught.value.record == record
    assert shard[0].id == "ab"


def test_other_files_are_not_recognised(tmp_path):
    with ipc.new_file(tmp_path / "other.arrow", pa.schema({"x": pa.int64()})):
        pass
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty.txt").write_bytes(b"")
    assert not any(Arrow.recognises(path) for path in tmp_path.iterdir())
    (tmp_path / "other.arrow").rename(tmp_path / "b.feather")
    assert not Arrow.recognises(tmp_path / "b.feather")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (b"ARROW1\0\0 and no more", "it is damaged: "),
        (b"\xff\xff\xff\xff" * 9, r"it is an Arrow stream, as .*; write it as an Arrow file"),
        (b"ARR", "it is damaged: "),
    ],
)
def test_a_file_named_arrow_that_is_none_is_damaged(tmp_path, content, reason):
    (tmp_path / "a.arrow").write_bytes(content)
    assert Arrow.recognises(tmp_path / "a.arrow")
    with pytest.raises(DataError, match=reason + ".*; the whole file cannot be read"):
        Arrow(tmp_path / "a.arrow")
    assert Arrow.count(tmp_path / "a.arrow") is None


def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path):
    with pytest.raises(DataError, match=r"a\.arrow: cannot be read: No such file or directory$"):
        Arrow(tmp_path / "a.arrow")


def naive_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_checksum_is_the_crc_of_a_header_and_the_bytes(path):
    assert naive_crc32c(b"123456789") == 0xE3069283
    frames = np.array([[1.5, -2], [0, 3]], np.float32)
    columns = [
        ("id string", "é".encode()),
        ("labels int32", np.array([3, 7], np.int32)),
        ("clip float32[2]", frames),
    ]
    text = b"id string 2\nlabels int32 2\nclip float32[2] 2\n" + "é".encode()
    assert checksum(columns) == naive_crc32c(text + b"\3\0\0\0\7\0\0\0" + frames.tobytes())
    table = ipc.open_file(path).read_all()
    assert table["crc32c"][3].as_py() == naive_crc32c(
        b"id string 6\nlabels int32 3\nrgb uint8[8] 3\nvideo3"
        + np.arange(3, dtype="<i4").tobytes()
        + examples()[3].streams["rgb"].tobytes()
    )


def test_a_damaged_row_is_named_and_the_others_are_read(path):
    content = bytearray(path.read_bytes())
    content[content.index(examples()[4].streams["rgb"].tobytes()) + 9] ^= 1
    path.write_bytes(content)
    found = read(Arrow(path))
    assert [isinstance(example, DataError) for example in found] == [number == 4 for number in range(10)]
    assert str(found[4]).endswith("record 4: the checksum of its 62 bytes is wrong")
    assert not any(isinstance(example, DataError) for example in read(Arrow(path, check_crc=False)))


def test_a_damaged_batch_loses_as_many_rows_as_it_had(path):
    content = bytearray(path.read_bytes())
    at = content.index(b"video4video5") - 400  # the description of the second batch lies before its values
    content[at : at + 300] = bytes(300)
    path.write_bytes(content)
    found = read(Arrow(path))
    assert [isinstance(example, DataError) for example in found] == [4 <= number < 8 for number in range(10)]
    assert "record 5: its record batch is damaged: " in str(found[5])


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([2, 3], "record 2: its record batch is damaged: it has 1 rows of 3"),
        ([2, 1, 4], r"it lists 2 record batches and says 3; the whole file \(7 videos\) cannot be read"),
    ],
)
def test_rows_that_the_closing_batch_misses_are_lost(tmp_path, counts, reason):
    table = pa.table(COLUMNS)
    with ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=2)
        empty = pa.record_batch([pa.nulls(0, field.type) for field in table.schema], schema=table.schema)
        file.write_batch(empty, custom_metadata={"tagreel": json.dumps(counts)})
    source = Source(tmp_path / "a.arrow")
    assert len(source) == sum(counts)
    with pytest.raises(DataError, match=reason):
        Arrow(tmp_path / "a.arrow")[2]


def test_a_footer_that_forgets_a_batch_is_damage(tmp_path):
    opened(tmp_path)
    content = bytearray((tmp_path / "a.arrow").read_bytes())
    footer = len(content) - 10 - int.from_bytes(content[-10:-6], "little")
    listed = content.index(
        struct.pack("<i", 2), footer
    )  # how many record batches, and where the first one is
    while content[listed + 4 : listed + 12] not in [struct.pack("<q", at) for at in range(8, 4000, 8)]:
        listed = content.index(struct.pack("<i", 2), listed + 1)
    content[listed] = 1
    (tmp_path / "a.arrow").write_bytes(content)
    assert ipc.open_file(tmp_path / "a.arrow").num_record_batches == 1
    with pytest.raises(DataError, match="it lists 1 record batches and holds others"):
        Arrow(tmp_path / "a.arrow")


def test_a_lost_end_tells_how_many_videos_there_were_if_it_can(path):
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    assert Arrow.count(path) == 10
    with pytest.raises(DataError, match=r"it is damaged: .*; the whole file \(10 videos\) cannot be read$"):
        Arrow(path)
    assert Source(path).counts == [10]
    path.write_bytes(content[: len(content) // 2])
    assert Arrow.count(path) is None
    with pytest.raises(DataError, match=r"it is damaged: .*; the whole file cannot be read$"):
        Arrow(path)


def test_a_table_that_was_filtered_and_written_again_is_read(path, tmp_path):
    table = ipc.open_file(path).read_all()
    some = table.filter(pa.array([number % 2 == 0 for number in range(10)]))
    with ipc.new_file(tmp_path / "some.arrow", some.schema) as file:
        file.write_table(some)
    assert [example.id for example in Arrow(tmp_path / "some.arrow")] == [
        f"video{n}" for n in range(0, 10, 2)
    ]
    assert Arrow(tmp_path / "some.arrow").label_names == ["x", "y", "ü"]


def written() -> bytes:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(shards, "BATCH_VIDEOS", 4)
        path = Path(folder, "a.arrow")
        shards.write(path, examples(), label_names=["x", "y"], inputs={"a": 1})
        return path.read_bytes()


WRITTEN = written()


@settings(max_examples=600)
@given(
    st.sampled_from(["flip", "cut", "zero", "gap"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 300),
    st.booleans(),
)
def test_damage_anywhere_is_told_or_changes_nothing(tmp_path_factory, kind, where, size, check_crc):
    content = WRITTEN
    at = int(where * len(content))
    if kind == "flip":
        content = content[:at] + bytes([content[at] ^ 1 << size % 8]) + content[at + 1 :]
    elif kind == "zero":
        content = content[:at] + bytes(len(content[at : at + size])) + content[at + size :]
    elif kind == "gap":
        content = content[:at] + content[at + size :]
    else:
        content = content[:at]
    path = tmp_path_factory.mktemp("damage") / "a.arrow"
    path.write_bytes(content)
    assert Arrow.recognises(path)
    try:
        shard = Arrow(path, check_crc=check_crc)
    except DataError:
        assert Arrow.count(path) in (10, None)  # a wrong number would be worse than none
        return
    found = read(shard)
    if check_crc:
        sound = {example.id: example for example in examples()}
        intact = [example for example in found if isinstance(example, Example)]
        assert all(shards._same(example, sound[example.id]) for example in intact)
        if len(intact) == len(found):
            assert [example.id for example in intact] == list(sound)
            assert (shard.label_names, shard.inputs) == (["x", "y"], {"a": 1})


def test_a_front_that_another_writer_left_unreadable_does_no_harm(tmp_path):
    opened(tmp_path)
    content = bytearray((tmp_path / "a.arrow").read_bytes())
    content[8:16] = bytes(8)
    (tmp_path / "a.arrow").write_bytes(content)
    assert Arrow.recognises(tmp_path / "a.arrow")
    assert [example.id for example in Arrow(tmp_path / "a.arrow")] == ["ab", "cd", "éf"]


@pytest.mark.parametrize("at", [0, 1])
def test_a_name_of_a_class_that_changed_is_damage(path, at):
    content = bytearray(path.read_bytes())
    places = [content.index('"ü"'.encode()), content.rindex('"ü"'.encode())]
    content[places[at] + 1 : places[at] + 3] = "ö".encode()
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"its two schemas, at its front and at its end, differ; the whole file"
    ):
        Arrow(path)


@pytest.mark.parametrize("seed", range(6))
def test_commands_name_the_damage_and_use_the_rest(tmp_path, seed, run, cli, test_data):
    from tagreel.convert import convert

    convert(test_data, tmp_path / "data")
    (path,) = (tmp_path / "data").iterdir()
    content = bytearray(path.read_bytes())
    for at in np.random.default_rng(seed).integers(4000, len(content) - 12000, 3):
        content[at] ^= 16
    path.write_bytes(content)
    code, out, _ = cli("check", tmp_path / "data", "--json")
    assert code == 2
    found = json.loads(out)
    assert 1 <= found["damaged"] <= 3
    assert found["examples"] == 50 - found["damaged"]
    arguments = [
        "predict",
        run,
        "--data",
        tmp_path / "data",
        "--out",
        tmp_path / "tags.jsonl",
        "--device",
        "cpu",
    ]
    code, _, err = cli(*arguments)
    assert code == 2
    assert f"{path}, record " in err
    assert len(err.splitlines()) == 1
    assert cli(*arguments, "--skip-damaged", 3)[0] == 0
    assert len((tmp_path / "tags.jsonl").read_text().splitlines()) == found["examples"]


def test_many_threads_read_one_shard(path):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        shard = Arrow(path)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda number: shard[number % 10].id, range(2000)))
    finally:
        sys.setswitchinterval(interval)
    assert found == [f"video{number % 10}" for number in range(2000)]


def test_batches_are_those_of_the_same_videos_in_another_format(tmp_path, shards):
    from tagreel.convert import convert

    convert(Source(f"{shards}/train*"), tmp_path / "out")
    batches = []
    for folder in (f"{shards}/train*", tmp_path / "out"):
        loader = Loader(Source(folder), features={"rgb": 12, "audio": 6}, classes=120, batch_size=16)
        batches.append([batch for _, batch in loader.epoch()])
    for one, other in zip(*batches, strict=True):
        assert one.ids == other.ids
        assert all((one.streams[name] == other.streams[name]).all() for name in ("rgb", "audio"))
        assert (one.label_ids == other.label_ids).all()
