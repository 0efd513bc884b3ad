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
from tagreel.layers.product import Frozen, Linear, Scaled, product
from tagreel.layers.ragged import Mask, Ragged, masked, outer, total
from tagreel.layers.sums import Sums


class NeXtVLAD(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, λD/G · K) out.

    `clusters` is the paper's K, `groups` its G, `expansion` its λ; λD must be a multiple of G.
    """

    packs = takes_scaled = True

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
        self.expand = Linear(dim, width)
        self.attention = Linear(width, groups)
        self.assignment = nn.Parameter(he_truncated_(torch.empty(width, groups * clusters), width))
        self.norm = MaskedBatchNorm(groups * clusters)
        self.centres = nn.Parameter(he_truncated_(torch.empty(width // groups, clusters), width // groups))
        self.out_norm = MaskedBatchNorm(self.out_dim)
        with torch.no_grad():
            for linear in (self.expand, self.attention):
                he_truncated_(linear.weight, linear.in_features)
                linear.bias.zero_()

    def forward(self, frames: Tensor | Scaled, mask: Mask = None) -> Tensor:
        """Pool the real frames."""
        return self.finish(self.accumulate(frames, mask))

    def accumulate(self, frames: Tensor | Scaled, mask: Mask = None) -> Sums:
        """The sums of the groups (B, λD/G, K) and of their shares (B, 1, K)."""
        G = self.groups
        expanded = self.expand(frames)  # (..., λD)
        attention, logits = self._gates(frames, expanded)
        attention = masked(torch.sigmoid(attention), mask)  # (..., G)
        shares = self.norm(logits, mask).unflatten(-1, (G, -1)).softmax(-1)  # (..., G, K)
        # From here on a group is a frame: (B, T·G, ...), or (ΣT·G, ...).
        assigned = (shares * attention[..., None]).flatten(-3, -2)
        grouped = expanded.unflatten(-1, (G, -1)).flatten(-3, -2)
        groups = mask.times(G) if isinstance(mask, Ragged) else None
        summed = outer(grouped, assigned, groups)
        return Sums((summed, total(assigned, groups)[:, None, :]))

    def _gates(self, frames: Tensor | Scaled, expanded: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the attention (..., G) and of the clusters (..., G·K), before batch norm.

        The expansion is linear, so W_k (W_e x + b_e) = (W_k W_e) x + W_k b_e: for many frames it takes fewer
        operations to multiply the weights first, and then frames of width D instead of λD.
        """
        assignment: Tensor | Frozen = self.assignment
        if isinstance(assignment, Frozen):  # all of it was multiplied before
            return self.attention(frames), assignment(frames)
        D, width = self.expand.in_features, self.expand.out_features
        if torch.compiler.is_exporting() or expanded.numel() // width * (width - D) <= width * D:
            return self.attention(expanded), product(expanded, self.assignment)
        attention, bias = self.attention.weight.t(), self.attention.bias
        weight = self.expand.weight.t()  # (D, λD)
        return (
            product(frames, product(weight, attention), self.expand.bias @ attention + bias),
            product(frames, product(weight, self.assignment), self.expand.bias @ self.assignment),
        )

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        summed, shares = state.sums
        vlad = summed - self.centres * shares  # (B, λD/G, K)
        vlad = F.normalize(vlad, dim=1, eps=1e-6).flatten(1)  # (B, λD/G · K)
        return self.out_norm(vlad)  # type: ignore[no-any-return]
