"""What of the scores goes into a file: the best tags of every video, or of every class its best segments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagreel.errors import RecipeError
from tagreel.model import top_classes
from tagreel.predict_parts import Parts
from tagreel.predictions import table, write, write_ranking
from tagreel.ranking import Ranking
from tagreel.tags import TagSet


class Tagged:
    """A file of rows: of each video the `top_k` best of the classes `only`, or of the tags made of them."""

    def __init__(
        self,
        only: NDArray[np.int64],
        top_k: int,
        label_names: Sequence[str],
        *,
        tags: TagSet | None = None,
        threshold: bool = False,
    ) -> None:
        self.only, self.names, self.tags = only, label_names, tags
        self.thresholds = tags.thresholds if tags is not None and threshold else None
        if tags is not None:
            chosen = [np.isin(tag.classes, only).any() for tag in tags.tags]
            self.only, self.names = np.flatnonzero(chosen), tags.names
            if not len(self.only):
                raise RecipeError("--only: no tag is made of any of these classes; --raw has them as trained")
        self.top_k = min(top_k, len(self.only))

    def begin(self, number: int, parts: Parts) -> None:
        """Begin a part; its rows depend on no other's."""

    def rows(self, ids: Sequence[str], scores: Tensor) -> pa.Table:
        """The rows of some videos with their scores (B, C)."""
        if self.tags is not None:
            scores = self.tags.apply(scores)
        if self.thresholds is not None:
            scores = scores.masked_fill(scores < self.thresholds.to(scores.device), -1.0)
        if len(self.only) < scores.shape[1]:
            scores = scores[:, torch.from_numpy(self.only).to(scores.device)]
        best, classes = top_classes(scores, self.top_k)
        shown = (best >= 0).cpu().numpy()
        found = self.only[classes.cpu().numpy()][shown]
        return table(ids, shown.sum(1), found, best.float().cpu().numpy()[shown], self.names)

    def write(self, path: Path, parts: Parts, ending: str) -> None:
        """Write all rows in the format that the ending says; of tags the labels would be no classes."""
        write(path, parts.tables(), ending, labels=self.tags is None)


class Ranked:
    """A ranking: of each of the classes `only` its best segments, made of rows of what may be among them.

    A part holds what was not yet beaten by earlier parts, as far as they were there when it was begun. How
    much that is differs; the ranking of all parts does not.
    """

    def __init__(self, only: NDArray[np.int64], per_class: int) -> None:
        self.only, self.per_class = only, per_class
        self._forget()

    def begin(self, number: int, parts: Parts) -> None:
        """Begin a part: take in the earlier ones, which nothing that they have beaten can come before."""
        if self._taken and max(self._taken) >= number:
            self._forget()  # among equals the earlier one wins, and what was taken in may be later
        for earlier in range(number):
            if earlier not in self._taken and parts.find(earlier) is not None:
                self._take(parts.table(earlier))
                self._taken.add(earlier)
        self._taken.add(number)

    def rows(self, ids: Sequence[str], scores: Tensor) -> pa.Table:
        """The rows of some segments with their scores (B, C)."""
        for name in ids:
            if name.split() != [name]:
                raise RecipeError(
                    f"the video {name.rpartition(':')[0]!r} has a space in its id, by which a ranking parts "
                    "segments; write .parquet or .jsonl"
                )
        found = scores.float().cpu().numpy()[:, self.only]
        chosen = self._ranking.add(found)
        classes = self.only[np.nonzero(chosen)[1]]
        return table(ids, chosen.sum(1), classes, found[chosen])

    def write(self, path: Path, parts: Parts, ending: str) -> None:
        """Write the best of all parts."""
        self._forget()
        ids = []
        for rows in parts.tables():
            self._take(rows)
            ids.append(rows.column("id"))
        names = pa.chunked_array([piece for column in ids for piece in column.chunks], pa.string())
        names = names.cast(pa.large_string()).combine_chunks()
        best = zip(self.only.tolist(), self._ranking.best(), strict=True)
        write_ranking(path, ((label, names.take(pa.array(rows)).to_pylist()) for label, rows in best))

    def _forget(self) -> None:
        self._ranking = Ranking(len(self.only), self.per_class)
        self._taken: set[int] = set()

    def _take(self, rows: pa.Table) -> None:
        for piece in rows.to_batches(max_chunksize=4096):
            labels, scores = (piece.column(name) for name in ("labels", "probabilities"))
            segments = np.repeat(np.arange(len(piece)), pc.list_value_length(labels).to_numpy())
            classes = np.searchsorted(self.only, labels.flatten().to_numpy())
            found = np.zeros((len(piece), len(self.only)), np.float32)
            found[segments, classes] = scores.flatten().to_numpy()
            self._ranking.add(found)
