"""Context Gating: a vector weighs its own entries, y = σ(W x + b) ∘ x.

Miech, Laptev, Sivic, "Learnable pooling with Context Gating for video classification", 2017,
arXiv 1706.06905, eq. 1. As in the authors' code, batch norm takes the place of the bias by default; eq. 1
as printed is `batch_norm=False`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.product import product


class ContextGating(nn.Module):
    """(B, D) in, (B, D) out.

    `remove_diagonal` keeps an entry from gating itself, an option of the authors' code.
    """

    def __init__(self, dim: int, *, batch_norm: bool = True, remove_diagonal: bool = False) -> None:
        super().__init__()
        self.out_dim = dim
        self.remove_diagonal = remove_diagonal
        self.weight = nn.Parameter(torch.randn(dim, dim) / math.sqrt(dim))
        self.norm = MaskedBatchNorm(dim) if batch_norm else None
        self.bias = None if batch_norm else nn.Parameter(torch.randn(dim) / math.sqrt(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Gate each of the B vectors by itself."""
        return torch.sigmoid(self.gate(x)) * x

    def gate(self, x: Tensor) -> Tensor:
        """The gate before its sigmoid, (B, D)."""
        gate = product(x, self.weight)
        if self.remove_diagonal:
            gate = gate - torch.diagonal(self.weight) * x
        if self.norm is not None:
            return self.norm(gate)  # type: ignore[no-any-return]
        assert self.bias is not None
        return gate + self.bias
