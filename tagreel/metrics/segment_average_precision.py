"""MAP@K over segments of videos, the score of YouTube-8M's 2019 challenge.

    MAP@K = 1/C · Σ_c AP_c,   AP_c = 1/M_c · Σ over the found positives p of class c of  tp(p) / n(p)

Each class ranks all segments and keeps the first K. Of those, the ones that nobody judged for the class are
then passed over: n(p) counts the judged segments that score at least as high as p and tp(p) the true ones,
while M_c counts the class's true segments, found or not. Kaggle, "The 3rd YouTube-8M Video Understanding
Challenge", 2019; the YouTube-8M starter code, `segment_eval_inference.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tagreel.metrics._columns import Columns
from tagreel.metrics._options import at_least_one, same_options
from tagreel.metrics._pool import Pool
from tagreel.metrics._precision import average_precision, by_class, mean_over_classes
from tagreel.metrics._scored import Array, Scored
from tagreel.metrics._support import Support


class SegmentMeanAveragePrecision:
    """MAP@K, `cut` = K, over scores (B, C), labels (B, C) and which classes were judged, `rated` (B, C).

    A score of 0 is no place in a ranking; equal scores count together, and those of which only some would be
    among the first K are all behind it. A class without true segments is left out. The cut needs all scores,
    4 bytes each, once there are more than K segments; beyond `memory_limit` bytes they go to a temporary file
    (in `TMPDIR`), with which the metric can be merged but not pickled. A judged pair takes 9 bytes besides.
    """

    def __init__(self, *, cut: int = 100_000, memory_limit: int = 2**30) -> None:
        self.cut = at_least_one("cut", cut)
        self.memory_limit = at_least_one("memory_limit", memory_limit)
        self.reset()

    def reset(self) -> None:
        """Forgets every segment."""
        self._all = Columns(self.memory_limit)
        self._segments = 0
        self._scores = Pool(np.float32)  # of the judged pairs
        self._classes = Pool(np.int32)
        self._hits = Pool(np.bool_)
        self._support = Support()

    def update(self, scores: Array, labels: Array, rated: Array | None = None) -> None:
        """Counts B more segments: scores, labels and `rated` (B, C), true and judged where greater than 0.

        Without `rated` all classes were judged.
        """
        self.add(Scored(scores, labels), rated)

    def add(self, scored: Scored, rated: Array | None = None) -> None:
        """Counts B more segments whose scores and labels were checked already."""
        judged = torch.ones_like(scored.scores) if rated is None else torch.as_tensor(rated)
        if judged.shape != scored.scores.shape:
            raise ValueError(f"rated is {tuple(judged.shape)}, the scores are {tuple(scored.scores.shape)}")
        self._support.add(scored)
        segments, classes = judged.gt(0).to(scored.scores.device).nonzero(as_tuple=True)
        self._scores.append(scored.scores[segments, classes].cpu().numpy())
        self._classes.append(classes.cpu().numpy())
        self._hits.append((scored.labels[segments, classes] > 0).cpu().numpy())
        self._all.append(scored.scores.cpu().numpy())
        self._segments += len(scored)

    def merge(self, other: SegmentMeanAveragePrecision) -> None:
        """Counts the segments of another one as well."""
        same_options(self, other, "cut")
        self._support.merge(other._support)
        self._scores.extend(other._scores)
        self._classes.extend(other._classes)
        self._hits.extend(other._hits)
        self._all.extend(other._all)
        self._segments += other._segments

    def compute(self) -> float:
        """The mean over the classes; 0 where no segment has a label."""
        ap, _ = self.per_class()
        return mean_over_classes(ap, empty_classes="skip")

    def per_class(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Average precision (C,), NaN for a class without true segments, and how many it has (C,)."""
        C, classes = len(self._support.counts), self._classes.array()
        support = np.bincount(classes[self._hits.array()], minlength=C)
        order, bounds = by_class(classes, C)
        scores, hits = self._scores.array()[order], self._hits.array()[order]
        behind = self._behind()
        ap = np.full(C, np.nan)
        for c in np.flatnonzero(support):
            judged = slice(bounds[c], bounds[c + 1])
            ranked = scores[judged] > behind[c]
            found = ranked & hits[judged]
            ap[c] = average_precision(scores[judged][ranked], scores[judged][found], int(support[c]))
        return ap, support

    def _behind(self) -> NDArray[np.float32]:
        """For each class (C,) what a score must exceed to be among its first `cut`."""
        behind = np.zeros(len(self._support.counts), np.float32)
        if self._segments > self.cut:
            place = self._segments - self.cut - 1
            for first, columns in self._all.blocks():
                behind[first : first + len(columns)] = np.partition(columns, place, axis=1)[:, place]
        return behind.clip(min=0)
