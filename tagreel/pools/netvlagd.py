"""NetVLAGD: NetRVLAD, each feature of each cluster weighed by a gate that is the same for all videos.

    V[d, k] = σ(g[d, k]) Σ_t a_k(x_t) x_t[d],   a(x) = softmax(W x + b)

then every cluster's column is scaled to length one, and the flattened V once more. In no paper: an option of
the code of Miech, Laptev, Sivic, arXiv 1706.06905 (github.com/antoine77340/Youtube-8M-WILLOW, `vlagd`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.product import Scaled
from tagreel.layers.ragged import Mask, outer
from tagreel.layers.soft_assignment import SoftAssignment
from tagreel.layers.sums import Sums


class NetVLAGD(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, D·K) out; `clusters` is K, the descriptor's index d·K + k."""

    packs = takes_scaled = True

    def __init__(self, dim: int, *, clusters: int = 64, batch_norm: bool = True) -> None:
        super().__init__()
        self.out_dim = dim * clusters
        self.assignment = SoftAssignment(dim, clusters=clusters, batch_norm=batch_norm)
        self.gates = nn.Parameter(torch.randn(dim, clusters) / math.sqrt(dim))

    def forward(self, frames: Tensor | Scaled, mask: Mask = None) -> Tensor:
        """Pool the real frames; a video without any gives zeros."""
        return self.finish(self.accumulate(frames, mask))

    def accumulate(self, frames: Tensor | Scaled, mask: Mask = None) -> Sums:
        """The sums of the frames under their shares, (B, D, K)."""
        assigned = self.assignment(frames, mask)  # (..., K)
        return Sums((outer(frames, assigned, mask),))

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        (summed,) = state.sums
        vlagd = torch.sigmoid(self.gates) * summed  # (B, D, K)
        vlagd = F.normalize(vlagd, dim=1, eps=1e-6).flatten(1)  # (B, D·K)
        return F.normalize(vlagd, dim=1, eps=1e-6)
