"""A multi-layer perceptron with identity shortcuts between the descriptor and the classifier.

He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", 2016, arXiv 1603.05027, on vectors: the
strongest plain body we found for video-level features (docs/log.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.product import Linear


class ResidualMLP(nn.Module):
    """(B, D) in, (B, width) out: h₀ = BN(W x), hᵢ₊₁ = hᵢ + Drop(V ReLU(BN(U hᵢ))), at last BN and ReLU."""

    def __init__(self, dim: int, *, width: int = 1024, blocks: int = 2, dropout: float = 0.3) -> None:
        super().__init__()
        self.out_dim = width
        self.enter = Linear(dim, width)
        self.enter_norm = MaskedBatchNorm(width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(blocks))
        self.exit_norm = MaskedBatchNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, then refine `blocks` times."""
        x = self.enter_norm(self.enter(x))
        for block in self.blocks:
            x = x + block(x)
        return torch.relu(self.exit_norm(x))


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = Linear(width, width)
        self.norm = MaskedBatchNorm(width)
        self.outer = Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.outer(torch.relu(self.norm(self.inner(x)))))  # type: ignore[no-any-return]
