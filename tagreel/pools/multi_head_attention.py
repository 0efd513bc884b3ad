"""Attention pooling by several learned queries, each with values of its own.

    V_h = W_h Σ_t softmax_t(q_hᵀ x_t) x_t + b_h

Lee et al., "Set Transformer", 2019, arXiv 1810.00825, pooling by multihead attention, in its plainest form:
a learned query times a matrix of keys is one vector again, so q_h is that vector; and since the weights sum
to one, the frames are pooled first and multiplied by W_h once a video instead of once a frame.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tagreel.layers.ragged import Mask, outer, total
from tagreel.layers.softmax_over_frames import SMALLEST, exp_over_frames, softmax_over_frames
from tagreel.layers.sums import Sums


class MultiHeadAttention(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, width) out: `heads` vectors side by side, width/heads each."""

    packs = True

    def __init__(self, dim: int, *, heads: int = 8, width: int = 1024) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise ValueError(f"MultiHeadAttention: width={width} is not a multiple of heads={heads}")
        self.out_dim = width
        self.queries = nn.Parameter(torch.randn(dim, heads) / math.sqrt(dim))
        self.values = nn.Parameter(torch.randn(heads, dim, width // heads) / math.sqrt(dim))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, frames: Tensor, mask: Mask = None) -> Tensor:
        """Pool the real frames; a video without any gives the bias."""
        weights = softmax_over_frames(frames @ self.queries, mask)  # (..., heads)
        return self._value(outer(weights, frames.to(weights.dtype), mask))

    def accumulate(self, frames: Tensor, mask: Mask = None) -> Sums:
        """The weighed sums of the frames (B, heads, D) and of their weights (B, heads, 1)."""
        weights = exp_over_frames(frames @ self.queries, mask)  # (..., heads)
        summed = outer(weights, frames.to(weights.dtype), mask)
        return Sums((summed, total(weights, mask)[..., None]))

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        summed, weight = state.sums
        return self._value((summed / weight.clamp_min(SMALLEST)).to(self.values.dtype))

    def _value(self, pooled: Tensor) -> Tensor:
        values = torch.einsum("bhd,hdv->bhv", pooled, self.values.to(pooled.dtype))
        return values.flatten(1) + self.bias
