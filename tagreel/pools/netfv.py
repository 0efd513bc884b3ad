"""NetFV: a trainable Fisher vector, first and second order residuals to learned Gaussians.

    F₁[d, k] = Σ_t a_k(x_t) (x_t[d] - c[d, k]) / σ[d, k]
    F₂[d, k] = Σ_t a_k(x_t) (((x_t[d] - c[d, k]) / σ[d, k])² - 1)

with a(x) = softmax(W x + b) and σ = s² + 1e-6; in each order every cluster's column is scaled to length one,
then the flattened whole. Miech, Laptev, Sivic, "Learnable pooling with Context Gating for video
classification", 2017, arXiv 1706.06905, section 3.1. Their code flattens F₂ too early, so that its columns
keep their lengths; their numbers rest on that, which is `intra_norm_second_order=False`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.ragged import Mask, outer, total
from tagreel.layers.soft_assignment import SoftAssignment
from tagreel.layers.sums import Sums


class NetFV(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, 2·D·K) out: all of F₁, then F₂, each with index d·K + k.

    `clusters` is K. `couple_weights` takes 0.01 · W for the centres c instead of numbers of their own.
    """

    packs = True

    def __init__(
        self,
        dim: int,
        *,
        clusters: int = 64,
        batch_norm: bool = True,
        couple_weights: bool = False,
        intra_norm_second_order: bool = True,
    ) -> None:
        super().__init__()
        self.out_dim = 2 * dim * clusters
        self.intra_norm_second_order = intra_norm_second_order
        self.assignment = SoftAssignment(dim, clusters=clusters, batch_norm=batch_norm)
        centres = None if couple_weights else nn.Parameter(torch.randn(dim, clusters) / math.sqrt(dim))
        self.centres = centres
        self.roots = nn.Parameter(1 + torch.randn(dim, clusters) / math.sqrt(dim))  # s of σ = s² + 1e-6

    def forward(self, frames: Tensor, mask: Mask = None) -> Tensor:
        """Pool the real frames; a video without any gives zeros."""
        return self.finish(self.accumulate(frames, mask))

    def accumulate(self, frames: Tensor, mask: Mask = None) -> Sums:
        """The sums of the frames and of their squares, (B, D, K), and of their shares, (B, 1, K)."""
        assigned = self.assignment(frames, mask)  # (..., K)
        sums = (outer(frames, assigned, mask), outer(frames.square(), assigned, mask))
        return Sums((*sums, total(assigned, mask)[:, None, :]))

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        sum1, sum2, shares = state.sums
        c = 0.01 * self.assignment.weight if self.centres is None else self.centres  # (D, K)
        deviation = self.roots.square() + 1e-6
        first = (sum1 - c * shares) / deviation  # (B, D, K)
        # The squares written out, so that no (B, T, D, K) is ever formed.
        second = (sum2 - 2 * c * sum1 + c.square() * shares) / deviation.square() - shares
        first = F.normalize(first, dim=1, eps=1e-6)
        if self.intra_norm_second_order:
            second = F.normalize(second, dim=1, eps=1e-6)
        orders = [F.normalize(order.flatten(1), dim=1, eps=1e-6) for order in (first, second)]
        return torch.cat(orders, dim=1)  # (B, 2·D·K)
