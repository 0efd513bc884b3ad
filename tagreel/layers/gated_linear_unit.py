"""Gated linear unit: one projection gates another, y = σ(W₁ x + b₁) ∘ (W₂ x + b₂).

Dauphin et al., "Language Modeling with Gated Convolutional Networks", 2016, arXiv 1612.08083, eq. 1. What
Miech, Laptev, Sivic, arXiv 1706.06905, table 2, hold Context Gating against, with twice its weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tagreel.layers.product import Linear


class GatedLinearUnit(nn.Module):
    """(B, D) in, (B, D) out."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim
        self.gate = Linear(dim, dim)
        self.linear = Linear(dim, dim)
        with torch.no_grad():
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=1 / math.sqrt(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Project twice and multiply."""
        return torch.sigmoid(self.gate(x)) * self.linear(x)  # type: ignore[no-any-return]
