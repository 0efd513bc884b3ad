"""NeXtVLAD: NetVLAD on groups of an expanded frame, each group attended by its own gate.

    ẋ = W_e x + b_e;   α_g = σ(w_g ẋ + b_g);   a_gk = softmax_k(BN(W_gk ẋ))
    V[j, k] = Σ_t Σ_g α_g(ẋ_t) a_gk(ẋ_t) (x̃_t^g[j] - c[j, k])

x̃^g is the g-th slice of ẋ; every cluster's column of V is scaled to length one. Lin, Xiao, Fan, arXiv
1811.05014, eq. 4-8. As in the authors' code, batch norm takes the place of the bias of the cluster logits
and of the last L2 normalisation. Their code lets padded frames into the statistics of the former; ours not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.initializers import he_truncated_
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.sums import Sums


class NeXtVLAD(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, λD/G · K) out.

    `clusters` is the paper's K, `groups` its G, `expansion` its λ; λD must be a multiple of G.
    """

    def __init__(self, dim: int, *, clusters: int = 128, groups: int = 8, expansion: int = 2) -> None:
        super().__init__()
        if min(clusters, groups, expansion) < 1:
            options = f"clusters={clusters}, groups={groups}, expansion={expansion}"
            raise ValueError(f"NeXtVLAD: {options}; each has to be at least 1")
        width = expansion * dim
        if width % groups:
            raise ValueError(f"NeXtVLAD: expansion · dim = {width} is not a multiple of groups={groups}")
        self.groups, self.clusters = groups, clusters
        self.out_dim = width // groups * clusters
        self.expand = nn.Linear(dim, width)
        self.attention = nn.Linear(width, groups)
        self.assignment = nn.Parameter(he_truncated_(torch.empty(width, groups * clusters), width))
        self.norm = MaskedBatchNorm(groups * clusters)
        self.centres = nn.Parameter(he_truncated_(torch.empty(width // groups, clusters), width // groups))
        self.out_norm = MaskedBatchNorm(self.out_dim)
        with torch.no_grad():
            for linear in (self.expand, self.attention):
                he_truncated_(linear.weight, linear.in_features)
                linear.bias.zero_()

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool the real frames."""
        return self.finish(self.accumulate(frames, mask))

    def accumulate(self, frames: Tensor, mask: Tensor | None = None) -> Sums:
        """The sums of the groups (B, λD/G, K) and of their shares (B, 1, K)."""
        B, T, _ = frames.shape
        G, K = self.groups, self.clusters
        expanded = self.expand(frames)  # (B, T, λD)
        attention = torch.sigmoid(self.attention(expanded))  # (B, T, G)
        if mask is not None:
            attention = attention.masked_fill(~mask[..., None], 0.0)
        logits = self.norm(expanded @ self.assignment, mask)  # (B, T, G·K)
        assigned = logits.view(B, T * G, K).softmax(-1) * attention.view(B, T * G, 1)  # (B, T·G, K)
        grouped = expanded.view(B, T * G, -1)  # (B, T·G, λD/G)
        summed = torch.einsum("bnj,bnk->bjk", grouped.to(assigned.dtype), assigned)
        return Sums((summed, assigned.sum(1)[:, None, :]))

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        summed, total = state.sums
        vlad = summed - self.centres * total  # (B, λD/G, K)
        vlad = F.normalize(vlad, dim=1, eps=1e-6).flatten(1)  # (B, λD/G · K)
        return self.out_norm(vlad)  # type: ignore[no-any-return]
