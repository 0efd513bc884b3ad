"""Logistic regression for each class, z = W x + b."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from tagreel.layers.initializers import he_truncated_
from tagreel.layers.product import Linear


class Logistic(nn.Module):
    """(B, D) in, logits (B, C) out.

    `init` is "xavier" in the YouTube-8M starter code and "he" in NeXtVLAD (arXiv 1811.05014). `prior` is the
    probability that every class starts with, 0.5 in both; where a few in thousands apply, a small one saves
    the first epochs (Lin et al., "Focal Loss", arXiv 1708.02002, section 4.1).
    """

    def __init__(
        self, dim: int, classes: int, *, init: Literal["xavier", "he"] = "xavier", prior: float = 0.5
    ) -> None:
        super().__init__()
        if not 0 < prior < 1:
            raise ValueError(f"Logistic: prior={prior}; expected more than 0 and less than 1")
        self.linear = Linear(dim, classes)
        with torch.no_grad():
            if init == "he":
                he_truncated_(self.linear.weight, dim)
            else:
                nn.init.xavier_uniform_(self.linear.weight)
            self.linear.bias.fill_(math.log(prior / (1 - prior)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes."""
        return self.linear(x)  # type: ignore[no-any-return]
