"""Mixture of logistic experts, one mixture a class: p_c = Σ_e softmax(gates)_ce σ(expert_ce).

Jordan and Jacobs, 1994; on YouTube-8M Abu-El-Haija et al., arXiv 1609.08675, section 5.2.3, and the starter
code, whose gate has one unit more than there are experts: the null expert, which always says no. CMU
Informedia (2017) leaves it out; Willow's code can make the gates' matrix one of low rank. The references
return p and clip it in the loss; here the logit of p is computed in log space, exactly and finitely.
"""

from __future__ import annotations

from tagreel.layers.gated_experts import GatedExperts


class MixtureOfExperts(GatedExperts):
    """(B, D) in, logits (B, C) out; gates without bias, experts with, both Xavier as in the starter code.

    `gate_rank` r splits the gates' matrix into D → r → gates (Willow's code); None leaves it whole. `prior`
    is the probability that every expert starts with.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        experts: int = 2,
        null_expert: bool = True,
        gate_rank: int | None = None,
        prior: float = 0.5,
    ) -> None:
        super().__init__(
            dim, classes, experts=experts, null_expert=null_expert, gate_rank=gate_rank, prior=prior
        )
