"""The rectifier with a ceiling, min(max(x, 0), ceiling), as a part that a recipe can name."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Rectifier(nn.Module):
    """(..., D) in, (..., D) out; ReLU6 as in the starter code's deep bag of frames, None is plain ReLU."""

    def __init__(self, dim: int, *, ceiling: float | None = 6.0) -> None:
        super().__init__()
        if ceiling is not None and not ceiling > 0:
            raise ValueError(f"Rectifier: ceiling={ceiling}; expected more than 0, or None")
        self.out_dim = dim
        self.ceiling = ceiling

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` is not needed: padded frames are zeros and stay so."""
        return torch.clamp(x, 0.0, self.ceiling)
