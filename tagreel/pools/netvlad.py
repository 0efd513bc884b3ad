"""NetVLAD: residuals to learned centres, summed under soft assignment.

    V[d, k] = Σ_t a_k(x_t) (x_t[d] - c[d, k]),   a(x) = softmax(W x + b)

then every cluster's column is scaled to length one, and the flattened V once more. Arandjelović et al.,
"NetVLAD", 2015, arXiv 1511.07247, eq. 4; on video frames Miech, Laptev, Sivic, arXiv 1706.06905, section 3.1.
As in the latter's code, batch norm takes the place of the bias b by default. Their code feeds a fixed number
of frames drawn at random; here any number goes in, and padding is masked after the softmax: a zeroed score
would still take a share of it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.product import Scaled
from tagreel.layers.ragged import Mask, outer, total
from tagreel.layers.soft_assignment import SoftAssignment
from tagreel.layers.sums import Sums


class NetVLAD(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, D·K) out; `clusters` is K, the descriptor's index d·K + k."""

    packs = takes_scaled = True

    def __init__(self, dim: int, *, clusters: int = 64, batch_norm: bool = True) -> None:
        super().__init__()
        self.out_dim = dim * clusters
        self.assignment = SoftAssignment(dim, clusters=clusters, batch_norm=batch_norm)
        self.centres = nn.Parameter(torch.randn(dim, clusters) / math.sqrt(dim))

    def forward(self, frames: Tensor | Scaled, mask: Mask = None) -> Tensor:
        """Pool the real frames; a video without any gives zeros."""
        return self.finish(self.accumulate(frames, mask))

    def accumulate(self, frames: Tensor | Scaled, mask: Mask = None) -> Sums:
        """The sums of the frames (B, D, K) and of their shares (B, 1, K)."""
        assigned = self.assignment(frames, mask)  # (..., K)
        summed = outer(frames, assigned, mask)
        return Sums((summed, total(assigned, mask)[:, None, :]))

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        summed, shares = state.sums
        vlad = summed - self.centres * shares  # (B, D, K)
        vlad = F.normalize(vlad, dim=1, eps=1e-6).flatten(1)  # (B, D·K)
        return F.normalize(vlad, dim=1, eps=1e-6)
