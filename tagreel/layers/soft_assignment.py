"""Soft assignment of frames to clusters, a(x) = softmax(W x + b): the first half of every cluster pool.

Arandjelović et al., "NetVLAD", 2015, arXiv 1511.07247, eq. 3; on video frames Miech, Laptev, Sivic, arXiv
1706.06905, section 3.1. As in the latter's code, batch norm takes the place of the bias b by default.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.product import Scaled, product
from tagreel.layers.ragged import Mask, masked


class SoftAssignment(nn.Module):
    """Frames (..., D) and their mask in, (..., K) out: each real frame's shares of the K `clusters`."""

    def __init__(self, dim: int, *, clusters: int = 64, batch_norm: bool = True) -> None:
        super().__init__()
        if clusters < 1:
            raise ValueError(f"clusters={clusters}; expected at least 1")
        self.out_dim = clusters
        self.weight = nn.Parameter(torch.randn(dim, clusters) / math.sqrt(dim))
        self.norm = MaskedBatchNorm(clusters) if batch_norm else None
        self.bias = nn.Parameter(torch.randn(clusters) / math.sqrt(dim)) if not batch_norm else 0.0

    def forward(self, frames: Tensor | Scaled, mask: Mask = None) -> Tensor:
        """Shares of the real frames, which sum to 1; none for padded ones."""
        logits = product(frames, self.weight)
        logits = self.norm(logits, mask) if self.norm is not None else logits + self.bias
        # Masked after the softmax: a zeroed score would still take a share.
        return masked(logits.softmax(-1), mask)  # (..., K)
