"""Deep MoE: experts that read two hidden layers above x, p_c = Σ_e softmax(W x)_ce σ(V h₂ + b)_ce.

Huang et al. (CMU Informedia), "Video Representation Learning and Latent Concept Mining for Large-scale
Multi-label Video Classification", 2017, arXiv 1707.01408, table 1: the residual experts without their
shortcut, of the same depth and number of parameters. The gates see x itself; the paper reports that deeper
gates hurt.
"""

from __future__ import annotations

from torch import Tensor, nn

from tagreel.layers.expert_trunk import Activation, ExpertTrunk
from tagreel.layers.gated_experts import GatedExperts


class DeepMixtureOfExperts(nn.Module):
    """(B, D) in, logits (B, C) out; `hidden` is the width of the `depth` hidden layers.

    `prior` is the probability that every expert starts with.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        experts: int = 8,
        hidden: int = 4096,
        depth: int = 2,
        activation: Activation = "relu",
        dropout: float = 0.2,
        prior: float = 0.5,
    ) -> None:
        super().__init__()
        self.trunk = ExpertTrunk(dim, widths=(hidden,) * depth, activation=activation, dropout=dropout)
        self.mixture = GatedExperts(dim, classes, experts=experts, expert_dim=hidden, prior=prior)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the mixed probabilities."""
        return self.mixture(x, self.trunk(x)[-1])  # type: ignore[no-any-return]
