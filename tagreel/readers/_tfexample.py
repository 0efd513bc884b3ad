"""The few protocol buffer messages of TFRecord data sets, read as views and written, without TensorFlow.

    Example          {1: Features}                      SequenceExample {1: Features, 2: FeatureLists}
    Features         {1: map name -> Feature}           FeatureLists    {1: map name -> FeatureList}
    Feature          {1: bytes | 2: floats | 3: ints}   FeatureList     {1: repeated Feature}

(TensorFlow, `core/example/example.proto` and `feature.proto`; a list of values is `{1: repeated value}`,
a map repeated `{1: key, 2: value}`.) Both messages hold what is said of the whole video in field 1, so one
function reads both. The frames of a list are equally wide, so all have the same few header bytes at the same
distance: the first frame is parsed, the others are compared with it at once, and no Python runs per frame.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tagreel.errors import DataError
from tagreel.readers._tfrecord import RecordFile

ID_KEYS = {"id", "video_id"}
Values = list[bytes] | NDArray[Any]
_BYTES, _FLOATS, _INTS = 0x0A, 0x12, 0x1A  # the tags of fields 1, 2 and 3, each a length and its content
_VARINT, _FIXED64, _SIZED, _FIXED32 = 0, 1, 2, 5


class MalformedError(Exception):
    """A payload is not the message it should be; the reader adds the file and the record."""


@dataclass(slots=True)
class Record:
    """One parsed record: the features of the whole video, and the lists of its frames as views (T, D)."""

    context: dict[str, Values]
    lists: dict[str, NDArray[Any]]

    def id(self, *names: str) -> str:
        """The video's id, under the first of the names that the record has."""
        for name in names:
            values = self.context.get(name)
            if isinstance(values, list) and len(values) == 1:
                try:
                    return values[0].decode()
                except UnicodeDecodeError:
                    raise MalformedError(f"its {name!r} is not UTF-8: {values[0][:40]!r}") from None
        wanted = " or ".join(map(repr, names))
        there = ", ".join([*self.context, *self.lists]) or "nothing"
        raise MalformedError(f"it has no {wanted} that is a single string; it has: {there}")

    def labels(self) -> NDArray[np.int64]:
        """The video's classes, ascending, each once; none where the record has no labels."""
        classes = sorted(set(self.integers("labels").tolist()))
        if classes and classes[0] < 0:
            raise MalformedError(f"label {classes[0]} is negative")
        return np.array(classes, np.int64)

    def integers(self, name: str) -> NDArray[np.int64]:
        """A list of integers; empty where the record lacks it."""
        return self._numbers(name, np.dtype(np.int64), "integers")

    def floats(self, name: str) -> NDArray[np.float32]:
        """A list of floats; empty where the record lacks it."""
        return self._numbers(name, np.dtype(np.float32), "floats")

    def streams(self, *, renamed: Mapping[str, str], aside: Collection[str] = ()) -> dict[str, NDArray[Any]]:
        """Every frame list (T, D), and every float vector of the context as one frame (1, D).

        A float on its own, or one named in `aside`, is a remark about the video and no feature.
        """
        streams = {renamed.get(name, name): frames for name, frames in self.lists.items()}
        # A list without frames is a stream that the video lacks; whether it may is the recipe's to say.
        if len(streams) > 1 and len({len(frames) for frames in streams.values() if len(frames)}) > 1:
            counts = ", ".join(f"{name!r} has {len(frames)}" for name, frames in streams.items())
            raise MalformedError(f"its streams differ in their number of frames: {counts}")
        for name, values in self.context.items():
            if _kind(values) == "floats" and len(values) > 1 and name not in aside:
                streams[renamed.get(name, name)] = np.asarray(values)[None]
        if not streams:
            raise MalformedError(f"it has no features; it has: {', '.join(self.context) or 'nothing'}")
        return streams

    def _numbers(self, name: str, dtype: np.dtype[Any], kind: str) -> NDArray[Any]:
        values = self.context.get(name)
        if values is None or len(values) == 0:
            return np.empty(0, dtype)
        if isinstance(values, list) or values.dtype != dtype:
            raise MalformedError(f"{name!r} should hold {kind}, not {_kind(values)}")
        return values


def parse(payload: NDArray[np.uint8], *, lists: bool = True) -> Record:
    """Read an Example or a SequenceExample; `lists` False leaves the frames alone."""
    view = payload.data
    record = Record({}, {})
    for tag, start, stop in _fields(view, 0, len(view)):
        if tag == 0x0A:
            context = bytes(view[start:stop])
            for name, at, end in _entries(context, 0, len(context)):
                values = _feature(context, at, end, name)
                if values is not None:
                    record.context[name] = values
        elif tag == 0x12 and lists:
            for name, at, end in _entries(view, start, stop):
                frames = _frames(view, payload, at, end, name)
                if frames is not None:
                    record.lists[name] = frames
    return record


def first_record(path: str | Path) -> Record | None:
    """The first record of a file that can be read; None where there is none, or no TFRecord file.

    Readers tell from it whose format this is. Damage is stepped over, as far as it takes in a file that is
    named as TFRecord; a sound record that is no Example ends the search.
    """
    for limit in (1 << 22, None) if named_tfrecord(path) else (1 << 22,):
        file = RecordFile(path, limit=limit)
        for check_crc in (True, False):
            for index in range(len(file)):
                try:
                    record = parse(file.payload(index, check_crc=check_crc))
                    # Where the checksum is wrong the keys may be as well.
                    if check_crc or not ID_KEYS.isdisjoint(record.context):
                        return record
                except DataError:
                    continue
                except MalformedError:
                    if check_crc:
                        return None
    return None


def named_tfrecord(path: str | Path) -> bool:
    """Whether a file's name says that it is a TFRecord file; for files so damaged that nothing else does."""
    return Path(path).name.endswith((".tfrecord", ".tfrecord.gz"))


def encode_example(context: Mapping[str, Any]) -> bytes:
    """Write an Example: strings, bytes, integers or floats, one of them or a sequence, by name."""
    return _sized(_BYTES, b"".join(_encode_entry(name, _encode_feature(v)) for name, v in context.items()))


def encode_sequence_example(context: Mapping[str, Any], lists: Mapping[str, NDArray[Any]]) -> bytes:
    """Write a SequenceExample: a context as `encode_example` takes it, and frames (T, D) by name."""
    entries = (_encode_entry(name, _encode_frames(frames)) for name, frames in lists.items())
    return encode_example(context) + _sized(0x12, b"".join(entries))


def _fields(buffer: Any, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The tag of each field of the message in buffer[at:end], and where its content starts and stops."""
    while at < end:
        tag = buffer[at]
        if tag < 0x80:  # nearly always; saves half of the time that a record takes
            at += 1
        else:
            tag, at = _varint(buffer, at, end)
        wire = tag & 7
        if wire == _SIZED:
            if at < end and (size := buffer[at]) < 0x80:
                at += 1
            else:
                size, at = _varint(buffer, at, end)
            stop = at + size
        elif wire == _VARINT:
            stop = _varint(buffer, at, end)[1]
        elif wire == _FIXED32:
            stop = at + 4
        elif wire == _FIXED64:
            stop = at + 8
        else:
            raise MalformedError(
                f"byte {at:,} begins a field of the unknown wire type {wire}; this is no Example"
            )
        if stop > end or tag < 8:
            raise MalformedError(
                f"the field before byte {at:,} does not fit into its message; this is no Example"
            )
        yield tag, at, stop
        at = stop


def _varint(buffer: Any, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise MalformedError(f"a number before byte {at:,} does not end")


def _entries(buffer: Any, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
    """The name of each entry of a map, and where its value starts and stops (nowhere, if it has none)."""
    for tag, at, end in _fields(buffer, start, stop):
        if tag != 0x0A:
            continue
        name, value = b"", (end, end)
        for inner, begin, finish in _fields(buffer, at, end):
            if inner == 0x0A:
                name = bytes(buffer[begin:finish])
            elif inner == 0x12:
                value = begin, finish
        try:
            yield name.decode(), *value
        except UnicodeDecodeError:
            raise MalformedError(f"a feature's name is not UTF-8: {name[:40]!r}") from None


def _feature(buffer: bytes, start: int, stop: int, name: str) -> Values | None:
    """The values of a Feature; None where it has none of any kind."""
    values: Values | None = None
    for tag, at, end in _fields(buffer, start, stop):
        if tag == _BYTES:
            values = [buffer[a:b] for inner, a, b in _fields(buffer, at, end) if inner == 0x0A]
        elif tag == _FLOATS:
            values = _floats(buffer, at, end, name)
        elif tag == _INTS:
            values = _ints(buffer, at, end)
    return values


def _floats(buffer: bytes, start: int, stop: int, name: str) -> NDArray[np.float32]:
    parts = []
    for tag, at, end in _fields(buffer, start, stop):
        if tag in (0x0A, 0x0D):  # packed, or one at a time
            if (end - at) % 4:
                raise MalformedError(f"{name!r} has {end - at:,} bytes of floats, which is no multiple of 4")
            parts.append(buffer[at:end])
    return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), "<f4")


def _ints(buffer: bytes, start: int, stop: int) -> NDArray[np.int64]:
    values: list[int] = []
    for tag, at, end in _fields(buffer, start, stop):
        if tag in (0x0A, 0x08):  # packed, or one at a time
            while at < end:
                value, at = _varint(buffer, at, end)
                values.append(value & 0xFFFFFFFFFFFFFFFF)
    return np.array(values, np.uint64).view(np.int64)


def _frames(view: Any, payload: NDArray[np.uint8], start: int, stop: int, name: str) -> NDArray[Any] | None:
    """The frames (T, D) of a FeatureList, a view; None where they are integers, which no model takes."""
    if start == stop:
        return np.empty((0, 0), np.uint8)  # a video without frames does not say how wide they would be
    kind, at, end = _frame(view, start, stop, name, 0)
    if kind == _INTS:
        return None
    stride, header = end - start, at - start
    count, rest = divmod(stop - start, stride)
    rows = payload[start : stop - rest].reshape(count, stride)
    if rest or rows[:, :header].tobytes() != rows[0, :header].tobytes() * count:
        frames = _uneven_frames(view, payload, start, stop, name)
    else:
        frames = rows[:, header:]
    # Floats are copied: in the file they are not aligned, and torch takes no view of such.
    return frames if kind == _BYTES else frames.view("<f4").copy()


def _uneven_frames(view: Any, payload: NDArray[np.uint8], start: int, stop: int, name: str) -> NDArray[Any]:
    """The frames of a list whose headers differ, which is odd but sound as long as the frames are as wide."""
    frames: list[NDArray[np.uint8]] = []
    first = -1
    while start < stop:
        kind, at, start = _frame(view, start, stop, name, len(frames))
        frame = payload[at:start]
        if frames and (kind != first or len(frame) != len(frames[0])):
            raise MalformedError(
                f"{name!r} frame {len(frames)} is {len(frame):,} bytes wide, "
                f"the frames before it {len(frames[0]):,}"
                if kind == first
                else f"{name!r} frame {len(frames)} is of another type than the frames before it"
            )
        first = kind
        frames.append(frame)
    return np.stack(frames)


def _frame(view: Any, start: int, stop: int, name: str, index: int) -> tuple[int, int, int]:
    """The kind of the frame whose field begins at `start`, and where its values start and stop.

    Feature, list of values and value lie in one another and end together.
    """
    tags: list[int] = []
    begin, finish = start, stop
    for _ in range(3):
        try:
            tag, begin, end = next(_fields(view, begin, finish), (0, begin, finish))
        except MalformedError as error:
            raise MalformedError(f"{name!r} frame {index}: {error}") from None
        if tags and end != finish:
            break
        tags.append(tag)
        finish = end
    if len(tags) < 3 or tags[0] != 0x0A or tags[1] not in (_BYTES, _FLOATS, _INTS) or tags[2] != 0x0A:
        raise MalformedError(f"{name!r} frame {index} should be a single bytes value and is not")
    if begin == finish or (tags[1] == _FLOATS and (finish - begin) % 4):
        raise MalformedError(f"{name!r} frame {index} is {finish - begin} bytes wide")
    return tags[1], begin, finish


def _kind(values: Values) -> str:
    if isinstance(values, list):
        return "bytes"
    return "floats" if values.dtype.kind == "f" else "integers"


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _sized(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + _encode_varint(len(content)) + content


def _encode_entry(name: str, value: bytes) -> bytes:
    return _sized(0x0A, _sized(0x0A, name.encode()) + _sized(0x12, value))


def _encode_feature(values: Any) -> bytes:
    if isinstance(values, str | bytes):
        values = [values]
    if isinstance(values, Sequence) and values and isinstance(values[0], str | bytes):
        texts = (text.encode() if isinstance(text, str) else text for text in values)
        return _sized(_BYTES, b"".join(_sized(0x0A, text) for text in texts))
    numbers = np.atleast_1d(np.asarray(values))
    if numbers.dtype.kind == "f" and numbers.size:
        return _sized(_FLOATS, _sized(0x0A, numbers.astype("<f4").tobytes()))
    packed = b"".join(_encode_varint(number & 0xFFFFFFFFFFFFFFFF) for number in map(int, numbers))
    return _sized(_INTS, _sized(0x0A, packed))


def _encode_frames(frames: NDArray[Any]) -> bytes:
    kind = _BYTES if frames.dtype == np.uint8 else _FLOATS
    if kind == _FLOATS:
        frames = np.ascontiguousarray(frames, "<f4").view(np.uint8)
    header, width = b"", frames.shape[1]
    for tag in (0x0A, kind, 0x0A):  # from the inside out
        header = bytes([tag]) + _encode_varint(width + len(header)) + header
    rows = np.empty((len(frames), len(header) + width), np.uint8)
    rows[:, : len(header)] = np.frombuffer(header, np.uint8)
    rows[:, len(header) :] = frames
    return rows.tobytes()
