"""How many positives each class has, which fixes the number of classes as well."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tagreel.metrics._scored import Scored


class Support:
    """Positives per class; `ValueError` when the number of classes changes on the way."""

    def __init__(self) -> None:
        self._counts: NDArray[np.int64] | None = None

    @property
    def counts(self) -> NDArray[np.int64]:
        """The number of positives of each class (C,); empty before the first batch."""
        return np.zeros(0, np.int64) if self._counts is None else self._counts.copy()

    def add(self, scored: Scored) -> None:
        """Counts the labels of a batch."""
        self._add(np.bincount(scored.positives[1], minlength=scored.num_classes))

    def merge(self, other: Support) -> None:
        """Counts what another one has counted."""
        if other._counts is not None:
            self._add(other._counts)

    def _add(self, counts: NDArray[np.int64]) -> None:
        if self._counts is not None and len(self._counts) != len(counts):
            raise ValueError(f"{len(counts):,} classes after batches with {len(self._counts):,}")
        self._counts = counts + self.counts if self._counts is not None else counts.copy()
