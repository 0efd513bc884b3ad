"""MoHCE: experts that read a hypercolumn, the descriptor and every hidden layer above it side by side.

    H(x) = [x, h₁, h₂],   p_c = Σ_e softmax(W x)_ce σ(V H(x) + b)_ce

Huang et al. (CMU Informedia), "Video Representation Learning and Latent Concept Mining for Large-scale
Multi-label Video Classification", 2017, arXiv 1707.01408. The hidden layers are those of their residual
experts, without the sum; the gates see x itself. The paper does not list the layers of the hypercolumn; with
these three, MoHCE12 has as many parameters as MoRE24, as it says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagreel.layers.expert_trunk import Activation, ExpertTrunk
from tagreel.layers.gated_experts import GatedExperts


class HypercolumnExperts(nn.Module):
    """(B, D) in, logits (B, C) out; `hidden` is the width of the `depth` hidden layers.

    `prior` is the probability that every expert starts with.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        experts: int = 12,
        hidden: int = 4096,
        depth: int = 2,
        activation: Activation = "relu",
        dropout: float = 0.2,
        prior: float = 0.5,
    ) -> None:
        super().__init__()
        self.trunk = ExpertTrunk(dim, widths=(hidden,) * depth, activation=activation, dropout=dropout)
        self.mixture = GatedExperts(
            dim, classes, experts=experts, expert_dim=dim + depth * hidden, prior=prior
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the mixed probabilities."""
        return self.mixture(x, torch.cat([x, *self.trunk(x)], dim=1))  # type: ignore[no-any-return]
