"""Calibration: whether a score of 0.3 means that 3 pairs in 10 are true.

    ECE = Σ_b n_b / n · |mean score in bin b - fraction of positives in bin b|

over all (video, class) pairs. Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using
Bayesian Binning, AAAI 2015; Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv:1706.04599,
equation 3. We differ in the bins: nearly all scores of a tagger are close to 0, where equal steps of
probability would put them into one bin, so the edges are equal steps of the logit.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagreel.metrics._options import at_least_one, same_options
from tagreel.metrics._scored import Array, Scored

# The upper 18 bits of a float32, sign excluded: a fine histogram whose cells are 1/512 of their octave.
_LOW_BITS = 14
_CELLS = (int(np.float32(1).view(np.int32)) >> _LOW_BITS) + 1
# The lower bits of a block of pairs sum up to less than this.
_BLOCK = 2**19
_LOW_SUMS = _BLOCK << _LOW_BITS
# Outside of these logits, 6e-6 and 0.9975, there is one bin each.
_FIRST_LOGIT, _LAST_LOGIT = -12.0, 6.0


class Calibration:
    """Expected calibration error of scores (B, C) in [0, 1] against labels (B, C).

    The inner edges of the `bins` divide the logits from -12 to 6 evenly, and are rounded to 9 bits; the
    outer bins reach to 0 and 1. All counts are integers, so the result is exact and the state stays 1.5 MB.
    """

    def __init__(self, *, bins: int = 20) -> None:
        self.bins = at_least_one("bins", bins)
        self.reset()

    def reset(self) -> None:
        """Forgets every video."""
        self._pairs = np.zeros(_CELLS, np.int64)
        self._positives = np.zeros(_CELLS, np.int64)
        # Within a cell a score is linear in its lower bits; their integer sum makes the mean score exact.
        self._low = np.zeros(_CELLS, np.int64)

    def update(self, scores: Array, labels: Array) -> None:
        """Counts B more videos: scores (B, C) and labels (B, C), positive where greater than 0."""
        self.add(Scored(scores, labels))

    def add(self, scored: Scored) -> None:
        """Counts B more videos that were checked already."""
        if not len(scored):
            return
        low, high = (float(bound) for bound in scored.scores.aminmax())
        if low < 0 or high > 1:
            raise ValueError(
                f"calibration is of probabilities, 0 to 1; found scores from {low:g} to {high:g}; "
                "are they logits? take their sigmoid"
            )
        scores = scored.scores.cpu().view(-1)
        for start in range(0, len(scores), _BLOCK):
            bits = _bits(scores[start : start + _BLOCK])
            # One pass counts the pairs and sums their lower bits: float64, but whole numbers up to 2^53.
            weights = (bits & (2**_LOW_BITS - 1)).double().add_(_LOW_SUMS)
            sums = torch.bincount(bits >> _LOW_BITS, weights, _CELLS).numpy().astype(np.int64)
            self._pairs += sums // _LOW_SUMS
            self._low += sums % _LOW_SUMS
        cells = _bits(torch.from_numpy(scored.positive_scores)) >> _LOW_BITS
        self._positives += torch.bincount(cells, minlength=_CELLS).numpy()

    def merge(self, other: Calibration) -> None:
        """Counts the videos of another one as well."""
        same_options(self, other, "bins")
        self._pairs += other._pairs
        self._positives += other._positives
        self._low += other._low

    def compute(self) -> float:
        """The expected calibration error of all pairs so far; 0 before the first."""
        sums, positives, pairs = self._binned()
        return float(np.abs(sums - positives).sum() / max(1, pairs.sum()))

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Per bin (bins,): the mean score, the fraction of positives, and the number of pairs.

        Mean and fraction are NaN in an empty bin.
        """
        sums, positives, pairs = self._binned()
        count = np.where(pairs, pairs, np.nan)
        return sums / count, positives / count, pairs

    def edges(self) -> NDArray[np.float32]:
        """The inner edges (bins - 1,): a score on an edge belongs to the bin above it."""
        return (self._edge_cells() << _LOW_BITS).view(np.float32)

    def _edge_cells(self) -> NDArray[np.int32]:
        logits = np.linspace(_FIRST_LOGIT, _LAST_LOGIT, self.bins + 1)[1:-1]
        scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
        cells: NDArray[np.int32] = (scores.view(np.int32) + 2 ** (_LOW_BITS - 1)) >> _LOW_BITS
        return cells

    def _binned(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """The sum of the scores, the number of positives and the number of pairs, per bin."""
        first = np.arange(_CELLS, dtype=np.int32) << _LOW_BITS
        start = first.view(np.float32).astype(np.float64)
        step = (first + 1).view(np.float32).astype(np.float64) - start
        sums = start * self._pairs + step * self._low
        bins = np.searchsorted(self._edge_cells(), np.arange(_CELLS), side="right")
        totals = [
            np.bincount(bins, weights=values, minlength=self.bins)
            for values in (sums, self._positives, self._pairs)
        ]
        return totals[0].astype(np.float64), totals[1].astype(np.int64), totals[2].astype(np.int64)


def _bits(scores: Tensor) -> Tensor:
    """The bits of non-negative float32 scores as integers of the same order (-0.0 becomes 0)."""
    return scores.abs().view(torch.int32)
