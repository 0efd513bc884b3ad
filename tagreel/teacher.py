"""Labels that are likely missing, and are forgiven: the negatives that a teacher believes in most.

Fonseca, Hershey, Plakal, Ellis, Jansen, Moore, Serra, "Addressing Missing Labels in Large-Scale Sound Event
Recognition Using a Teacher-Student Framework With Loss Masking", 2020, arXiv 2005.00878: a model trained
before, the teacher, scores the training set; of every class, the share of its negatives that it scores
highest is left out of the student's loss. The teacher is a file of predictions:

    tagreel predict RUN --data TRAIN --out teacher.parquet --top-k 100

A video's negatives outside of its list are taken to score below all listed ones of their class. Where a class
has fewer listed negatives than the share asks for, those are all that can be forgiven.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagreel.batch import Batch
from tagreel.errors import DataError

_ROWS = 8192
_EXPECTED = "what `tagreel predict --out FILE.parquet` writes"
_COLUMNS: dict[str, Callable[[Any], bool]] = {
    "id": pa.types.is_string,
    "labels": lambda kind: pa.types.is_list(kind) and pa.types.is_integer(kind.value_type),
    "probabilities": lambda kind: pa.types.is_list(kind) and pa.types.is_floating(kind.value_type),
}
_LEVELS = 0x3C00 + 1
"""Half-precision numbers from 0 to 1; their bits, read as integers, lie in the same order."""

_Piece = tuple[slice, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class Teacher:
    """Which (video, class) negatives the loss leaves out, by a file of predictions.

    `share` is that of each class's negatives. The file is read in pieces, never whole; raises `DataError`
    where it holds no predictions for `classes` classes of these names. In memory are 24 bytes a video and 2 a
    forgiven pair (4 beyond 65,536 classes), and while `compare` runs 60 KB a class and 16 bytes a label.
    Scores are told apart as far as half precision does, and what ties at the threshold stays in the loss, so
    that never more than the share is forgiven.
    """

    def __init__(
        self, path: str | Path, *, classes: int, share: float, label_names: Sequence[str] | None = None
    ) -> None:
        self.path, self.classes, self.share = str(path), classes, share
        self.pairs = 0
        self._file = self._opened()
        if label_names is not None:
            self._check_names(label_names)
        hashes = np.concatenate([_hashes(self._column(piece, "id")) for piece in self._read("id")])
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        twice = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        if len(twice):
            first, second = self._order[twice[0] : twice[0] + 2].tolist()
            raise DataError(
                f"the same video as record {first:,}; expected one row for each",
                path=self.path,
                record=second,
            )
        self._classes: NDArray[Any] = np.empty(0, np.uint16)
        self._ends = np.zeros(len(hashes), np.int64)

    def compare(self, batches: Iterable[Batch]) -> None:
        """Find what to forgive, given the labels of the whole training set, once through.

        Raises `DataError` for a video that the teacher has not scored, and for one that people rated: it
        lacks no label.
        """
        C = self.classes
        seen, positives = self._labels(batches)
        allowed = (self.share * (seen.sum() - np.bincount(positives % C, minlength=C))).astype(np.int64)
        levels = np.zeros(C * _LEVELS, np.int32)
        for _, _, classes, scores in self._negatives(seen, positives):
            np.add.at(levels, classes * _LEVELS + scores, np.int32(1))  # a plain 1 is 25 times slower
        thresholds, taken = np.empty(C, np.int64), np.zeros(C, np.int64)
        for c, counts in enumerate(levels.reshape(C, _LEVELS)):
            from_above = np.cumsum(counts[::-1])
            whole = np.searchsorted(from_above, allowed[c], side="right")
            thresholds[c] = _LEVELS - whole
            taken[c] = from_above[whole - 1] if whole else 0
        del levels
        self._classes = np.empty(taken.sum(), np.uint16 if C <= 1 << 16 else np.int32)
        lengths = np.zeros(len(seen), np.int64)
        self.pairs = 0
        for piece, rows, classes, scores in self._negatives(seen, positives):
            kept = scores >= thresholds[classes]
            start, self.pairs = self.pairs, self.pairs + int(kept.sum())
            self._classes[start : self.pairs] = classes[kept]
            lengths[piece] = np.bincount(rows[kept] - piece.start, minlength=piece.stop - piece.start)
        self._ends = np.cumsum(lengths)

    def forgiven(self, batch: Batch) -> Tensor:
        """(B, C), True for the negatives to leave out of the loss; on the device of the batch's labels."""
        rows = self._rows(batch.ids)
        ends = self._ends[rows]
        lengths = ends - np.where(rows > 0, self._ends[rows - 1], 0)
        videos = np.repeat(np.arange(len(rows)), lengths)
        # Counted through all pairs of the batch, but from where each video's own begin.
        places = np.arange(len(videos)) + np.repeat(ends - np.cumsum(lengths), lengths)
        device = batch.label_ids.device
        pairs = torch.from_numpy(np.stack([videos, self._classes[places].astype(np.int64)])).to(device)
        forgiven = torch.zeros(len(rows), self.classes, dtype=torch.bool, device=device)
        forgiven[pairs[0], pairs[1]] = True
        return forgiven

    def fingerprint(self) -> str:
        """A short hash of the file's footer, which sums up all its rows: whether this is the same teacher."""
        footer = repr(self._file.metadata.to_dict())
        return hashlib.blake2b(footer.encode(), digest_size=8).hexdigest()

    def _opened(self) -> Any:
        try:
            # Without pre_buffer, which keeps all that was read until the end.
            file = pq.ParquetFile(self.path, pre_buffer=False)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", path=self.path) from error
        except pa.ArrowException as error:
            raise DataError(f"is no parquet file; expected {_EXPECTED}", path=self.path) from error
        types = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
        for column, fits in _COLUMNS.items():
            if column not in types:
                raise DataError(
                    f"has no column {column!r} (it has: {', '.join(types)}); expected {_EXPECTED}",
                    path=self.path,
                )
            if not fits(types[column]):
                raise DataError(f"{column!r} is of {types[column]}; expected {_EXPECTED}", path=self.path)
        if not file.metadata.num_rows:
            raise DataError("holds no predictions", path=self.path)
        return file

    def _check_names(self, label_names: Sequence[str]) -> None:
        """Against those of the first piece, which is enough to notice another vocabulary."""
        if "names" not in self._file.schema_arrow.names:
            return
        piece = next(self._read("labels", "names"))
        labels, names = (self._column(piece, name).flatten().to_pylist() for name in ("labels", "names"))
        for label, name in dict(zip(labels, names, strict=True)).items():
            if 0 <= label < len(label_names) and name not in (label_names[label], f"class {label}"):
                raise DataError(
                    f"class {label:,} is {name!r} here and {label_names[label]!r} in the training; its "
                    "labels mean other things",
                    path=self.path,
                )

    def _read(self, *columns: str) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._file.iter_batches(batch_size=_ROWS, columns=list(columns))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"is damaged: {error}", path=self.path) from error

    def _column(self, piece: pa.RecordBatch, name: str) -> Any:
        column = piece.column(name)
        if column.null_count:
            raise DataError(f"{name!r} is empty in some rows", path=self.path)
        return column

    def _labels(self, batches: Iterable[Batch]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which rows are in the training set, and its labels as sorted row · C + class."""
        seen = np.zeros(len(self._hashes), np.bool_)
        positives = [np.empty(0, np.int64)]
        for batch in batches:
            if batch.rated_ids is not None:
                raise DataError(
                    "forgives missing labels, and people rated the training videos; train without a teacher",
                    path=self.path,
                )
            rows = self._rows(batch.ids)
            seen[rows] = True
            rows = np.repeat(rows, batch.label_counts.numpy())
            positives.append(rows * self.classes + batch.label_ids.numpy())
        return seen, np.unique(np.concatenate(positives))

    def _negatives(self, seen: NDArray[np.bool_], positives: NDArray[np.int64]) -> Iterator[_Piece]:
        """The listed negatives of the training set: for each its row, its class and its score's level."""
        for piece, rows, classes, scores in self._pairs():
            pairs = rows * self.classes + classes
            at = np.searchsorted(positives, [piece.start * self.classes, piece.stop * self.classes])
            chosen = seen[rows] & ~np.isin(pairs, positives[slice(*at)], kind="sort")
            yield piece, rows[chosen], classes[chosen], scores[chosen]

    def _pairs(self) -> Iterator[_Piece]:
        start = 0
        for read in self._read("labels", "probabilities"):
            piece = slice(start, start := start + len(read))
            labels, scores = self._column(read, "labels"), self._column(read, "probabilities")
            lengths = pc.list_value_length(labels).to_numpy()
            if not (lengths == pc.list_value_length(scores).to_numpy()).all():
                raise DataError("'labels' and 'probabilities' differ in length", path=self.path)
            classes = labels.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
            values = scores.flatten().to_numpy(zero_copy_only=False)
            if len(classes) and not 0 <= classes.min() <= classes.max() < self.classes:
                wrong = classes.max() if classes.min() >= 0 else classes.min()
                raise DataError(
                    f"scores class {wrong:,}; the training has {self.classes:,} classes "
                    f"(0 to {self.classes - 1:,})",
                    path=self.path,
                )
            if not ((values >= 0) & (values <= 1)).all():
                raise DataError("holds numbers that are not probabilities", path=self.path)
            levels = (values.astype(np.float16) + np.float16(0)).view(np.uint16).astype(np.int64)
            yield piece, np.repeat(np.arange(piece.start, piece.stop), lengths), classes, levels

    def _rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Where videos stand in the file."""
        wanted = _hashes(ids)
        at = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        missing = np.flatnonzero(self._hashes[at] != wanted)
        if len(missing):
            raise DataError(
                f"has no row for the training video {ids[missing[0]]!r}; score the same data with "
                "`tagreel predict RUN --data TRAIN --out FILE.parquet --top-k 100`",
                path=self.path,
            )
        return self._order[at]


def _hashes(ids: Any) -> NDArray[np.int64]:
    """64 bits of each id, the same within this process; of six million two agree once in a million times."""
    names = ids.to_pylist() if isinstance(ids, pa.Array) else ids
    return np.fromiter(map(hash, names), np.int64, len(names))
