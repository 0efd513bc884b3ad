"""PERR, precision at equal recall rate: how many of a video's n best classes are among its n labels.

Abu-El-Haija et al., YouTube-8M: A Large-Scale Video Classification Benchmark, 2016, arXiv:1609.08675, which
averages over the videos that have labels. The YouTube-8M starter code
(`eval_util.calculate_precision_at_equal_recall_rate`) also counts those without, as 0.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tagreel.metrics._options import one_of, same_options
from tagreel.metrics._scored import Array, Scored, Top

# Few videos have more labels than this; to rank all videos as deep as those need would be slow.
_DEPTH = 20


class PrecisionAtEqualRecall:
    """PERR over scores (B, C) and labels (B, C).

    `unlabelled` says what a video without labels is: "zero" as in the starter code, or "skip" as in the
    paper. As in the starter code only a class with a score above 0 can be a hit, so the scores have to be
    probabilities. Among equal scores the lower class ranks first.
    """

    def __init__(self, *, unlabelled: Literal["zero", "skip"] = "zero") -> None:
        self.unlabelled = one_of("unlabelled", unlabelled, ("zero", "skip"))
        self.reset()

    def reset(self) -> None:
        """Forgets every video."""
        # By number of labels: integers, so that no order of adding up changes the last bits.
        self._hits: Counter[int] = Counter()
        self._videos: Counter[int] = Counter()

    def update(self, scores: Array, labels: Array) -> None:
        """Counts B more videos: scores (B, C) and labels (B, C), positive where greater than 0."""
        self.add(Scored(scores, labels))

    def add(self, scored: Scored) -> None:
        """Counts B more videos that were checked already."""
        num_labels = np.bincount(scored.positives[0], minlength=len(scored))
        top = scored.top(_DEPTH)
        deep = num_labels > _DEPTH
        if not deep.any():
            self._count(top, num_labels)
            return
        self._count(top[~deep], num_labels[~deep])
        self._count(scored[np.flatnonzero(deep)].top(int(num_labels[deep].max())), num_labels[deep])

    def _count(self, top: Top, num_labels: NDArray[np.int64]) -> None:
        hits = np.cumsum(top.hits & (top.scores > 0), axis=1)
        for n in np.unique(num_labels).tolist():
            videos = num_labels == n
            self._videos[n] += int(videos.sum())
            self._hits[n] += int(hits[videos, n - 1].sum()) if n else 0

    def merge(self, other: PrecisionAtEqualRecall) -> None:
        """Counts the videos of another one as well."""
        same_options(self, other, "unlabelled")
        self._hits.update(other._hits)
        self._videos.update(other._videos)

    def compute(self) -> float:
        """PERR of all videos so far; 0 where there is none to count."""
        videos = self._videos.total() - (self._videos[0] if self.unlabelled == "skip" else 0)
        total = sum(hits / n for n, hits in sorted(self._hits.items()) if n)
        return total / videos if videos else 0.0
