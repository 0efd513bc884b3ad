"""NumPy archives (`.npz`) of anyone's own features, as `np.savez` or `np.savez_compressed` writes them.

    id             (N,)      strings or integers
    labels         (L,)      the classes of the first video, then of the second, ...: integers
    label_offsets  (N+1,)    video i has labels[label_offsets[i]:label_offsets[i+1]]
    label_names    (C,)      optional: what the classes are called
    frame_offsets  (N+1,)    where streams have frames: video i has the rows between its two offsets
    any other      (N, D)    a stream of one vector a video, or
                   (ΣT, D)   a stream of frames

A stream of uint8 is quantised as YouTube-8M's (`tagreel.batch.dequantize`); float16 and float32 are taken as
they are. Files without labels leave out both label arrays.
"""

from __future__ import annotations

import io
import mmap
import struct
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tagreel.batch import Example
from tagreel.errors import DataError

_RESERVED = {"id", "labels", "label_offsets", "label_names", "frame_offsets"}
_STREAM_TYPES = (np.dtype("u1"), np.dtype("<f2"), np.dtype("<f4"))

# numpy parses an array's header with `ast`, whose recursion counter all threads of CPython 3.11 share:
# two headers at once raise "AST constructor recursion depth mismatch" for files that are sound.
_HEADER = threading.Lock()


class NPZ:
    """A `.npz` file: arrays stored uncompressed are mapped into memory, compressed ones are read.

    The arrays' checksums, shapes and offsets are verified on opening; damage is damage of the whole file,
    and the error says how many videos are lost where `count` can tell.
    `check_crc` False leaves out the checksums of the mapped arrays. `label_names` lists what the classes are
    called, or is None. `whole_videos` changes nothing: there are no rated segments in these files.
    """

    format = "npz"

    def __init__(self, path: str | Path, *, check_crc: bool = True, whole_videos: bool = False) -> None:
        self.path = str(path)
        try:
            self._take_in(_load(self.path, check_crc))
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", path=self.path) from None
        except DataError as error:
            count = self.count(path)
            held = "" if count is None else f" ({count:,} {'video' if count == 1 else 'videos'})"
            reason = f"{error.reason}; the whole file{held} cannot be read"
            raise DataError(reason, path=self.path) from None

    def _take_in(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._ids = self._take(arrays, "id")
        if self._ids.ndim != 1 or self._ids.dtype.kind not in "USiu":
            raise self._error("id", self._ids, "(N,) strings or integers")
        self._labels, self._label_offsets = self._ragged_labels(arrays)
        self._frame_offsets = self._offsets(arrays, "frame_offsets") if "frame_offsets" in arrays else None
        self._streams = {name: array for name, array in arrays.items() if name not in _RESERVED}
        if not self._streams:
            raise DataError(f"it has no stream; it has: {', '.join(arrays)}", path=self.path)
        self._framed = {name for name, array in self._streams.items() if self._is_framed(name, array)}
        names = arrays.get("label_names")
        if names is not None and (names.ndim != 1 or names.dtype.kind not in "US"):
            raise self._error("label_names", names, "(C,) strings")
        self.label_names = None if names is None else [self._text("label_names", name) for name in names]

    @classmethod
    def recognises(cls, path: str | Path) -> bool:
        """Whether the file is a zip archive with this format's arrays, or is named `.npz` and cannot tell."""
        with open(path, "rb") as file:
            magic = file.read(4)
        named = Path(path).suffix == ".npz"
        if not named and magic != b"PK\x03\x04":
            return False
        try:
            with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
                _check_directory(
                    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), len(archive.namelist())
                )
                names = {name.removesuffix(".npy") for name in archive.namelist()}
        except OSError:
            raise
        except Exception:  # zipfile meets garbage with a dozen kinds of exception
            return named
        if not names:
            return named  # a directory of zeros lists nothing, and zipfile is content with that
        return not names.isdisjoint(_RESERVED if named else {"id"})

    @classmethod
    def count(cls, path: str | Path) -> int | None:
        """How many videos a damaged file should hold by its ids; None where these are damaged as well."""
        try:
            with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                ids = _read_member(archive, archive.getinfo("id.npy"), mapped, check_crc=True)
        except Exception:  # zipfile, zlib and numpy meet garbage with a dozen kinds of exception
            return None
        return len(ids) or None if ids.ndim == 1 else None

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Example:
        labels = self._labels[self._label_offsets[index] : self._label_offsets[index + 1]].astype(np.int64)
        if (labels[1:] <= labels[:-1]).any():
            labels = np.unique(labels)
        if len(labels) and labels[0] < 0:
            raise DataError(f"label {labels[0]} is negative", path=self.path, record=index)
        return Example(
            id=self._text("id", self._ids[index], record=index),
            labels=labels,
            streams={name: array[self._rows(name, index)] for name, array in self._streams.items()},
        )

    def _rows(self, name: str, index: int) -> slice:
        if self._frame_offsets is None or name not in self._framed:
            return slice(index, index + 1)
        return slice(self._frame_offsets[index], self._frame_offsets[index + 1])

    def _text(self, name: str, value: Any, *, record: int | None = None) -> str:
        if not isinstance(value, bytes):
            return str(value)
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise DataError(f"{name!r} is not UTF-8: {value[:40]!r}", path=self.path, record=record) from None

    def _ragged_labels(self, arrays: dict[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
        if "labels" not in arrays and "label_offsets" not in arrays:
            return np.empty(0, np.int64), np.zeros(len(self._ids) + 1, np.int64)
        labels = self._take(arrays, "labels")
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise self._error("labels", labels, "(L,) integers")
        offsets = self._offsets(arrays, "label_offsets")
        if offsets[-1] != len(labels):
            raise self._error("labels", labels, f"({offsets[-1]:,},), where label_offsets end")
        return labels, offsets

    def _offsets(self, arrays: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
        offsets, count = self._take(arrays, name), len(self._ids)
        if offsets.shape != (count + 1,) or offsets.dtype.kind not in "iu":
            raise self._error(name, offsets, f"({count + 1:,},) integers, one more than ids")
        offsets = offsets.astype(np.int64)
        if offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise DataError(f"{name!r} should begin with 0 and never fall", path=self.path)
        return offsets

    def _is_framed(self, name: str, array: NDArray[Any]) -> bool:
        """Whether a stream has frames, (ΣT, D); checks its shape and type."""
        frames = -1 if self._frame_offsets is None else int(self._frame_offsets[-1])
        rows = {len(self._ids): "one row a video", frames: "one row a frame"}
        rows.pop(-1, None)
        if array.ndim != 2 or len(array) not in rows or array.shape[1] == 0:
            raise self._error(name, array, " or ".join(f"({n:,}, D), {what}" for n, what in rows.items()))
        if array.dtype not in _STREAM_TYPES:
            raise self._error(name, array, "uint8, float16 or float32")
        return len(array) == frames

    def _take(self, arrays: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
        if name not in arrays:
            raise DataError(f"it has no array {name!r}; it has: {', '.join(arrays)}", path=self.path)
        return arrays[name]

    def _error(self, name: str, array: NDArray[Any], expected: str) -> DataError:
        shape = "(" + ", ".join(f"{n:,}" for n in array.shape) + ("," if array.ndim == 1 else "") + ")"
        return DataError(f"{name!r} is {shape} {array.dtype}; it should be {expected}", path=self.path)


def _load(path: str, check_crc: bool) -> dict[str, NDArray[Any]]:
    """Every array of the archive by name, views of the mapped file where they are stored uncompressed."""
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            members = archive.infolist()
            _check_directory(mapped, len(members))
            return {
                member.filename.removesuffix(".npy"): _read_member(archive, member, mapped, check_crc)
                for member in members
            }
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and numpy meet garbage with a dozen kinds of exception
        raise DataError(f"it is damaged: {str(error) or type(error).__name__}", path=path) from None


def _check_directory(mapped: mmap.mmap, count: int) -> None:
    """One damaged length in the directory can hide the entry after it, and zipfile would not say so."""
    at = mapped.rfind(b"PK\x05\x06")
    stated = struct.unpack_from("<H", mapped, at + 10)[0]
    if stated not in (count, 0xFFFF):
        raise ValueError(f"its directory lists {count} arrays and says {stated}")


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, mapped: mmap.mmap, check_crc: bool
) -> NDArray[Any]:
    with archive.open(member) as stream:  # compares the directory with the member's own header
        if member.compress_type != zipfile.ZIP_STORED:
            return _parse_npy(memoryview(stream.read()), member.filename)
    name_length, extra_length = struct.unpack_from("<HH", mapped, member.header_offset + 26)
    start = member.header_offset + 30 + name_length + extra_length
    content = memoryview(mapped)[start : start + member.file_size]
    if member.compress_size != member.file_size or len(content) != member.file_size:
        raise ValueError(f"{member.filename!r} is cut short")
    if check_crc and zlib.crc32(content) != member.CRC:
        raise ValueError(f"the checksum of {member.filename!r} is wrong")
    return _parse_npy(content, member.filename)


def _parse_npy(content: memoryview, name: str) -> NDArray[Any]:
    """The array in an `.npy` file's bytes, a view; no pickles."""
    head = io.BytesIO(content[: 1 << 16])
    version = npy.read_magic(head)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    with _HEADER:
        shape, fortran, dtype = read_header(head)
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds Python objects; only numbers and strings are read")
    values = content[head.tell() :]
    count = 1
    for length in shape:
        count *= length
    if count * dtype.itemsize != len(values):
        raise ValueError(
            f"{name!r} has {len(values):,} bytes of values; its shape {shape} needs another number"
        )
    if len(values) == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(values, dtype).reshape(shape, order="F" if fortran else "C")
