"""NetRVLAD: NetVLAD without centres, the frames themselves summed under soft assignment.

    V[d, k] = Σ_t a_k(x_t) x_t[d],   a(x) = softmax(W x + b)

then every cluster's column is scaled to length one, and the flattened V once more. Miech, Laptev, Sivic,
arXiv 1706.06905, section 3.1; "LightVLAD" in their code.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.product import Scaled
from tagreel.layers.ragged import Mask, outer
from tagreel.layers.soft_assignment import SoftAssignment
from tagreel.layers.sums import Sums


class NetRVLAD(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, D·K) out; `clusters` is K, the descriptor's index d·K + k."""

    packs = takes_scaled = True

    def __init__(self, dim: int, *, clusters: int = 64, batch_norm: bool = True) -> None:
        super().__init__()
        self.out_dim = dim * clusters
        self.assignment = SoftAssignment(dim, clusters=clusters, batch_norm=batch_norm)

    def forward(self, frames: Tensor | Scaled, mask: Mask = None) -> Tensor:
        """Pool the real frames; a video without any gives zeros."""
        return self.finish(self.accumulate(frames, mask))

    def accumulate(self, frames: Tensor | Scaled, mask: Mask = None) -> Sums:
        """The sums of the frames under their shares, (B, D, K)."""
        assigned = self.assignment(frames, mask)  # (..., K)
        return Sums((outer(frames, assigned, mask),))

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        (vlad,) = state.sums
        vlad = F.normalize(vlad, dim=1, eps=1e-6).flatten(1)  # (B, D·K)
        return F.normalize(vlad, dim=1, eps=1e-6)
