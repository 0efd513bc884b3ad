"""Attention pooling: a weighted mean of the frames, V = Σ_t softmax_t(wᵀ x_t) x_t.

Huang, Yuan, Lan, Jiang, Hauptmann, "Video Representation Learning and Latent Concept Mining for
Large-scale Multi-label Video Classification", 2017, arXiv 1707.01408:
P = Σ_t α_t E(x_t), where the encoder E is a transform of the stream. They leave the score open; here it is
one linear unit, without the bias that the softmax would cancel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tagreel.layers.ragged import Mask, total
from tagreel.layers.softmax_over_frames import SMALLEST, exp_over_frames, softmax_over_frames
from tagreel.layers.sums import Sums


class Attention(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, D) out."""

    packs = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim
        self.score = nn.Parameter(torch.randn(dim, 1) / math.sqrt(dim))

    def forward(self, frames: Tensor, mask: Mask = None) -> Tensor:
        """Pool the real frames; a video without any gives zeros."""
        weights = softmax_over_frames(frames @ self.score, mask)  # (..., 1)
        return total(weights * frames, mask)

    def accumulate(self, frames: Tensor, mask: Mask = None) -> Sums:
        """The weighed sums of the frames (B, D) and of their weights (B, 1)."""
        weights = exp_over_frames(frames @ self.score, mask)  # (..., 1)
        return Sums((total(weights * frames, mask), total(weights, mask)))

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        summed, weight = state.sums
        return (summed / weight.clamp_min(SMALLEST)).to(self.score.dtype)
