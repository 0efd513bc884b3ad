"""Dropout as a part that a recipe can name."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.ragged import Mask


class Dropout(nn.Module):
    """(..., D) in, (..., D) out; each number is zeroed with probability `rate` in training."""

    packs = True

    def __init__(self, dim: int, *, rate: float = 0.5) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"Dropout: rate={rate}; expected 0 to less than 1")
        self.out_dim = dim
        self.rate = rate

    def forward(self, x: Tensor, mask: Mask = None) -> Tensor:
        """Drop, and scale what is left by 1 / (1 - rate)."""
        return F.dropout(x, self.rate, self.training)
