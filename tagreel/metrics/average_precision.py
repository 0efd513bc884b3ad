"""Mean average precision over all scores: each class ranks every video.

    mAP = 1/C · Σ_c AP_c,   AP_c = 1/M_c · Σ over the positives p of class c of  tp(p) / n(p)

where n(p) counts the videos, and tp(p) the positive videos, that class c scores at least as high as p: the
non-interpolated average precision of Manning, Raghavan and Schütze, Introduction to Information Retrieval,
2008, section 8.4, and the macro mean of scikit-learn's `average_precision_score`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tagreel.metrics._columns import Columns
from tagreel.metrics._options import at_least_one, one_of, same_options
from tagreel.metrics._pool import Pool
from tagreel.metrics._precision import average_precision, by_class, mean_over_classes
from tagreel.metrics._scored import Array, Scored
from tagreel.metrics._support import Support


class MeanAveragePrecision:
    """mAP over all scores (B, C) and labels (B, C), exact at any number of videos.

    A class without positives is left out with `empty_classes="skip"`, and counts as 0 with "zero". All
    scores are needed, 4 bytes each: beyond `memory_limit` bytes they go to a temporary file (in `TMPDIR`) of
    15 GB per million videos and 3,862 classes. A metric that has a file can be merged but not pickled.
    """

    def __init__(self, *, empty_classes: Literal["zero", "skip"] = "skip", memory_limit: int = 2**30) -> None:
        self.empty_classes = one_of("empty_classes", empty_classes, ("zero", "skip"))
        self.memory_limit = at_least_one("memory_limit", memory_limit)
        self.reset()

    def reset(self) -> None:
        """Forgets every video."""
        self._all = Columns(self.memory_limit)
        self._scores = Pool(np.float32)  # of the positives
        self._classes = Pool(np.int32)
        self._support = Support()

    def update(self, scores: Array, labels: Array) -> None:
        """Counts B more videos: scores (B, C) and labels (B, C), positive where greater than 0."""
        self.add(Scored(scores, labels))

    def add(self, scored: Scored) -> None:
        """Counts B more videos that were checked already."""
        self._support.add(scored)
        self._all.append(scored.scores.cpu().numpy())
        self._scores.append(scored.positive_scores)
        self._classes.append(scored.positives[1])

    def merge(self, other: MeanAveragePrecision) -> None:
        """Counts the videos of another one as well."""
        same_options(self, other, "empty_classes")
        self._support.merge(other._support)
        self._all.extend(other._all)
        self._scores.extend(other._scores)
        self._classes.extend(other._classes)

    def compute(self) -> float:
        """The mean over the classes; 0 where no video has a label."""
        ap, _ = self.per_class()
        return mean_over_classes(ap, empty_classes=self.empty_classes)

    def per_class(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Average precision (C,), NaN for a class without positives, and the number of positives (C,)."""
        support = self._support.counts
        order, bounds = by_class(self._classes.array(), len(support))
        positives = self._scores.array()[order]
        ap = np.full(len(support), np.nan)
        for first, columns in self._all.blocks():
            for c, scores in enumerate(columns, start=first):
                if support[c]:
                    ap[c] = average_precision(scores, positives[bounds[c] : bounds[c + 1]], int(support[c]))
        return ap, support
