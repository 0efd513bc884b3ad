"""Learned weights: one number a model, trained alone, on videos that the models were not trained on.

    min over w ≥ 0 of  mean over videos of  Σ_c BCE(Σ_m w_m p_mc / Σ_m w_m, y_c)

The stacking script of Tang, Zhang, Wang, Wang, "Non-local NetVLAD Encoding for Video Classification", 2018:
each number begins at 1/M, and Adam takes steps of 2e-4; five times that ends at the same weights, sooner.
Theirs may fall below zero; here they stop there.
"""

from __future__ import annotations

from itertools import chain, islice, repeat

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from tagreel.ensembles._panel import Panel


class Learned:
    """Weights after `steps` steps of Adam at rate `lr`, each on one batch of videos, in turn."""

    def __init__(self, *, lr: float = 1e-3, steps: int = 2000) -> None:
        if lr <= 0 or steps < 1:
            raise ValueError(f"lr={lr}, steps={steps}; expected a rate above 0 and at least 1 step")
        self.lr, self.steps = lr, steps

    def __call__(self, panel: Panel) -> Tensor:
        """Weights (M,)."""
        M = len(panel.names)
        weights = torch.full((M,), 1 / M, requires_grad=True)
        optimizer = torch.optim.Adam([weights], lr=self.lr)
        turns = chain.from_iterable(panel.batches() for _ in repeat(None))
        with torch.enable_grad():
            for scores, labels in islice(turns, self.steps):
                # Away from 0 and 1, where one video that all models are sure and wrong of outweighs the rest.
                average = (scores @ (weights / weights.sum())).clamp(1e-6, 1 - 1e-6)
                loss = binary_cross_entropy(average, labels.to(average.dtype), reduction="sum") / len(scores)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                with torch.no_grad():
                    weights.clamp_(min=0)
        found = weights.detach().double()
        return found / found.sum()
