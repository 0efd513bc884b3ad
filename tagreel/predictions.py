"""Prediction files, written and read: the tags of every video, as we and as Kaggle's challenges lay them out.

    .parquet              columns id, labels, names, probabilities: one row a video
    .jsonl                one object a video, with the same keys
                          (of tags that are shown otherwise than the classes are trained, without labels)
    .csv of 2017, 2018    header VideoId,LabelConfidencePairs, then id,label confidence label confidence ...
    .csv of 2019          header Class,Segments, then class,video:start video:start ..., the best first

The last is a ranking: a row a class, and no scores. A file that is read may come from anyone: its format is
told from its content, its tags may be in any order, and any number of them a video will do.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tagreel.errors import DataError

FORMATS = (".parquet", ".jsonl", ".csv")
RANKED = 100_000
"""Segments a class of which 2019's challenge took notice."""

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("names", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float32())),
    ]
)
_PAIRS, _RANKING = "VideoId,LabelConfidencePairs", "Class,Segments"
_PARTIAL = b"unlisted"  # a key in the metadata of a .parquet file
_ROWS = 1024
_HIGHEST = np.iinfo(np.int32).max
_EXPECTED = (
    "a .parquet or .jsonl file as `tagreel predict --raw` writes it, or a .csv file with the header "
    f"{_PAIRS} or {_RANKING}"
)

_Row = tuple[str, list[int], list[float], list[str] | None]


def table(
    ids: Sequence[str],
    lengths: NDArray[np.int64],
    classes: NDArray[Any],
    scores: NDArray[Any],
    label_names: Sequence[str] | None = None,
) -> pa.Table:
    """Tags in the columns of a file: of each video `lengths` (R,), and of all in turn class and score (L,).

    Without `label_names` the lists of names are empty.
    """
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    labels = pa.array(classes.astype(np.int32))
    if label_names is None:
        names = pa.array([[]] * len(ids), pa.list_(pa.string()))
    else:
        names = pa.ListArray.from_arrays(offsets, pa.array(label_names, pa.string()).take(labels))
    columns = [
        pa.array(ids, pa.string()),
        pa.ListArray.from_arrays(offsets, labels),
        names,
        pa.ListArray.from_arrays(offsets, pa.array(scores.astype(np.float32))),
    ]
    return pa.table(columns, schema=_SCHEMA)


def write(
    path: Path, tables: Iterable[pa.Table], ending: str, *, partial: bool = False, labels: bool = True
) -> None:
    """Write what `table` made, in the format that the ending says.

    `partial`: a video without a row has 0 for every class, instead of being none that was scored; which only
    .parquet can say. Without `labels` tags have their names alone; such a file is no longer one of classes,
    and nothing here reads it.
    """
    schema = _SCHEMA if labels else _SCHEMA.remove(_SCHEMA.get_field_index("labels"))
    kept = (rows.select(schema.names) for rows in tables)
    if ending == ".parquet":
        with pq.ParquetWriter(path, schema.with_metadata({_PARTIAL: "0"} if partial else None)) as writer:
            for rows in kept:
                writer.write_table(rows)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        write_rows = _write_csv if ending == ".csv" else _write_jsonl
        write_rows(file, (row for rows in kept for row in rows.to_pylist()))


def write_ranking(path: Path, ranking: Iterable[tuple[int, Sequence[str]]]) -> None:
    """Write 2019's file: of each class the ids of its segments, the best first."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(_RANKING.split(","))
        lines.writerows((label, " ".join(ids)) for label, ids in ranking)


@dataclass(slots=True)
class Rows:
    """Some videos of a file: their `ids`, how many tags each has, and the tags of all in turn.

    `lengths` (R,), `classes` (L,), `scores` (L,), and `names` (L,) where the file has them.
    """

    ids: list[str]
    lengths: NDArray[np.int64]
    classes: NDArray[np.int64]
    scores: NDArray[Any]
    names: list[str] | None


class PredictionFile:
    """A prediction file, read in pieces, never whole.

    `is_ranking` says that it is to be read with `ranking`, else with `rows`; `partial` that a video without a
    row has 0 for every class. Raises `DataError` when the file is of none of the formats.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._format, self.partial = self._recognised()
        self.is_ranking = self._format == "ranking"

    def rows(self, *, classes: int | None = None) -> Iterator[Rows]:
        """All rows, some at a time; raises `DataError` where one holds no probabilities of `classes`."""
        pieces = self._parquet() if self._format == "parquet" else self._text()
        for numbers, rows in pieces:
            self._check(rows, numbers, classes)
            yield rows

    def ranking(self, *, classes: int | None = None) -> Iterator[tuple[int, list[str]]]:
        """Each class with its segments, the best first, no more than 2019's challenge read."""
        seen: dict[int, int] = {}
        for number, line in self._lines(after_header=True):
            label, comma, listed = line.partition(",")
            label = _unquoted(label)
            if not comma or not label.isdecimal():
                raise self._error(number, f"{_shown(line)}; expected a class, a comma and its segments")
            if int(label) in seen:
                raise self._error(number, f"class {label} again, as in line {seen[int(label)]:,}")
            if classes is not None and int(label) >= classes:
                raise self._error(
                    number, f"class {label}; expected 0 to {classes - 1:,}, of {classes:,} classes"
                )
            seen[int(label)] = number
            segments = _unquoted(listed).split()[:RANKED]
            if len(set(segments)) < len(segments):
                twice = next(name for name in segments if segments.count(name) > 1)
                raise self._error(number, f"lists {twice!r} twice")
            yield int(label), segments

    def _recognised(self) -> tuple[Literal["parquet", "jsonl", "pairs", "ranking"], bool]:
        try:
            with open(self.path, "rb") as file:
                start = file.read(4)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", path=self.path) from error
        if start == b"PAR1":
            return "parquet", _PARTIAL in (self._opened().schema_arrow.metadata or {})
        number, first = next(self._lines(), (0, ""))
        if not number:
            raise DataError(f"is empty; expected {_EXPECTED}", path=self.path)
        if first.startswith("{"):
            return "jsonl", False
        header = ",".join(_unquoted(cell.strip()) for cell in first.split(","))
        if header not in (_PAIRS, _RANKING):
            raise line_error(self.path, number, f"{_shown(first)}; expected {_EXPECTED}")
        return ("pairs", False) if header == _PAIRS else ("ranking", True)

    def _text(self) -> Iterator[tuple[list[int], Rows]]:
        parse = _parse_object if self._format == "jsonl" else _parse_pairs
        lines = self._lines(after_header=self._format == "pairs")
        while piece := list(islice(lines, _ROWS)):
            numbers, found = [number for number, _ in piece], []
            for number, line in piece:
                try:
                    found.append(parse(line))
                    # Here, where it still is a Python number, which may have any size.
                    if max(found[-1][1], default=0) > _HIGHEST:
                        raise ValueError(f"class {_shown(max(found[-1][1]))}; expected at most {_HIGHEST:,}")
                except ValueError as error:
                    raise self._error(number, str(error)) from None
            ids, classes, scores, names = zip(*found, strict=True)
            lengths = np.array([len(row) for row in classes], np.int64)
            yield (
                numbers,
                Rows(
                    ids=list(ids),
                    lengths=lengths,
                    classes=np.fromiter((c for row in classes for c in row), np.int64, lengths.sum()),
                    scores=np.fromiter((s for row in scores for s in row), np.float64, lengths.sum()),
                    names=None if None in names else [name for row in names for name in row],
                ),
            )

    def _parquet(self) -> Iterator[tuple[range, Rows]]:
        file, first = self._opened(), 0
        there = [name for name in _SCHEMA.names if name in file.schema_arrow.names]
        try:
            for piece in file.iter_batches(batch_size=_ROWS, columns=there):
                yield range(first, first := first + len(piece)), self._columns(piece)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"is damaged: {error}", path=self.path) from error

    def _columns(self, piece: pa.RecordBatch) -> Rows:
        columns = dict(zip(piece.schema.names, piece.columns, strict=True))
        lengths = {name: pc.list_value_length(each) for name, each in columns.items() if name != "id"}
        values = {name: columns[name].flatten() for name in lengths}
        for name in ("id", *lengths):
            if columns[name].null_count or (name in values and values[name].null_count):
                raise DataError(f"{name!r} is empty in some rows", path=self.path)
        counts = lengths["labels"].to_numpy()
        for name in lengths:
            if not (counts == lengths[name].to_numpy()).all():
                raise DataError(f"'labels' and {name!r} differ in length", path=self.path)
        return Rows(
            ids=columns["id"].to_pylist(),
            lengths=counts.astype(np.int64),
            classes=values["labels"].to_numpy(zero_copy_only=False).astype(np.int64),
            scores=values["probabilities"].to_numpy(zero_copy_only=False),
            names=values["names"].to_pylist() if "names" in values else None,
        )

    def _opened(self) -> Any:
        try:
            # Without pre_buffer, which keeps all that was read until the end.
            file = pq.ParquetFile(self.path, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"is damaged: {error}", path=self.path) from error
        types = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
        for column in _SCHEMA.names:
            if column not in types and column != "names":
                raise DataError(
                    f"has no column {column!r} (it has: {', '.join(types)}); expected {_EXPECTED}",
                    path=self.path,
                )
            if column in types and not _fits(column, types[column]):
                raise DataError(f"{column!r} is of {types[column]}; expected {_EXPECTED}", path=self.path)
        return file

    def _lines(self, *, after_header: bool = False) -> Iterator[tuple[int, str]]:
        """The number, from 1, and the text of every line that is not blank."""
        try:
            with open(self.path, encoding="utf-8-sig") as file:
                lines = ((number, line.rstrip("\n")) for number, line in enumerate(file, start=1))
                yield from islice((each for each in lines if each[1].strip()), int(after_header), None)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", path=self.path) from error
        except UnicodeDecodeError as error:
            raise DataError(f"is not text; expected {_EXPECTED}", path=self.path) from error

    def _check(self, rows: Rows, numbers: Sequence[int], classes: int | None) -> None:
        at = np.repeat(np.arange(len(rows.ids)), rows.lengths)

        def refuse(pair: int, reason: str) -> DataError:
            return self._error(numbers[at[pair]], reason)

        # Not "any less than 0 or more than 1", which NaN is not.
        for pair in np.flatnonzero(~((rows.scores >= 0) & (rows.scores <= 1)))[:1]:
            raise refuse(
                pair, f"the score of class {rows.classes[pair]} is {rows.scores[pair]:g}; expected 0 to 1"
            )
        highest = _HIGHEST if classes is None else classes - 1
        for pair in np.flatnonzero((rows.classes < 0) | (rows.classes > highest))[:1]:
            known = "" if classes is None else f", of {classes:,} classes"
            raise refuse(pair, f"class {rows.classes[pair]:,}; expected 0 to {highest:,}{known}")
        tags = at * (highest + 1) + rows.classes
        order = np.argsort(tags, kind="stable")
        for pair in order[1:][np.diff(tags[order]) == 0][:1]:
            raise refuse(pair, f"class {rows.classes[pair]:,} twice")

    def _error(self, number: int, reason: str) -> DataError:
        """What to raise where a line, or in a parquet file a record, is wrong."""
        if self._format == "parquet":
            return DataError(reason, path=self.path, record=number)
        return line_error(self.path, number, reason)


def line_error(path: str | Path, number: int, reason: str) -> DataError:
    """What to raise where a line of a text file is wrong."""
    return DataError(f"line {number:,}: {reason}", path=str(path))


def _parse_pairs(line: str) -> _Row:
    """A line of 2017's and 2018's file."""
    name, comma, pairs = line.rpartition(",")
    if not comma:
        raise ValueError(
            f"{_shown(line)}; expected an id, a comma, and label confidence label confidence ..."
        )
    words = _unquoted(pairs).split()
    if len(words) % 2:
        raise ValueError(f"label {_shown(words[-1])} has no confidence behind it")
    try:
        return (
            _unquoted(name),
            [int(word) for word in words[::2]],
            [float(word) for word in words[1::2]],
            None,
        )
    except ValueError:
        raise ValueError(_first_misfit(words)) from None


def _first_misfit(words: Sequence[str]) -> str:
    for place, word in enumerate(words):
        kind, meant = (float, "a confidence") if place % 2 else (int, "a label, which is a whole number")
        try:
            kind(word)
        except ValueError:
            return f"{_shown(word)} where {meant} should be"
    raise AssertionError("called for words that do not fit")


def _parse_object(line: str) -> _Row:
    """A line of a .jsonl file."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("id"), str):
        raise ValueError(f"{_shown(line)}; expected an object with 'id', 'labels' and 'probabilities'")
    if "labels" not in found:
        raise ValueError(
            f"has no 'labels' (it has: {', '.join(found)}); expected them, as `tagreel predict --raw` "
            "writes them"
        )
    kinds: dict[str, tuple[type, ...]] = {"labels": (int,), "probabilities": (int, float), "names": (str,)}
    for key, kind in kinds.items():
        values = found.get(key, [] if key == "names" else None)
        if not isinstance(values, list) or not all(type(value) in kind for value in values):
            raise ValueError(f"{key!r} is {_shown(values)}; expected a list of {kind[-1].__name__}")
        if key in found and len(values) != len(found["labels"]):
            raise ValueError(f"{len(found['labels'])} 'labels' and {len(values)} {key!r}; expected as many")
    return found["id"], found["labels"], found["probabilities"], found.get("names")


def _write_jsonl(file: TextIO, rows: Iterator[dict[str, Any]]) -> None:
    for row in rows:
        row["probabilities"] = [float(f"{p:.6g}") for p in row["probabilities"]]
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_csv(file: TextIO, rows: Iterator[dict[str, Any]]) -> None:
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(_PAIRS.split(","))
    for row in rows:
        pairs = zip(row["labels"], row["probabilities"], strict=True)
        lines.writerow((row["id"], " ".join(f"{label} {p:.6g}" for label, p in pairs)))


def _fits(column: str, kind: Any) -> bool:
    if column != "id":
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            return False
        kind = kind.value_type
    if column in ("id", "names"):
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    return bool(pa.types.is_integer(kind) if column == "labels" else pa.types.is_floating(kind))


def _unquoted(cell: str) -> str:
    """A cell of a .csv file; not by `csv`, which refuses those of 128 KB and more that rankings have."""
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell


def _shown(found: Any) -> str:
    text = repr(found)
    return text if len(text) <= 60 else f"{text[:57]}..."
