"""Arrow shards written: examples to a file that `tagreel.readers.arrow` describes, whole or not at all.

The same examples give the same bytes. Never more than one record batch is in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc

from tagreel.batch import Example
from tagreel.errors import DataError
from tagreel.files import written_whole
from tagreel.provenance import Provenance
from tagreel.readers.arrow import FILE_KEY, KEY, VERSION, Arrow, checksum

BATCH_VIDEOS = 256
BATCH_BYTES = 64 << 20
_LAST_CLASS = 2**31 - 1
_RESERVED = ("id", "labels", "rated", "crc32c")
_CLASSES = pa.list_(pa.int32())
_TYPES = {np.dtype(kind.to_pandas_dtype()): kind for kind in (pa.uint8(), pa.float16(), pa.float32())}


def write(
    path: Path,
    examples: Iterable[Example],
    *,
    label_names: Sequence[str] | None = None,
    provenance: Provenance | None = None,
    inputs: Any = None,
) -> int:
    """Write examples to an Arrow file and return how many there were.

    A record batch takes 256 videos, or as many as have 64 MiB of frames together: about what a model is
    trained on at once. Any video may lack a stream; the frames of a stream are uint8, float16 or float32 and
    of one type and width, else a `DataError` names the video. `inputs` is any JSON that says what the file is
    made of, for `made_of`.
    """
    about = {
        "format": VERSION,
        "label_names": label_names,
        "provenance": provenance and dict(provenance.streams),
        "inputs": inputs,
    }
    text = json.dumps(about, ensure_ascii=False, sort_keys=True, allow_nan=False)
    files = sorted(provenance.files.items()) if provenance else []
    metadata = {KEY: text.encode(), **{FILE_KEY + digest.encode(): content for digest, content in files}}
    with written_whole(path) as temporary, closing(_Shard(temporary, metadata)) as shard:
        for group in _grouped(examples):
            shard.add(group, path)
        shard.end()
    return sum(shard.counts)


def verify(path: Path, examples: Iterable[Example]) -> None:
    """Read a shard and compare it with its examples, bit by bit; raises `DataError` where they differ."""
    shard = Arrow(path)
    count = 0
    for count, expected in enumerate(examples, 1):
        if count > len(shard) or not _same(shard[count - 1], expected):
            raise DataError(
                f"video {expected.id!r} does not read back as it was", path=str(path), record=count - 1
            )
    if count != len(shard):
        raise DataError(f"it has {len(shard):,} videos; {count:,} were written", path=str(path))


def made_of(path: Path) -> tuple[Any, int]:
    """The `inputs` of a finished shard and how many videos it has; `DataError` where it is damaged."""
    shard = Arrow(path)
    return shard.inputs, len(shard)


def fit(example: Example, types: dict[str, pa.DataType], *, path: str, record: int | None = None) -> None:
    """Add to `types` the columns that an example is the first to need: its streams, and `rated`.

    Raises `DataError` where it does not fit to those that are there.
    """
    if example.rated is not None:
        types["rated"] = _CLASSES
    reason = None
    for classes in (example.labels, example.rated):
        if classes is not None and classes.max(initial=0) > _LAST_CLASS:
            reason = f"class {classes.max():,}; expected at most {_LAST_CLASS:,}"
    for name, frames in example.streams.items():
        if not len(frames):
            continue
        kind = _stream_type(frames.dtype, frames.shape[1:])
        if kind is None or name in _RESERVED:
            reason = (
                f"{name!r} is {frames.shape} {frames.dtype}; expected frames in uint8, float16 or float32"
            )
        elif types.setdefault(name, kind) != kind:
            found, before = _said(kind), _said(types[name])
            reason = f"{name!r} is {found}, and {before} in the videos before it; write the two on their own"
    if reason is not None:
        raise DataError(f"video {example.id!r}: {reason}", path=path, record=record)


@cache
def _stream_type(dtype: np.dtype[Any], shape: tuple[int, ...]) -> pa.DataType | None:
    if len(shape) != 1 or not shape[0] or dtype not in _TYPES:
        return None
    return pa.list_(pa.list_(_TYPES[dtype], shape[0]))


def _said(stream: pa.DataType) -> str:
    """A stream's type for people: "uint8, 1,024 wide"."""
    frame = stream.value_type
    return f"{np.dtype(frame.value_type.to_pandas_dtype())}, {frame.list_size:,} wide"


class _Shard:
    """An Arrow file that is being written, its columns being those that the examples so far have needed."""

    def __init__(self, path: Path, metadata: dict[bytes, bytes]) -> None:
        self._path, self._metadata = path, metadata
        self._types: dict[str, pa.DataType] = {}
        self._begin()
        self.counts: list[int] = []

    def add(self, rows: Sequence[Example], path: Path) -> None:
        """Write a record batch; `path` is the file as an error names it."""
        types = dict(self._types)
        for example in rows:
            fit(example, types, path=str(path))
        if types != self._types:
            self._types = types
            self._widen()
        self._writer.write_batch(_batch(rows, self._schema))
        self.counts.append(len(rows))

    def end(self) -> None:
        """Write the closing batch."""
        empty = pa.record_batch([pa.nulls(0, field.type) for field in self._schema], schema=self._schema)
        self._writer.write_batch(empty, custom_metadata={KEY: json.dumps(self.counts)})

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _begin(self) -> None:
        names = sorted(self._types, key=lambda name: name != "rated")
        fields = [("id", pa.string()), ("labels", _CLASSES), *((name, self._types[name]) for name in names)]
        self._schema = pa.schema([*fields, ("crc32c", pa.uint32())], metadata=self._metadata)
        self._writer = ipc.new_file(str(self._path), self._schema)

    def _widen(self) -> None:
        """Begin anew with further columns, which are null in all batches so far."""
        self.close()
        narrow = self._path.with_name(self._path.name + ".narrow")
        os.replace(self._path, narrow)
        try:
            self._begin()
            with pa.memory_map(str(narrow)) as file:
                before = ipc.open_file(file)
                for number in range(before.num_record_batches):
                    self._writer.write_batch(_filled(before.get_batch(number), self._schema))
        finally:
            narrow.unlink()


def _grouped(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """The examples of one record batch at a time."""
    group: list[Example] = []
    size = 0
    for example in examples:
        group.append(example)
        size += sum(frames.nbytes for frames in example.streams.values())
        if len(group) == BATCH_VIDEOS or size >= BATCH_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _batch(rows: Sequence[Example], schema: pa.Schema) -> pa.RecordBatch:
    """Examples as columns, the last one their checksums."""
    names = [example.id for example in rows]
    columns = [pa.array(names, pa.string())]
    parts: list[list[tuple[str, Any]]] = [[("id string", name.encode())] for name in names]
    for field in list(schema)[1:-1]:
        cells = [_cell(example, field.name) for example in rows]
        counts = np.array([0 if cell is None else len(cell) for cell in cells])
        offsets = np.concatenate([[0], np.cumsum(counts)])
        values = _joined([cell for cell in cells if cell is not None], field.type.value_type)
        missing = pa.array([cell is None for cell in cells])
        columns.append(_lists(values, offsets, missing))
        kind = f"{field.name} {values.dtype}" + (f"[{values.shape[1]}]" if values.ndim == 2 else "")
        for part, cell, start, stop in zip(parts, cells, offsets, offsets[1:], strict=False):
            if cell is not None:
                part.append((kind, values[start:stop]))
    columns.append(pa.array([checksum(part) for part in parts], pa.uint32()))
    return pa.record_batch(columns, schema=schema)


def _cell(example: Example, column: str) -> NDArray[Any] | None:
    if column == "labels":
        return example.labels
    if column == "rated":
        return example.rated
    frames = example.streams.get(column)
    return None if frames is None or not len(frames) else frames


def _joined(cells: Sequence[NDArray[Any]], kind: pa.DataType) -> NDArray[Any]:
    """The values of all rows in one array, of numbers (L,) or frames (L, D) as their type says."""
    if not pa.types.is_fixed_size_list(kind):
        return np.concatenate([np.empty(0, np.int32), *cells], dtype=np.int32, casting="same_kind")
    dtype = kind.value_type.to_pandas_dtype()
    return np.concatenate([np.empty((0, kind.list_size), dtype), *cells])


def _lists(values: NDArray[Any], offsets: NDArray[Any], missing: pa.Array) -> pa.ListArray:
    flat = pa.array(values.reshape(-1))
    inner = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner, mask=missing)


def _filled(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch with the columns of the schema, null where it has none."""
    names = batch.schema.names
    columns = [
        batch.column(field.name) if field.name in names else pa.nulls(len(batch), field.type)
        for field in schema
    ]
    return pa.record_batch(columns, schema=schema)


def _same(found: Example, expected: Example) -> bool:
    """Whether two examples are the same to the bit; a stream without frames is none."""
    streams = {name: frames for name, frames in expected.streams.items() if len(frames)}
    return (
        found.id == expected.id
        and np.array_equal(found.labels, np.unique(expected.labels))
        and _equal(found.rated, None if expected.rated is None else np.unique(expected.rated))
        and {name for name, frames in found.streams.items() if len(frames)} == streams.keys()
        and all(_equal(found.streams[name], frames) for name, frames in streams.items())
    )


def _equal(found: NDArray[Any] | None, expected: NDArray[Any] | None) -> bool:
    if found is None or expected is None:
        return found is expected
    if found.dtype != expected.dtype:
        return False
    bits = f"u{found.dtype.itemsize}"  # NaN is equal to NaN
    return np.array_equal(found.view(bits), expected.view(bits))
