"""Squeeze-and-excitation context gating: y = σ(W₂ ReLU(BN(W₁ x))) ∘ x.

Lin, Xiao, Fan, "NeXtVLAD: An Efficient Neural Network to Aggregate Frame-level Features for Large-scale
Video Classification", 2018, arXiv 1811.05014, section 3.2. Neither matrix has a bias and nothing is
normalised before the sigmoid, as in the authors' code; 2 D² / r weights instead of Context Gating's D².
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagreel.layers.initializers import he_truncated_
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.product import product


class SEGating(nn.Module):
    """(B, D) in, (B, D) out; `reduction` is the paper's r (8 in its experiments, 16 in its submission)."""

    def __init__(self, dim: int, *, reduction: int = 8) -> None:
        super().__init__()
        if dim % reduction:
            raise ValueError(f"SEGating: width {dim} is not a multiple of reduction={reduction}")
        self.out_dim = dim
        self.squeeze = nn.Parameter(he_truncated_(torch.empty(dim, dim // reduction), dim))
        self.norm = MaskedBatchNorm(dim // reduction)
        self.excite = nn.Parameter(he_truncated_(torch.empty(dim // reduction, dim), dim // reduction))

    def forward(self, x: Tensor) -> Tensor:
        """Gate each of the B vectors by itself."""
        hidden = torch.relu(self.norm(product(x, self.squeeze)))
        return torch.sigmoid(product(hidden, self.excite)) * x
