"""Global average precision, the score of the YouTube-8M challenges.

    GAP = 1/M · Σ_i rel(i) · P(i),   P(i) = 1/i · Σ_{j≤i} rel(j)

over the pooled ranking of the `top_k` best classes of every video, where M is the number of positive labels
of all videos, those outside of a video's best classes included. Abu-El-Haija et al., YouTube-8M: A
Large-Scale Video Classification Benchmark, 2016, arXiv:1609.08675; as computed by the YouTube-8M starter code
(`eval_util.calculate_gap`, `average_precision_calculator.py`) and on Kaggle.
"""

from __future__ import annotations

import heapq
import random
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tagreel.metrics._options import at_least_one, one_of, same_options
from tagreel.metrics._pool import Pool
from tagreel.metrics._precision import average_precision, ranks
from tagreel.metrics._scored import Array, Scored, ordered


class GlobalAveragePrecision:
    """GAP@k over scores (B, C) and labels (B, C).

    With `ties="together"` pairs of equal score count together, and the result depends on nothing but the set
    of videos. `ties="starter"` gives to the last bit what the starter code gives under Python 3 and the same
    NumPy; it shuffles ties in a way that depends on batches and their order, and takes 1 µs a pair.
    5 bytes a pair are kept: 100 MB per million videos at k = 20.
    """

    def __init__(self, *, top_k: int = 20, ties: Literal["together", "starter"] = "together") -> None:
        self.top_k = at_least_one("top_k", top_k)
        self.ties = one_of("ties", ties, ("together", "starter"))
        self.reset()

    def reset(self) -> None:
        """Forgets every video."""
        self._scores = Pool(np.float32)
        self._hits = Pool(np.bool_)
        self._positives = 0

    def update(self, scores: Array, labels: Array) -> None:
        """Counts B more videos: scores (B, C) and labels (B, C), positive where greater than 0."""
        self.add(Scored(scores, labels))

    def add(self, scored: Scored) -> None:
        """Counts B more videos that were checked already."""
        if self.ties == "starter":
            scores, hits = _class_major(scored, self.top_k)
        else:
            top = scored.top(self.top_k)
            scores, hits = top.scores, top.hits
        self._scores.append(scores)
        self._hits.append(hits)
        self._positives += len(scored.positives[0])

    def merge(self, other: GlobalAveragePrecision) -> None:
        """Counts the videos of another one as well."""
        same_options(self, other, "top_k", "ties")
        self._scores.extend(other._scores)
        self._hits.extend(other._hits)
        self._positives += other._positives

    def compute(self) -> float:
        """GAP of all videos so far; 0 where no video has a label."""
        scores, hits = self._scores.array(), self._hits.array()
        if self.ties == "starter":
            return _starter_average_precision(scores, hits, self._positives)
        return average_precision(scores, scores[hits], self._positives)

    def curve(self, points: int = 200) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Recall and precision down the pooled ranking, at up to `points` places, recall ascending.

        The places are positives evenly spaced by rank; equal scores count together.
        """
        scores, hits = self._scores.array(), self._hits.array()
        above, found = ranks(scores, scores[hits])
        at = np.unique(np.linspace(0, len(found) - 1, min(points, len(found))).round().astype(np.int64))
        return found[at] / max(self._positives, 1), found[at] / above[at]


def _class_major(scored: Scored, k: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The starter code's listing of a batch: the top pairs of class 0 in order of video, of class 1, ...

    Which of several equal scores at the k-th place is kept is for `numpy.argpartition` to say.
    """
    scores = scored.scores.cpu().numpy()
    k = min(k, scored.num_classes)
    classes = np.argpartition(scores, -k, axis=1)[:, -k:]
    order = np.argsort(classes.ravel(), kind="stable")
    hits = scored.labels.cpu().gather(1, torch.from_numpy(classes)) > 0
    return np.take_along_axis(scores, classes, axis=1).ravel()[order], hits.numpy().ravel()[order]


def _starter_average_precision(
    scores: NDArray[np.float32], hits: NDArray[np.bool_], num_positives: int
) -> float:
    """The starter code's average precision: a heap of (score, label), its array shuffled, a stable sort.

    The shuffle exists so that ties do not favour positives, but it permutes places in the heap, so the heap
    has to be built push by push.
    """
    if not num_positives or not len(scores):
        return 0.0
    # One integer orders as the tuple (score, label) does and is a third of its size.
    keys = ordered(scores) * 2 + hits
    heap: list[int] = []
    for key in keys.tolist():
        heapq.heappush(heap, key)
    keys = np.array(heap)
    del heap
    keys = keys[random.Random(0).sample(range(len(keys)), len(keys))]
    ranked = (keys & 1)[np.argsort(-(keys >> 1), kind="stable")]
    places = np.flatnonzero(ranked)
    found = np.arange(1.0, len(places) + 1)
    # cumsum adds from left to right as the original loop does; sum would not, and differ in the last bits
    return float(np.cumsum(found / (places + 1) * (1.0 / num_positives))[-1]) if len(places) else 0.0
