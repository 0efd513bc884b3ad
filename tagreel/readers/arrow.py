"""Arrow shards: Arrow IPC files (`.arrow`) of features, mapped into memory, tagreel's own and anyone's.

    id        string         of the video; integers will do
    labels    list<int32>    the classes; left out where nothing is labelled
    rated     list<int32>    the only classes that anyone judged, null for all; left out where there is none
    a stream  list<fixed_size_list<T>[D]>    frames; null or empty where the video lacks them, or
              fixed_size_list<T>[D]          one vector a video; T is uint8, float16 or float32
    crc32c    uint32         the row's `checksum`; left out, nothing is verified

Lists may be `large_list`, integers of any size; further columns are left aside unless they hold lists of
numbers. The schema's metadata may have JSON under `tagreel` with `label_names`, `provenance` (its streams)
and `inputs`, and under `tagreel.file.` and its sha256 each file that the provenance names. A file may end in
an empty record batch whose own metadata lists under `tagreel` how many rows each batch before it has, so that
what is lost can be counted. `tagreel.shards` writes all of it.
"""

from __future__ import annotations

import json
import mmap
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc

from tagreel.batch import Example
from tagreel.errors import DataError
from tagreel.provenance import Provenance

KEY, FILE_KEY = b"tagreel", b"tagreel.file."
VERSION = 1
_MAGIC, _STREAM = b"ARROW1\0\0", b"\xff\xff\xff\xff"
_NO_LABELS = np.empty(0, np.int64)
_NO_STREAMS = {"id", "labels", "rated"}


class Arrow:
    """An Arrow file; frames are views of the mapped file, or of memory if the file is compressed.

    A row's checksum is verified when the row is read, unless `check_crc` is False. The rows of a damaged
    record batch are lost, each with an error of its own. `label_names` lists what the classes are called,
    `provenance` says what made the features and `inputs` what the file was made of; each may be None.
    `whole_videos` changes nothing: a file of rated segments does not hold the videos.
    """

    format = "arrow"

    def __init__(self, path: str | Path, *, check_crc: bool = True, whole_videos: bool = False) -> None:
        self.path, self._check_crc = str(path), check_crc
        try:
            buffer = _map(path)
            schema = _open(buffer).schema
            _check_front(buffer, schema)
            about = _about(schema)
            self.label_names: list[str] | None = about.get("label_names")
            self.provenance = _provenance(schema, about.get("provenance"))
            self.inputs: Any = about.get("inputs")
            builders = _builders(schema)
            self._batches = _batches(buffer, builders)
            self._ends = np.cumsum([len(batch) for batch in self._batches], dtype=np.int64).tolist()
            if len(self) and builders.keys() <= _NO_STREAMS:
                raise MalformedError(f"it has no stream; it has: {', '.join(schema.names)}")
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", path=self.path) from None
        except MalformedError as error:
            count = self.count(path)
            held = "" if count is None else f" ({count:,} {'video' if count == 1 else 'videos'})"
            raise DataError(f"{error}; the whole file{held} cannot be read", path=self.path) from None

    @classmethod
    def recognises(cls, path: str | Path) -> bool:
        """Whether the file is an Arrow file with ids, or is named `.arrow` and cannot tell."""
        with open(path, "rb") as file:
            magic = file.read(len(_MAGIC))
        named = Path(path).suffix == ".arrow"
        if magic != _MAGIC and not named:
            return False
        names: set[str] = set()
        for schema_of in (_front, _open):
            with suppress(MalformedError):
                names |= set(schema_of(_map(path)).schema.names)
        return "id" in names if names else named

    @classmethod
    def count(cls, path: str | Path) -> int | None:
        """How many videos a file holds whose end is damaged; None where this cannot be told."""
        try:
            *_, (_, metadata) = _front(_map(path)).iter_batches_with_custom_metadata()
            return sum(_counts(metadata) or ()) or None
        except Exception:  # pyarrow meets garbage with a dozen kinds of exception
            return None

    @classmethod
    def glance(cls, file: BinaryIO) -> tuple[int, list[str] | None, Provenance | None] | None:
        """How many videos a file has, its class names and provenance, read from its end alone.

        None where that does not say how many: damaged, not of ours, or no Arrow file.
        """
        try:
            opened = ipc.open_file(pa.PythonFile(file, mode="r"))
            _, metadata = opened.get_batch_with_custom_metadata(opened.num_record_batches - 1)
            counts, about = _counts(metadata), _about(opened.schema)
            provenance = _provenance(opened.schema, about.get("provenance"))
        except Exception:  # pyarrow meets garbage with a dozen kinds of exception
            return None
        if counts is None or len(counts) != opened.num_record_batches - 1:
            return None
        return sum(counts), about.get("label_names"), provenance

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends else 0

    def __getitem__(self, index: int) -> Example:
        number = bisect_right(self._ends, index)
        batch = self._batches[number]
        try:
            return batch.example(index - self._ends[number] + len(batch), check_crc=self._check_crc)
        except MalformedError as error:
            raise DataError(str(error), path=self.path, record=index) from None


def checksum(columns: Iterable[tuple[str, Any]]) -> int:
    """The CRC-32C of a row: a line `name type length` for each column, then each column's bytes.

    `columns` are those that are not null, in the file's order and without `crc32c`, each as its name and type
    and its values: `id string` and UTF-8, `labels int32` and the numbers, `rgb uint8[1024]` and the frames
    (T, 1024), ... The length counts bytes, numbers and frames. Numbers are little-endian.
    """
    present = list(columns)
    crc = google_crc32c.value("".join(f"{kind} {len(values)}\n" for kind, values in present).encode())
    for _, values in present:
        crc = google_crc32c.extend(crc, values)
    return int(crc)


class MalformedError(Exception):
    """A file, a batch or a row is not what it should be; the reader adds where."""


class _Batch:
    """One record batch: its columns as views."""

    def __init__(self, batch: pa.RecordBatch, builders: Mapping[str, _Builder]) -> None:
        if any(len(column) != batch.num_rows for column in batch.columns):
            raise MalformedError("its columns differ in length")
        self._rows: int = batch.num_rows
        self._columns = {name: build(batch.column(name)) for name, build in builders.items()}
        self._crc = _numbers(batch.column("crc32c")) if "crc32c" in batch.schema.names else None

    def __len__(self) -> int:
        return self._rows

    def example(self, row: int, *, check_crc: bool) -> Example:
        """The video of a row."""
        cells = {name: column.cell(row) for name, column in self._columns.items()}
        if check_crc and self._crc is not None:
            present = [
                (column.kind, cell)
                for column, cell in zip(self._columns.values(), cells.values(), strict=True)
                if cell is not None
            ]
            if checksum(present) != self._crc[row]:
                size = sum(cell.nbytes for _, cell in present)
                raise MalformedError(f"the checksum of its {size:,} bytes is wrong")
        return Example(
            id=_text(cells.pop("id")),
            labels=_classes("labels", cells.pop("labels", None)),
            rated=None if (rated := cells.pop("rated", None)) is None else _classes("rated", rated),
            streams=_streams(
                {
                    name: self._columns[name].none if frames is None else frames
                    for name, frames in cells.items()
                }
            ),
        )


class _Lost:
    """Stands for the rows of a record batch that cannot be read."""

    def __init__(self, rows: int, reason: str) -> None:
        self._rows, self._reason = rows, reason

    def __len__(self) -> int:
        return self._rows

    def example(self, row: int, *, check_crc: bool) -> Example:
        """Says why there is none."""
        raise MalformedError(f"its record batch is damaged: {self._reason}")


class _Column:
    """A column of one batch: row i is values[offsets[i]:offsets[i + 1]], or null where it is not `valid`.

    `kind` is the column's name and type as `checksum` takes them. `values` are bytes of text (L,), numbers
    (L,) or frames (L, D); `sound` (L,) is False where one of them is null itself, or holds a null.
    """

    def __init__(
        self,
        kind: str,
        column: pa.Array,
        values: NDArray[Any],
        *,
        offsets: NDArray[np.integer[Any]] | None = None,
        sound: NDArray[np.bool_] | None = None,
    ) -> None:
        self.kind, self.none, self._values, self._sound = kind, values[:0], values, sound
        self._offsets = _offsets(column) if offsets is None else offsets
        self._valid = _valid(column)

    def cell(self, row: int) -> NDArray[Any] | None:
        """A row's values, a view; None where it is null."""
        if self._valid is not None and not self._valid[row]:
            return None
        start, stop = self._offsets[row : row + 2].tolist()
        if not 0 <= start <= stop <= len(self._values):
            raise self._error(f"is {start:,} to {stop:,} of {len(self._values):,} values")
        if self._sound is not None and not self._sound[start:stop].all():
            raise self._error("holds nulls")
        return self._values[start:stop]

    def _error(self, reason: str) -> MalformedError:
        return MalformedError(f"{self.kind.rpartition(' ')[0]!r} {reason}")


_Builder = Callable[[pa.Array], _Column]


def _map(path: str | Path) -> pa.Buffer:
    with open(path, "rb") as file:
        try:
            return pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:
            raise MalformedError("the file is empty (0 bytes)") from None


def _open(buffer: pa.Buffer) -> ipc.RecordBatchFileReader:
    """The file by the footer at its end."""
    try:
        file = ipc.open_file(buffer)
        file.schema.names  # noqa: B018  read here, since they may not be UTF-8
    except Exception as error:  # pyarrow meets garbage with a dozen kinds of exception
        if bytes(memoryview(buffer)[: len(_STREAM)]) == _STREAM:
            reason = "it is an Arrow stream, as datasets of Hugging Face are saved; write it as an Arrow file"
            raise MalformedError(reason) from None
        raise MalformedError(f"it is damaged: {_first_line(error)}") from None
    return file


def _front(buffer: pa.Buffer) -> ipc.RecordBatchStreamReader:
    """The file from its front on: without its footer it is a stream, with the schema at its head."""
    try:
        stream = ipc.open_stream(buffer.slice(len(_MAGIC)))
        stream.schema.names  # noqa: B018
    except Exception as error:  # pyarrow meets garbage with a dozen kinds of exception
        raise MalformedError(f"it is damaged: {_first_line(error)}") from None
    return stream


def _check_front(buffer: pa.Buffer, schema: pa.Schema) -> None:
    """Compare the schema with that at the file's front; each tells of damage to the other."""
    ours = _ours(schema)
    try:
        front = _front(buffer).schema
    except MalformedError:
        if ours:
            raise
        return  # Polars writes something else there
    if not schema.equals(front) or ours != _ours(front):
        raise MalformedError("it is damaged: its two schemas, at its front and at its end, differ")


def _ours(schema: pa.Schema) -> dict[bytes, bytes]:
    """The metadata that are tagreel's."""
    return {name: value for name, value in (schema.metadata or {}).items() if name.startswith(KEY)}


def _about(schema: pa.Schema) -> dict[str, Any]:
    """What the metadata says of the whole file; nothing where it has none of ours."""
    try:
        about = json.loads((schema.metadata or {}).get(KEY, b"{}"))
    except ValueError as error:
        raise MalformedError(f"its metadata 'tagreel' is not JSON: {error}") from None
    if not isinstance(about, dict):
        raise MalformedError("its metadata 'tagreel' is no JSON object")
    names, made, version = (about.get(name) for name in ("label_names", "provenance", "format"))
    if not (names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))):
        raise MalformedError("its metadata 'tagreel' has 'label_names' that are no list of strings")
    if not isinstance(made, dict | None):
        raise MalformedError("its metadata 'tagreel' has a 'provenance' that is no object")
    if version not in (None, VERSION):
        raise MalformedError(f"it is written in format {version}; this tagreel reads format {VERSION}")
    return about


def _provenance(schema: pa.Schema, streams: dict[str, Any] | None) -> Provenance | None:
    if streams is None:
        return None
    metadata = schema.metadata.items()
    files = {name: _shared(value) for name, value in metadata if name.startswith(FILE_KEY)}
    return Provenance(streams, {name.removeprefix(FILE_KEY).decode(): value for name, value in files.items()})


@lru_cache(maxsize=16)
def _shared(content: bytes) -> bytes:
    """The same bytes, once for all the shards that have them: a projection is megabytes."""
    return content


def _batches(buffer: pa.Buffer, builders: Mapping[str, _Builder]) -> list[_Batch | _Lost]:
    """Every record batch; one that is damaged has the rows that it is known to have, else one."""
    file = _open(buffer)
    read: list[_Batch | str] = []
    metadata = None
    for number in range(file.num_record_batches):
        try:
            batch, metadata = file.get_batch_with_custom_metadata(number)
            read.append(_Batch(batch, builders))
        except Exception as error:  # pyarrow meets garbage with a dozen kinds of exception
            metadata = None
            read.append(_first_line(error))
    counts = _counts(metadata)
    if counts is None:
        if not any(isinstance(batch, str) for batch in read) and _walked(buffer) not in (None, len(read)):
            raise MalformedError(f"it is damaged: it lists {len(read)} record batches and holds others")
        return [_Lost(1, batch) if isinstance(batch, str) else batch for batch in read]
    if len(counts) != len(read) - 1:
        raise MalformedError(f"it is damaged: it lists {len(read) - 1} record batches and says {len(counts)}")
    found: list[_Batch | _Lost] = []
    for rows, part in zip(counts, read, strict=False):
        if isinstance(part, _Batch) and len(part) != rows:
            part = f"it has {len(part):,} rows of {rows:,}"
        found.append(_Lost(rows, part) if isinstance(part, str) else part)
    return found


def _walked(buffer: pa.Buffer) -> int | None:
    """How many record batches one meets on the way from the front; None where there is no way through."""
    try:
        return sum(1 for _ in _front(buffer))
    except Exception:  # pyarrow meets garbage with a dozen kinds of exception
        return None


def _counts(metadata: Mapping[bytes, bytes] | None) -> list[int] | None:
    """How many rows each batch has, as the closing batch's metadata says; None where that is none."""
    try:
        counts = json.loads((metadata or {}).get(KEY, b""))
    except ValueError:
        return None
    sound = isinstance(counts, list) and all(isinstance(rows, int) and rows >= 0 for rows in counts)
    return counts if sound else None


def _builders(schema: pa.Schema) -> dict[str, _Builder]:
    """What makes views of each column that is read."""
    names = schema.names
    if "id" not in names:
        raise MalformedError(f"it has no column 'id'; it has: {', '.join(names)}")
    if len(set(names)) != len(names):
        raise MalformedError(f"two of its columns have the same name: {', '.join(names)}")
    builders: dict[str, _Builder] = {}
    for field in schema:
        if field.name == "id":
            builders["id"] = _texts(field)
        elif field.name in ("labels", "rated"):
            builders[field.name] = _integers(field)
        elif field.name == "crc32c":
            if field.type != pa.uint32():
                raise _wrong(field, "uint32, or left out")
        elif field.type != (numbers := _innermost(field.type)) and _is_number(numbers):
            builders[field.name] = _frames(field)
    return builders


def _texts(field: pa.Field) -> _Builder:
    is_plain = pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    if not (is_plain or pa.types.is_string_view(field.type) or pa.types.is_integer(field.type)):
        raise _wrong(field, "string")

    def build(column: pa.Array) -> _Column:
        if not is_plain:
            column.validate(full=True)
            column = column.cast(pa.large_string())
        text = column.buffers()[2]
        values = np.empty(0, np.uint8) if text is None else np.frombuffer(text, np.uint8)
        return _Column("id string", column, values)

    return build


def _integers(field: pa.Field) -> _Builder:
    if not (_is_list(field.type) and pa.types.is_integer(field.type.value_type)):
        raise _wrong(field, "list<int32>")

    def build(column: pa.Array) -> _Column:
        values = _numbers(column.values)
        return _Column(f"{field.name} {values.dtype}", column, values, sound=_valid(column.values))

    return build


def _frames(field: pa.Field) -> _Builder:
    one_each = not _is_list(field.type)
    vector = field.type if one_each else field.type.value_type
    if not (
        pa.types.is_fixed_size_list(vector)
        and vector.value_type in (pa.uint8(), pa.float16(), pa.float32())
        and vector.list_size > 0
    ):
        lists = "list<fixed_size_list<T>[D]>, or fixed_size_list<T>[D] for one vector a video"
        raise _wrong(field, f"{lists}, and T uint8, float16 or float32")
    width = vector.list_size

    def build(column: pa.Array) -> _Column:
        vectors = column if one_each else column.values
        values = _numbers(vectors.values)
        if len(values) != len(vectors) * width:
            raise MalformedError(f"{field.name!r} has {len(values):,} numbers for {len(vectors):,} frames")
        sound = _valid(vectors)
        if (numbers := _valid(vectors.values)) is not None:
            whole = np.asarray(numbers.reshape(-1, width).all(axis=1))
            sound = whole if sound is None else whole & sound
        offsets = np.arange(len(column) + 1) if one_each else None
        kind = f"{field.name} {values.dtype}[{width}]"
        return _Column(kind, column, values.reshape(-1, width), offsets=offsets, sound=sound)

    return build


def _innermost(kind: pa.DataType) -> pa.DataType:
    """The type of what lies in lists, in lists of lists, ..."""
    lists = pa.types
    while (
        _is_list(kind)
        or lists.is_fixed_size_list(kind)
        or lists.is_list_view(kind)
        or lists.is_large_list_view(kind)
    ):
        kind = kind.value_type
    return kind


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _wrong(field: pa.Field, expected: str) -> MalformedError:
    return MalformedError(f"{field.name!r} is {field.type}; it should be {expected}")


def _numbers(column: pa.Array) -> NDArray[Any]:
    """An array of numbers as a view; numpy refuses a buffer that is too short for it."""
    dtype = np.dtype(column.type.to_pandas_dtype())
    return np.frombuffer(column.buffers()[1], dtype, len(column)) if len(column) else np.empty(0, dtype)


def _offsets(column: pa.Array) -> NDArray[np.integer[Any]]:
    """Where each row of a column of texts or lists begins, and where the last one ends, (N + 1,)."""
    is_large = pa.types.is_large_list(column.type) or pa.types.is_large_string(column.type)
    dtype = np.dtype(np.int64 if is_large else np.int32)
    return np.frombuffer(column.buffers()[1], dtype, len(column) + 1) if len(column) else np.zeros(1, dtype)


def _valid(column: pa.Array) -> NDArray[np.bool_] | None:
    """(N,) True where a row is not null; None where none is."""
    if not column.null_count:
        return None
    bits = np.frombuffer(column.buffers()[0], np.uint8, -(-len(column) // 8))
    return np.unpackbits(bits, count=len(column), bitorder="little").view(np.bool_)


def _text(value: NDArray[np.uint8] | None) -> str:
    if value is None:
        raise MalformedError("its 'id' is null")
    try:
        return value.tobytes().decode()
    except UnicodeDecodeError:
        raise MalformedError(f"its 'id' is not UTF-8: {value.tobytes()[:40]!r}") from None


def _classes(name: str, values: NDArray[Any] | None) -> NDArray[np.int64]:
    """Class ids, ascending, each once."""
    if values is None:
        return _NO_LABELS
    classes = values.astype(np.int64)
    if (classes[1:] <= classes[:-1]).any():
        classes = np.unique(classes)
    if len(classes) and classes[0] < 0:
        raise MalformedError(f"{name}: class {classes[0]} is negative")
    return classes


def _streams(streams: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The streams as they are, once those with more than one frame have as many frames."""
    if len({len(frames) for frames in streams.values() if len(frames) > 1}) > 1:
        counts = ", ".join(f"{name!r} has {len(frames):,}" for name, frames in streams.items())
        raise MalformedError(f"its streams differ in their number of frames: {counts}")
    return streams


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
