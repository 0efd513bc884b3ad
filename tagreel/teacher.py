"""What a teacher, a model trained before, says of the training videos, and what its student makes of it.

    tagreel train RECIPE --data TRAIN --teacher MODEL --set training.distill=0.5 --out RUN

Distillation, `distill` = λ: the student learns (1 - λ) · label + λ · the teacher's probability, class by
class. Cross entropy is linear in its target, so this is the mixture of the two losses. Hinton, Vinyals, Dean,
"Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531; with λ = 0.5 in Skalic and Austin's
code for YouTube-8M, 2018 (github.com/miha-skalic/youtube8mchallenge).

Labels that are likely missing, `forgive`: of every class, the share of its negatives that the teacher scores
highest is not held against the student. Fonseca, Hershey, Plakal, Ellis, Jansen, Moore, Serra, "Addressing
Missing Labels in Large-Scale Sound Event Recognition Using a Teacher-Student Framework With Loss Masking",
2020, arXiv 2005.00878. Where labels are mixed with a teacher's word as well, the word still counts there:

    (1 - λ) · loss(labels, but for the forgiven) + λ · loss(probabilities)

The teacher is a file of predictions, the `TOP_K` best classes of every video, which `ask` has a model write:
whole rows would take 40 times the room with YouTube-8M's classes. A class outside of a video's list has
probability 0, and as a negative scores below all listed ones of its class; where a class has fewer listed
negatives than the share asks for, those are all that can be forgiven.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagreel.batch import Batch
from tagreel.checkpoint import TAGS, find, load, model_files
from tagreel.errors import DataError
from tagreel.evaluate import check_names, scoring_loader
from tagreel.files import read_json, write_json
from tagreel.lists import Lists, Places
from tagreel.predict import predict
from tagreel.predictions import PredictionFile, Rows
from tagreel.source import Source

TOP_K = 100
_LEVELS = 0x3C00 + 1
"""Half-precision numbers from 0 to 1; their bits, read as integers, lie in the same order."""

_Piece = tuple[slice, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class Teacher:
    """A file of predictions: what it makes of a batch's labels, by the shares `forgive` and `distill`.

    The file is read in pieces, never whole; raises `DataError` where it holds no predictions for `classes`
    classes of these names. In memory are 24 bytes a video; with `distill` 8 more and 4 a listed class (400
    for the `TOP_K` that `ask` keeps), for a moment twice that; with `forgive` 2 a forgiven pair, and while
    `compare` runs 60 KB a class and 16 bytes a label. Beyond 65,536 classes each class takes 2 bytes more.
    Probabilities are kept, and told apart, as far as half precision does; what ties at the threshold stays
    in the loss, so that never more than the share is forgiven.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        classes: int,
        distill: float = 0.0,
        forgive: float = 0.0,
        label_names: Sequence[str] | None = None,
    ) -> None:
        self.path, self.classes, self.distill, self.forgive = str(path), classes, distill, forgive
        self.pairs = 0
        self._file = PredictionFile(path)
        if self._file.is_ranking:
            raise DataError("is a ranking; a teacher gives probabilities", path=self.path)
        self._label_type = np.uint16 if classes <= 1 << 16 else np.int32
        ids: list[NDArray[np.int64]] = []
        kept: list[tuple[NDArray[Any], ...]] = []
        for rows in self._file.rows(classes=classes):
            if label_names is not None and not ids:
                self._check_names(rows, label_names)
            ids.append(Places.hashes(rows.ids))
            if distill:
                kept.append((rows.lengths, rows.classes.astype(self._label_type), _halved(rows.scores)))
        if not ids:
            raise DataError("holds no predictions", path=self.path)
        self._places = Places(ids)
        if self._places.twice is not None:
            first, second = self._places.twice
            raise DataError(
                f"the same video as record {first:,}; expected one row for each",
                path=self.path,
                record=second,
            )
        nothing = (np.zeros(len(self._places), np.int64), np.empty(0, self._label_type))
        self._listed = Lists(*map(np.concatenate, zip(*kept, strict=True))) if distill else Lists(*nothing)
        self._forgiven = Lists(*nothing)

    def __len__(self) -> int:
        return len(self._places)

    def compare(self, batches: Iterable[Batch]) -> None:
        """Find what to forgive, given the labels of the whole training set, once through.

        Raises `DataError` for a video that the teacher has not scored, and for one that people rated: it
        lacks no label.
        """
        C = self.classes
        seen, positives = self._labels(batches)
        allowed = (self.forgive * (seen.sum() - np.bincount(positives % C, minlength=C))).astype(np.int64)
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
        found = np.empty(taken.sum(), self._label_type)
        lengths = np.zeros(len(seen), np.int64)
        self.pairs = 0
        for piece, rows, classes, scores in self._negatives(seen, positives):
            kept = scores >= thresholds[classes]
            start, self.pairs = self.pairs, self.pairs + int(kept.sum())
            found[start : self.pairs] = classes[kept]
            lengths[piece] = np.bincount(rows[kept] - piece.start, minlength=piece.stop - piece.start)
        self._forgiven = Lists(lengths, found)

    def teach(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """What the student is to learn of a batch: targets (B, C), and how much each counts (None: all do).

        Raises `DataError` for a video that the teacher has not scored.
        """
        labels, counted = batch.labels(self.classes), batch.rated(self.classes)
        if self.forgive:
            counted = torch.ones_like(labels).masked_fill(self.forgiven(batch), 0.0)
        if not self.distill:
            return labels, counted
        taught = self.probabilities(batch)
        if counted is None:
            return torch.lerp(labels, taught, self.distill), None
        # Of a class whose label does not count the teacher's word is all there is.
        counts = torch.lerp(counted, torch.ones_like(counted), self.distill)
        return torch.lerp(counted * labels, taught, self.distill) / counts, counts

    def probabilities(self, batch: Batch) -> Tensor:
        """(B, C), of the classes that it listed if there is a share to distill; where the labels lie."""
        return self._listed.dense(self._rows(batch.ids), self.classes, batch.label_ids.device)

    def forgiven(self, batch: Batch) -> Tensor:
        """(B, C), True for the negatives to forgive; where the batch's labels lie."""
        return self._forgiven.dense(self._rows(batch.ids), self.classes, batch.label_ids.device) > 0

    def _check_names(self, rows: Rows, label_names: Sequence[str]) -> None:
        """Against those of some rows, which is enough to notice another vocabulary."""
        for label, name in zip(rows.classes.tolist(), rows.names or (), strict=False):
            if name not in (label_names[label], f"class {label}"):
                raise DataError(
                    f"class {label:,} is {name!r} here and {label_names[label]!r} in the training; its "
                    "labels mean other things",
                    path=self.path,
                )

    def _labels(self, batches: Iterable[Batch]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which rows are in the training set, and its labels as sorted row · C + class."""
        seen = np.zeros(len(self._places), np.bool_)
        positives = [np.empty(0, np.int64)]
        for batch in batches:
            if batch.rated_ids is not None:
                raise DataError(
                    "is to find missing labels, and people rated the training videos, so that none is "
                    "missing; train with --set training.forgive=0",
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
        for rows in self._file.rows(classes=self.classes):
            piece = slice(start, start := start + len(rows.ids))
            levels = _halved(rows.scores).view(np.uint16).astype(np.int64)
            yield piece, np.repeat(np.arange(piece.start, piece.stop), rows.lengths), rows.classes, levels

    def _rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Where videos stand in the file."""
        places = self._places.find(ids)
        missing = np.flatnonzero(places < 0)
        if len(missing):
            raise DataError(
                f"has no row for the training video {ids[missing[0]]!r}; score the same data with "
                "`tagreel predict RUN --data TRAIN --out FILE.parquet --top-k 100`",
                path=self.path,
            )
        return places


def fingerprint(teacher: Path) -> str:
    """A short hash by which a teacher is known again: of a file, or of the files of a model's folder.

    Raises `DataError` when it is neither.
    """
    digest = hashlib.blake2b(digest_size=8)
    # How a model's classes are shown makes no difference: it is asked for them as trained.
    files = (
        [path for path in model_files(find(teacher)) if path.name != TAGS] if teacher.is_dir() else [teacher]
    )
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", path=str(path)) from error
    return digest.hexdigest()


def ask(
    model: Path,
    data: Source,
    out: Path,
    *,
    device: torch.device,
    threads: int = 1,
    skip_damaged: int = 0,
    trust: tuple[str, ...] = (),
    on_batch: Callable[[int], None] | None = None,
) -> None:
    """Write the predictions of a model or an ensemble on `data` to `out`, unless they lie there already.

    Beside it a note says whose they are. Asking that was killed goes on behind the last whole part.
    """
    note = out.with_suffix(".json")
    whose = {"teacher": fingerprint(model), "data": data.fingerprint(), "top_k": TOP_K}
    if out.exists() and note.exists() and read_json(note) == whose:
        return
    note.unlink(missing_ok=True)
    teacher = load(model, device=device, trust=trust)
    check_names(teacher, data)
    loader = scoring_loader(teacher, data, threads=threads, skip_damaged=skip_damaged)
    predict(teacher, loader, out, device=device, top_k=TOP_K, on_batch=on_batch)
    write_json(note, whose)


def _halved(scores: NDArray[Any]) -> NDArray[np.float16]:
    halved: NDArray[np.float16] = scores.astype(np.float16) + np.float16(0)  # which makes 0 of -0
    return halved
