from __future__ import annotations

import gc
import io
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagreel.errors import DataError
from tagreel.readers.npz import NPZ

RNG = np.random.default_rng(0)
DATA = Path(__file__).parents[2].parent / "shared" / "data" / "yt8m" / "video_level"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the YouTube-8M archives are not in {DATA}")

ARRAYS = {
    "id": np.array(["ab", "cd", "ef"]),
    "labels": np.array([4, 1, 4, 0], np.int32),
    "label_offsets": np.array([0, 3, 3, 4]),
    "frame_offsets": np.array([0, 2, 2, 6]),
    "rgb": RNG.integers(0, 256, (6, 8), np.uint8),
    "audio": RNG.normal(size=(6, 2)).astype(np.float16),
    "clip": RNG.normal(size=(3, 5)).astype(np.float32),
}
SAVERS = [np.savez, np.savez_compressed]


def opened(folder: Path, save=np.savez, **changes) -> NPZ:
    arrays = {name: array for name, array in {**ARRAYS, **changes}.items() if array is not None}
    save(folder / "a.npz", **arrays)
    assert NPZ.recognises(folder / "a.npz")
    return NPZ(folder / "a.npz")


@pytest.mark.parametrize("save", SAVERS)
def test_videos_are_read(tmp_path, save):
    read = opened(tmp_path, save)
    assert len(read) == 3
    assert [example.id for example in read] == ["ab", "cd", "ef"]
    assert [example.labels.tolist() for example in read] == [[1, 4], [], [0]]
    assert read.label_names is None
    for index, rows in enumerate([slice(0, 2), slice(2, 2), slice(2, 6)]):
        np.testing.assert_array_equal(read[index].streams["rgb"], ARRAYS["rgb"][rows])
        np.testing.assert_array_equal(read[index].streams["audio"], ARRAYS["audio"][rows])
        np.testing.assert_array_equal(read[index].streams["clip"], ARRAYS["clip"][index : index + 1])


def test_uncompressed_arrays_are_mapped(tmp_path):
    read = opened(tmp_path)
    base = read[0].streams["rgb"]
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert type(base.base.obj).__name__ == "mmap"


@pytest.mark.parametrize("ids", [np.array([b"ab", b"cd", b"ef"]), np.array(["ab", "cd", "ef"], ">U2")])
def test_ids_may_be_bytes_or_of_either_byte_order(tmp_path, ids):
    assert [example.id for example in opened(tmp_path, id=ids)] == ["ab", "cd", "ef"]


def test_ids_may_be_numbers(tmp_path):
    assert [example.id for example in opened(tmp_path, id=np.array([7, 8, 9]))] == ["7", "8", "9"]


def test_labels_may_be_absent(tmp_path):
    assert opened(tmp_path, labels=None, label_offsets=None)[0].labels.tolist() == []


def test_arrays_in_column_order_are_read(tmp_path):
    read = opened(tmp_path, rgb=np.asfortranarray(ARRAYS["rgb"]))
    np.testing.assert_array_equal(read[2].streams["rgb"], ARRAYS["rgb"][2:6])


def test_class_names_are_kept(tmp_path):
    names = np.array(["car", "cat", "cow", "cup", "dog"])
    assert opened(tmp_path, label_names=names).label_names == names.tolist()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, "no array 'id'; it has: labels"),
        ({"id": ARRAYS["clip"]}, r"'id' is \(3, 5\) float32; it should be \(N,\) strings or integers"),
        ({"labels": None}, "no array 'labels'"),
        ({"labels": np.ones(4)}, r"'labels' is \(4,\) float64; it should be \(L,\) integers"),
        (
            {"labels": np.ones(5, int)},
            r"'labels' is \(5,\) int64; it should be \(4,\), where label_offsets end",
        ),
        ({"label_offsets": np.arange(3)}, r"'label_offsets' is \(3,\) int64; it should be \(4,\) integers"),
        ({"label_offsets": np.array([0, 3, 2, 4])}, "'label_offsets' should begin with 0 and never fall"),
        ({"frame_offsets": np.array([1, 2, 2, 6])}, "'frame_offsets' should begin with 0 and never fall"),
        (
            {"frame_offsets": np.array([0, 2, 2, 7])},
            r"'rgb' is \(6, 8\) uint8; it should be \(3, D\), one row a ",
        ),
        (
            {"frame_offsets": None},
            r"'rgb' is \(6, 8\) uint8; it should be \(3, D\), one row a video; the whole",
        ),
        ({"rgb": np.ones((6, 8))}, r"'rgb' is \(6, 8\) float64; it should be uint8, float16 or float32"),
        ({"rgb": np.ones(6, np.float32)}, r"'rgb' is \(6,\) float32; it should be"),
        ({"rgb": None, "audio": None, "clip": None}, "no stream"),
        ({"label_names": np.arange(5)}, r"'label_names' is \(5,\) int64; it should be \(C,\) strings"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, changes, reason):
    with pytest.raises(DataError, match=reason) as caught:
        opened(tmp_path, **changes)
    assert caught.value.record is None
    assert caught.value.path.endswith("a.npz")


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({"labels": None}, r" \(3 videos\)"),
        ({"id": np.array(["ab"])}, r" \(1 video\)"),
        ({"id": None}, ""),
        ({"id": np.array([])}, ""),
        ({"id": np.array("ab")}, ""),
        ({"id": np.array(["ab", "cd", "ef"], dtype=object)}, ""),
    ],
    ids=["sound", "one", "none", "empty", "no list", "objects"],
)
def test_a_file_that_is_lost_says_how_many_videos_where_its_ids_can_be_read(tmp_path, save, changes, held):
    with pytest.raises(DataError, match=rf"; the whole file{held} cannot be read$"):
        opened(tmp_path, save, **changes)
    count = NPZ.count(tmp_path / "a.npz")
    assert count == (int(held[3]) if held else None)


def test_a_file_that_is_not_there_or_may_not_be_read_is_not_called_damaged(tmp_path):
    with pytest.raises(DataError, match=r"a\.npz: cannot be read: No such file or directory$"):
        NPZ(tmp_path / "a.npz")
    assert NPZ.count(tmp_path / "a.npz") is None


def test_a_negative_label_is_named_with_its_video(tmp_path):
    read = opened(tmp_path, labels=np.array([4, 1, 4, -3]))
    assert read[0].labels.tolist() == [1, 4]
    with pytest.raises(DataError, match="record 2: label -3 is negative"):
        read[2]


def test_python_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS, extra=np.array([{}, []], dtype=object))
    with pytest.raises(DataError, match=r"'extra.npy' holds Python objects"):
        NPZ(tmp_path / "a.npz")


def test_other_archives_are_not_recognised(tmp_path):
    np.savez(tmp_path / "weights.npz", w=np.ones(3))
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    (tmp_path / "notes.txt").write_text("text")
    assert not any(NPZ.recognises(path) for path in tmp_path.iterdir())


def test_a_hidden_directory_entry_is_told(tmp_path):
    # One bit in the first entry's comment length lets it swallow the second entry.
    name = "a" * (64 - 46 - len(".npy"))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for member, array in {"id": ARRAYS["id"], "clip": ARRAYS["clip"], name: ARRAYS["clip"]}.items():
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(f"{member}.npy", content.getvalue())
    content = bytearray((tmp_path / "a.npz").read_bytes())
    assert len(NPZ(tmp_path / "a.npz")[0].streams) == 2
    entry = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4)
    content[entry + 32] ^= 64
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="its directory lists 2 arrays and says 3"):
        NPZ(tmp_path / "a.npz")


@pytest.mark.parametrize("width", [4, 12])
def test_a_directory_of_zeros_is_damage_and_not_another_format(tmp_path, width):
    content = bytearray(saved(np.savez))
    end = content.rindex(b"PK\x05\x06") + 20
    content[end - 4 - width : end - 4] = bytes(width)
    (tmp_path / "a.npz").write_bytes(content)
    assert NPZ.recognises(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a\.npz: it "):
        NPZ(tmp_path / "a.npz")


def saved(save) -> bytes:
    content = io.BytesIO()
    save(content, **ARRAYS)
    return content.getvalue()


@settings(max_examples=400, deadline=2000)
@given(
    st.sampled_from(["flip", "cut", "zero"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 200),
    st.sampled_from([saved(save) for save in SAVERS]),
    st.booleans(),
)
def test_damage_anywhere_is_told_or_changes_nothing(tmp_path_factory, kind, where, size, content, check_crc):
    at = int(where * len(content))
    if kind == "flip":
        content = content[:at] + bytes([content[at] ^ 1 << size % 8]) + content[at + 1 :]
    elif kind == "zero":
        content = content[:at] + bytes(len(content[at : at + size])) + content[at + size :]
    else:
        content = content[:at]
    path = tmp_path_factory.mktemp("damage") / "a.npz"
    path.write_bytes(content)
    assert NPZ.recognises(path)
    try:
        read = NPZ(path, check_crc=check_crc)
        examples = [read[index] for index in range(len(read))]
    except DataError:
        assert NPZ.count(path) in (3, None)  # a wrong number would be worse than none
        return
    if check_crc:
        assert [example.id for example in examples] == ["ab", "cd", "ef"]
        assert [example.labels.tolist() for example in examples] == [[1, 4], [], [0]]
        for index, rows in enumerate([slice(0, 2), slice(2, 2), slice(2, 6)]):
            assert set(examples[index].streams) == {"rgb", "audio", "clip"}
            np.testing.assert_array_equal(examples[index].streams["rgb"], ARRAYS["rgb"][rows])
            np.testing.assert_array_equal(examples[index].streams["audio"], ARRAYS["audio"][rows])


@needs_data
def test_the_derived_archive_is_read():
    read = NPZ(DATA / "yt8m2_validate_dev_u8.npz")
    assert len(read) == 11757
    example = read[11756]
    assert {name: stream.shape for name, stream in example.streams.items()} == {
        "mean_rgb": (1, 1024),
        "mean_audio": (1, 128),
    }
    assert sum(len(read[index].labels) for index in range(len(read))) == 35598


def test_sound_archives_open_from_many_threads_while_garbage_is_collected(tmp_path):
    # A collection inside one thread's header lets the next thread begin its own: CPython 3.11 then raises.
    path = tmp_path / "a.npz"
    np.savez(path, id=np.arange(3), rgb=np.zeros((3, 4), np.float32))
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(lambda phase, info: sum(range(50)))
    gc.set_threshold(20)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: len(NPZ(path)), range(600))) == {3}
    finally:
        gc.callbacks.pop()
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)
