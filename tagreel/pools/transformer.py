"""Transformer: one encoder layer over the frames of a video, then their mean.

    h = x + Attend(LN(x)),   y = h + V GELU(U LN(h)),   V = mean_t LN(y_t)

Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762, with the normalisation before each part
as in Xiong et al., 2020, arXiv 2002.04745. Positions are added where attention reads, after the
normalisation: frames of length one would drown in them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.product import Linear


class Transformer(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, D) out; D must be a multiple of `heads`.

    `expansion` is the width of the inner layer in D. `positions` lets attention read the order of the frames.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        expansion: int = 4,
        positions: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if heads < 1 or expansion < 1 or dim % heads:
            options = f"heads={heads}, expansion={expansion}"
            raise ValueError(
                f"Transformer: {options}; expected 1 or more, and width {dim} a multiple of heads"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"Transformer: dropout={dropout}; expected 0 to less than 1")
        self.out_dim = dim
        self.heads, self.ordered, self.dropout = heads, positions, dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.attention_in = Linear(dim, 3 * dim, bias=False)
        self.attention_out = Linear(dim, dim)
        self.inner_norm = nn.LayerNorm(dim)
        self.inner = Linear(dim, expansion * dim)
        self.outer = Linear(expansion * dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool the real frames; a video without any gives zeros."""
        if mask is None:
            mask = torch.ones_like(frames[..., 0], dtype=torch.bool)
        x = frames + self._drop(self._attend(self.attention_norm(frames), mask))  # (B, T, D)
        x = x + self._drop(self.outer(F.gelu(self.inner(self.inner_norm(x)))))
        x = self.norm(x).masked_fill(~mask[..., None], 0.0)
        return x.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)  # type: ignore[no-any-return]

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        B, T, D = x.shape
        if self.ordered:
            x = x + _positions(T, D, x.device).to(x.dtype)
        q, k, v = self.attention_in(x).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        # A video without frames attends to its padding, as the softmax of nothing is NaN; its mean is masked.
        seen = mask | ~mask.any(1, keepdim=True)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None, :])
        return self.attention_out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def _positions(frames: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines (T, D) of wavelengths from 2π to 10,000 · 2π, section 3.5 of the paper."""
    d = torch.arange(width, device=device)
    rate = torch.exp(-math.log(10_000.0) * (d - d % 2) / width)
    angles = torch.arange(frames, device=device)[:, None] * rate
    return torch.sin(angles + d % 2 * (math.pi / 2))
