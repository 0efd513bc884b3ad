"""Weights that somebody knows already, such as those of CMU Informedia's table 4: 36, 35, 34, ..., 22."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tagreel.ensembles._panel import Panel


class Weighted:
    """The given `weights`, one a model in their order; what counts is each one's share of their sum."""

    def __init__(self, *, weights: tuple[float, ...] = ()) -> None:
        for weight in weights:
            if not 0 <= weight < math.inf:
                raise ValueError(f"weights holds {weight}; expected numbers of 0 or more")
        if weights and not 0 < sum(weights) < math.inf:
            raise ValueError(f"weights has the sum {sum(weights)}; expected more than 0")
        self.weights = weights

    def __call__(self, panel: Panel) -> Tensor:
        """Weights (M,); raises `ValueError` when there are not M."""
        if len(self.weights) != len(panel.names):
            raise ValueError(
                f"weights has {len(self.weights):,} numbers for {len(panel.names):,} models; expected one "
                f"each, in the order {', '.join(panel.names)}"
            )
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return weights / weights.sum()
