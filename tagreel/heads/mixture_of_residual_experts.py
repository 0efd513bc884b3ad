"""MoRE: experts that read hidden features with a shortcut, p_c = Σ_e softmax(W x)_ce σ(V x' + b)_ce.

    h = F(x),   x' = h + F(h)   with F one perceptron layer, then batch norm, then dropout

Huang et al. (CMU Informedia), "Video Representation Learning and Latent Concept Mining for Large-scale
Multi-label Video Classification", 2017, arXiv 1707.01408. The gates see x itself. The paper gives 1,152
numbers in, a width of 4,096 and an identity shortcut, which agree only when the residual block lies above the
first hidden layer; so read, MoRE24 has as many parameters as MoHCE12, as the paper says.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tagreel.layers.expert_trunk import Activation, ExpertTrunk
from tagreel.layers.gated_experts import GatedExperts


class MixtureOfResidualExperts(nn.Module):
    """(B, D) in, logits (B, C) out.

    `hidden` is the width of the hidden layers and `blocks` the number of residual blocks h + F(h). `shortcut`
    "input" is the other reading: x' = x + F'(F(x)) of the descriptor's own width D. `prior` is the
    probability that every expert starts with.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        experts: int = 8,
        hidden: int = 4096,
        blocks: int = 1,
        shortcut: Literal["hidden", "input"] = "hidden",
        activation: Activation = "relu",
        dropout: float = 0.2,
        prior: float = 0.5,
    ) -> None:
        super().__init__()
        if blocks < 1 or shortcut not in ("hidden", "input"):
            raise ValueError(f"blocks={blocks}, shortcut={shortcut!r}; expected at least 1, hidden or input")
        self.enter = None
        width, inside = dim, [hidden, dim]
        if shortcut == "hidden":
            self.enter = ExpertTrunk(dim, widths=(hidden,), activation=activation, dropout=dropout)
            width, inside = hidden, [hidden]
        self.blocks = nn.ModuleList(
            ExpertTrunk(width, widths=tuple(inside), activation=activation, dropout=dropout)
            for _ in range(blocks)
        )
        self.mixture = GatedExperts(dim, classes, experts=experts, expert_dim=width, prior=prior)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the mixed probabilities."""
        h = x if self.enter is None else self.enter(x)[-1]
        for block in self.blocks:
            h = h + block(h)[-1]
        return self.mixture(x, h)  # type: ignore[no-any-return]
