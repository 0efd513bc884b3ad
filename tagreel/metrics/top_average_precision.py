"""Mean average precision as the YouTube-8M starter code has it: over each video's best classes only.

A class's ranking holds just the videos that had it among their `top_k` best; the positives of the class in
other videos are never found, but count. The YouTube-8M starter code, `eval_util.EvaluationMetrics` and
`mean_average_precision_calculator.py`, which gives ties in a shuffled order, here together.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tagreel.metrics._options import at_least_one, one_of, same_options
from tagreel.metrics._pool import Pool
from tagreel.metrics._precision import average_precision, mean_over_classes
from tagreel.metrics._scored import Array, Scored, ordered
from tagreel.metrics._support import Support


class TopMeanAveragePrecision:
    """mAP over the `top_k` best classes of each video, from scores (B, C) and labels (B, C).

    A class without positives counts as 0 with `empty_classes="zero"`, as in the starter code of 2017 and
    2018, and is left out with "skip", as in that of 2019. 8 bytes a pair are kept: 160
    MB per million videos at k = 20.
    """

    def __init__(self, *, top_k: int = 20, empty_classes: Literal["zero", "skip"] = "zero") -> None:
        self.top_k = at_least_one("top_k", top_k)
        self.empty_classes = one_of("empty_classes", empty_classes, ("zero", "skip"))
        self.reset()

    def reset(self) -> None:
        """Forgets every video."""
        self._pairs = Pool(np.int64)  # one number each: class, score and whether it hit, to be sorted by
        self._support = Support()

    def update(self, scores: Array, labels: Array) -> None:
        """Counts B more videos: scores (B, C) and labels (B, C), positive where greater than 0."""
        self.add(Scored(scores, labels))

    def add(self, scored: Scored) -> None:
        """Counts B more videos that were checked already."""
        self._support.add(scored)
        top = scored.top(self.top_k)
        self._pairs.append((top.classes << 33) + ((ordered(top.scores) + 2**31) << 1) + top.hits)

    def merge(self, other: TopMeanAveragePrecision) -> None:
        """Counts the videos of another one as well."""
        same_options(self, other, "top_k", "empty_classes")
        self._support.merge(other._support)
        self._pairs.extend(other._pairs)

    def compute(self) -> float:
        """The mean over the classes; 0 where no video has a label."""
        ap, _ = self.per_class()
        return mean_over_classes(ap, empty_classes=self.empty_classes)

    def per_class(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Average precision (C,), NaN for a class without positives, and the number of positives (C,)."""
        support = self._support.counts
        pairs = np.sort(self._pairs.array())
        bounds = np.searchsorted(pairs, np.arange(len(support) + 1) << 33)
        ap = np.full(len(support), np.nan)
        for c in np.flatnonzero(support):
            of_class = pairs[bounds[c] : bounds[c + 1]]
            scores, hits = of_class >> 1, (of_class & 1).astype(bool)
            ap[c] = average_precision(scores, scores[hits], int(support[c]))
        return ap, support
