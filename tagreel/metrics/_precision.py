"""Average precision of one ranking, the sum that GAP and both mAPs share.

    AP = 1/M · Σ over the positives p of  tp(p) / n(p)

where n(p) counts the pairs and tp(p) the positives whose score is at least that of p, and M is the number
of positives, ranked or not. Equal scores thus count together, as in scikit-learn's
`average_precision_score`, and the order in which the pairs came cannot matter.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", np.float32, np.int64)


def average_precision(scores: NDArray[Number], positives: NDArray[Number], num_positives: int) -> float:
    """The average precision of a ranking, in [0, 1]; 0 where there is no positive.

    `scores` are those of all ranked pairs, `positives` those of the positive among them, each in any order.
    `num_positives` is M, which also counts the positives that were not ranked.
    """
    above, found = ranks(scores, positives)
    return float(np.sum(found / above) / num_positives) if num_positives else 0.0


def ranks(scores: NDArray[Number], positives: NDArray[Number]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each positive, best first: how many pairs, and how many positives, score at least as much."""
    if not len(positives):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    positives = np.sort(positives)
    # What lies below the last positive changes nothing: of a class's scores that is most of them.
    scores = np.sort(scores[scores >= positives[0]])
    above = len(scores) - np.searchsorted(scores, positives, side="left")
    found = len(positives) - np.searchsorted(positives, positives, side="left")
    return above[::-1], found[::-1]


def mean_over_classes(ap: NDArray[np.float64], *, empty_classes: str) -> float:
    """The mean of per-class average precisions, NaN (no positives) counted as 0 or left out; 0 of none."""
    values = np.nan_to_num(ap) if empty_classes == "zero" else ap[~np.isnan(ap)]
    return float(values.mean()) if len(values) else 0.0


def by_class(classes: NDArray[np.int32], num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order that sorts pairs by class, and where each class begins and ends in it (num_classes + 1,)."""
    bounds = np.zeros(num_classes + 1, np.int64)
    np.cumsum(np.bincount(classes, minlength=num_classes), out=bounds[1:])
    small = num_classes <= 2**16  # then NumPy sorts by digits, six times as fast
    return np.argsort(classes.astype(np.uint16) if small else classes, kind="stable"), bounds
