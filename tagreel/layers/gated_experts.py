"""Experts and the gates that weigh them, a softmax over the experts of every class.

    p_c = Σ_e softmax_e(W_g x)_ce σ(W_e h + b_e)_ce

Gates and experts may read different vectors: in CMU Informedia's deeper mixtures the gates see the
descriptor x, the experts hidden features h of it. The first weights are the starter code's (Xavier).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tagreel.layers.mixture_logits import mixture_logits
from tagreel.layers.product import Linear


class GatedExperts(nn.Module):
    """x (B, D) and h (B, `expert_dim`) in, logits (B, C) out; without h the experts read x too.

    `null_expert` is one gate more than there are experts, for an expert that always says no. `gate_rank` r
    makes the gates' matrix a product D → r → gates, without activation. `prior` is the probability that every
    expert starts with (0.5 in the references; where a few in thousands apply, a small one saves epochs).
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        experts: int = 2,
        null_expert: bool = False,
        gate_rank: int | None = None,
        expert_dim: int | None = None,
        prior: float = 0.5,
    ) -> None:
        super().__init__()
        if experts < 1 or (gate_rank is not None and gate_rank < 1):
            raise ValueError(f"experts={experts}, gate_rank={gate_rank}; expected at least 1")
        if not 0 < prior < 1:
            raise ValueError(f"prior={prior}; expected more than 0 and less than 1")
        self.classes, self.num_experts = classes, experts
        units = classes * (experts + null_expert)
        self.reduce = None if gate_rank is None else Linear(dim, gate_rank, bias=False)
        self.gates = Linear(dim if gate_rank is None else gate_rank, units, bias=False)
        self.experts = Linear(dim if expert_dim is None else expert_dim, classes * experts)
        with torch.no_grad():
            for linear in (self.reduce, self.gates, self.experts):
                if linear is not None:
                    nn.init.xavier_uniform_(linear.weight)
            self.experts.bias.fill_(math.log(prior / (1 - prior)))

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Logits of the mixed probabilities."""
        gates = self.gates(x if self.reduce is None else self.reduce(x))
        return mixture_logits(gates, self.experts(x if hidden is None else hidden), self.classes)
