"""Non-local NetVLAD: NetVLAD whose clusters look at each other before they are normalised.

    V[d, k] = Σ_t a_k(x_t) (x_t[d] - c[d, k]),   v̂_k = v_k + W Σ_j softmax_j(s · θ(v_k)ᵀ φ(v_j)) g(v_j)

then every cluster's column is scaled to length one, and the flattened V once more. Tang, Zhang, Wang, Chen,
Ma, Jiang, "Non-local NetVLAD Encoding for Video Classification", 2018, arXiv 1810.00207; fourth place of the
2018 challenge, code github.com/17Skye17/2nd-YouTube8M.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.non_local import NonLocal
from tagreel.layers.product import Scaled
from tagreel.layers.ragged import Mask, outer, total
from tagreel.layers.soft_assignment import SoftAssignment
from tagreel.layers.sums import Sums


class NonLocalNetVLAD(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, D·K) out; `clusters` is K, the descriptor's index d·K + k.

    `inner`, `scale` and `reuse_phi` are those of `NonLocal`.
    """

    packs = takes_scaled = True

    def __init__(
        self,
        dim: int,
        *,
        clusters: int = 64,
        inner: int = 64,
        scale: float | None = None,
        reuse_phi: bool = False,
    ) -> None:
        super().__init__()
        self.out_dim = dim * clusters
        self.assignment = SoftAssignment(dim, clusters=clusters)
        self.centres = nn.Parameter(torch.randn(dim, clusters) / math.sqrt(dim))
        self.non_local = NonLocal(dim, inner=inner, scale=scale, reuse_phi=reuse_phi)

    def forward(self, frames: Tensor | Scaled, mask: Mask = None) -> Tensor:
        """Pool the real frames; a video without any gives zeros."""
        return self.finish(self.accumulate(frames, mask))

    def accumulate(self, frames: Tensor | Scaled, mask: Mask = None) -> Sums:
        """The sums of the frames (B, K, D) and of their shares (B, K, 1)."""
        assigned = self.assignment(frames, mask)  # (..., K)
        return Sums((outer(frames, assigned, mask).transpose(1, 2), total(assigned, mask)[..., None]))

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        summed, shares = state.sums
        rows = summed - self.centres.T * shares  # (B, K, D)
        vlad = F.normalize(self.non_local(rows), dim=2, eps=1e-6).transpose(1, 2).flatten(1)  # (B, D·K)
        return F.normalize(vlad, dim=1, eps=1e-6)
