"""Generalised mean, between the mean of a feature over the frames (p = 1) and its largest value (p = ∞).

    V[d] = (1/F Σ_t max(x_t[d], ε)^p_d)^(1/p_d)

Radenović, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018, arXiv 1711.02512,
eq. 3, with p learned. It is made for features that are never negative, and clamping ours would lose half of
what they say. So it is taken twice, of the positive and of the negative part of every feature: each stays in
the range where the power is defined, nothing is lost, and no root is taken of parts that cancel, where its
slope has no bound. p stays above 1, where large frames count for more.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.ragged import Mask, count, masked, total
from tagreel.layers.sums import Sums

_SMALLEST = 1e-6  # ε, of which the logarithm is taken


class GeM(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, 2·D) out: means of the positive parts, then of the negative ones.

    Each has an exponent p = 1 + softplus(`exponent`) of its own, which starts at `p`.
    """

    def __init__(self, dim: int, *, p: float = 3.0) -> None:
        super().__init__()
        if not 1 < p < 100:
            raise ValueError(f"GeM: p={p}; expected more than 1 and less than 100")
        self.out_dim = 2 * dim
        self.exponent = nn.Parameter(torch.full((2 * dim,), math.log(math.expm1(p - 1))))

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool the real frames; a video without any gives zeros."""
        B, T, _ = frames.shape
        p = 1 + F.softplus(self.exponent)
        # In logarithms a large power neither overflows nor vanishes.
        logs = p * torch.cat([frames, -frames], dim=-1).clamp_min(_SMALLEST).log()  # (B, T, 2·D)
        count = frames.new_full((B, 1), T)
        if mask is not None:
            logs = logs.masked_fill(~mask[..., None], torch.finfo(logs.dtype).min)
            count = mask.sum(1, keepdim=True).clamp_min(1)
        return torch.exp((logs.logsumexp(1) - count.to(logs.dtype).log()) / p)

    def accumulate(self, frames: Tensor, mask: Mask = None) -> Sums:
        """The sums of the powers (B, 2·D) and the number of frames (B, 1).

        The powers themselves, as logarithms do not add: in float64, which holds them.
        """
        p = 1 + F.softplus(self.exponent.double())
        powers = torch.cat([frames, -frames], dim=-1).double().clamp_min(_SMALLEST) ** p  # (..., 2·D)
        return Sums((total(masked(powers, mask), mask), count(frames, mask)))

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        powers, number = state.sums
        p = 1 + F.softplus(self.exponent.double())
        return ((powers.clamp_min(0) / number.clamp_min(1)) ** (1 / p)).to(self.exponent.dtype)
