"""A prediction file as a model: it knows the scores of some videos and looks at no frame.

So what any program once predicted is evaluated, and is a member of an ensemble, like a model that runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from tagreel.batch import Batch
from tagreel.errors import DataError
from tagreel.files import written_whole
from tagreel.lists import Lists, Places
from tagreel.model import Model
from tagreel.parts import Part
from tagreel.predictions import PredictionFile, table, write
from tagreel.sampling import AllFrames

_BATCH = 1024
_ROWS = 8192


class Recorded(Model):
    """The probabilities in a file that `tagreel predict` wrote, or that was submitted in 2017, 2018 or 2019.

    A class outside of a video's list has probability 0. A ranking (2019) has no scores: place i of n, from 0,
    gets (n - i) / n, as in the starter code's evaluation, and a segment that no class lists 0 everywhere.
    `classes` is by default the number of `label_names`, and without those as many as the file mentions; names
    are taken from the file where none are given. Raises `DataError` where it is not a prediction file of such
    classes, or gives one of them another name.

    In memory are 6 bytes a tag (8 beyond 65,536 classes), and 32 bytes and the id of each video; while it is
    read a tag takes twice as much; of a ranking a tag takes 30 bytes then, and a segment 200.
    """

    def __init__(
        self, path: str | Path, *, classes: int | None = None, label_names: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.path = str(path)
        self.name = Path(path).name
        self.features, self.optional, self.batch_size = {}, (), _BATCH
        if label_names is not None:
            classes = len(label_names) if classes is None else classes
            self.name_classes(classes, label_names)
        named = label_names is not None and self.has_label_names
        self._names = {c: name for c, name in enumerate(label_names or ()) if name != f"class {c}"}
        file = PredictionFile(path)
        self._partial = file.partial
        self._lists = self._transposed(file, classes) if file.is_ranking else self._read(file, classes)
        if not len(self._ids):
            raise DataError("holds no predictions", path=self.path)
        self._places = Places([Places.hashes(piece.to_pylist()) for piece in self._ids.chunks])
        if self._places.twice is not None:
            first, second = self._places.twice
            raise DataError(
                f"has the video {self._ids[second].as_py()!r} twice, as its row {first + 1:,} and its row "
                f"{second + 1:,}; expected one row a video",
                path=self.path,
            )
        if classes is None:
            classes = int(self._lists.classes.max(initial=0)) + 1
        self.name_classes(classes, [self._names.get(c, f"class {c}") for c in range(classes)])
        # A file that mentions some classes alone does not know the names of all.
        self.has_label_names = named or len(self._names) == classes

    @property
    def reads(self) -> Part:
        """One frame, of no stream."""
        return partial(AllFrames, max_frames=1)

    def settings(self) -> Any:
        """What identifies the predictions, in whatever format they came."""
        return {"predictions": self._fingerprint}

    def probabilities(self, batch: Batch) -> Tensor:
        """Probabilities (B, C) of the videos of a batch by their ids, on the device of its labels.

        Raises `DataError` for a video that the file does not have.
        """
        return self._lists.dense(self._find(batch.ids), self.classes, batch.label_ids.device)

    def write(self, path: Path) -> None:
        """Write the same predictions as a .parquet file."""
        tables = map(self._table, range(0, len(self._ids), _ROWS))
        with written_whole(path) as temporary:
            write(temporary, tables, ".parquet", partial=self._partial)

    def _read(self, file: PredictionFile, classes: int | None) -> Lists:
        """Take over the ids of rows; their lists."""
        ids, lengths = [], [np.zeros(0, np.int64)]
        labels: list[NDArray[Any]] = [np.zeros(0, np.uint16)]
        scores = [np.zeros(0, np.float32)]
        for rows in file.rows(classes=classes):
            ids.append(pa.array(rows.ids, pa.large_string()))
            lengths.append(rows.lengths)
            labels.append(_narrow(rows.classes))
            scores.append(rows.scores.astype(np.float32))
            if rows.names is not None:
                self._learn_names(rows.classes, rows.names)
        self._ids = pa.chunked_array(ids, pa.large_string())
        return Lists(np.concatenate(lengths), np.concatenate(labels), np.concatenate(scores))

    def _transposed(self, file: PredictionFile, classes: int | None) -> Lists:
        """Take over the ids of a ranking, a row a class; their lists, by segment."""
        numbers: dict[str, int] = {}
        found = [np.zeros(0, np.int32)]
        labels: list[NDArray[Any]] = [np.zeros(0, np.uint16)]
        scores = [np.zeros(0, np.float32)]
        for label, segments in file.ranking(classes=classes):
            n = len(segments)
            found.append(
                np.fromiter((numbers.setdefault(name, len(numbers)) for name in segments), np.int32, n)
            )
            labels.append(_narrow(np.full(n, label)))
            scores.append((np.arange(n, 0, -1) / max(n, 1)).astype(np.float32))
        self._ids = pa.chunked_array([pa.array(numbers, pa.large_string())])
        rows = np.concatenate(found)
        found.clear()
        lengths = np.bincount(rows, minlength=len(numbers))
        order = np.argsort(rows, kind="stable")
        del rows
        ordered = np.concatenate(labels)[order]
        labels.clear()
        return Lists(lengths, ordered, np.concatenate(scores)[order])

    def _learn_names(self, classes: NDArray[np.int64], names: list[str]) -> None:
        """Take over the names of classes; raises `DataError` for one that goes by another name already."""
        labels, places = np.unique(classes, return_index=True)
        for label, name in zip(labels.tolist(), [names[at] for at in places], strict=True):
            if name == f"class {label}":
                continue
            known = self._names.setdefault(label, name)
            if known != name:
                raise DataError(
                    f"class {label:,} is {name!r} here and {known!r} elsewhere; its labels mean other things",
                    path=self.path,
                )

    def _find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of videos, -1 where a ranking does not list a segment."""
        places = self._places.find(ids)
        for missing in np.flatnonzero(places < 0).tolist():
            if not self._partial:
                raise DataError(
                    f"has no row for the video {ids[missing]!r}; expected one for every video to score, as "
                    "`tagreel predict` writes them for the same --data",
                    path=self.path,
                )
            if ":" not in ids[missing]:
                raise DataError(
                    f"ranks segments, each named video:start, and {ids[missing]!r} is none; it can score "
                    "segments alone",
                    path=self.path,
                )
        return places

    def _table(self, first: int) -> pa.Table:
        """Some rows as a file has them."""
        lists = self._lists
        offsets = lists.offsets[first : first + _ROWS + 1]
        tags = slice(offsets[0], offsets[-1])
        ids = self._ids.slice(first, _ROWS).to_pylist()
        assert lists.numbers is not None
        return table(ids, np.diff(offsets), lists.classes[tags], lists.numbers[tags], self.label_names)

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for piece in self._ids.chunks:
            digest.update(json.dumps(piece.to_pylist()).encode())
        for array in (self._lists.offsets, self._lists.classes, self._lists.numbers):
            assert array is not None
            digest.update(array.tobytes())
        return digest.hexdigest()


def _narrow(classes: NDArray[np.int64]) -> NDArray[Any]:
    return classes.astype(np.uint16 if classes.max(initial=0) < 1 << 16 else np.int32)
