"""Mixture of logistic experts, one mixture a class: p_c = Σ_e softmax(gates)_ce σ(expert_ce).

Jordan and Jacobs, 1994; on YouTube-8M Abu-El-Haija et al., arXiv 1609.08675, section 5.2.3, and the starter
code, whose gate has one unit more than there are experts: the null expert, which always says no. CMU
Informedia (2017) leaves it out. The references return p and clip it in the loss; here the logit of p is
computed in log space, exactly and finitely:

    log p = logsumexp_e(log g_e + log σ(z_e))
    log (1 - p) = logsumexp(log g_e + log σ(-z_e) for every e, and log g_null)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MixtureOfExperts(nn.Module):
    """(B, D) in, logits (B, C) out; gates without bias, experts with, both Xavier as in the starter code."""

    def __init__(self, dim: int, classes: int, *, experts: int = 2, null_expert: bool = True) -> None:
        super().__init__()
        self.classes, self.num_experts = classes, experts
        self.gates = nn.Linear(dim, classes * (experts + null_expert), bias=False)
        self.experts = nn.Linear(dim, classes * experts)
        with torch.no_grad():
            nn.init.xavier_uniform_(self.gates.weight)
            nn.init.xavier_uniform_(self.experts.weight)
            self.experts.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the mixed probabilities."""
        B, C, E = x.shape[0], self.classes, self.num_experts  # len(x) would fix B when exported
        log_gates = F.log_softmax(self.gates(x).view(B, C, -1).float(), dim=-1)  # (B, C, E or E + 1)
        experts = self.experts(x).view(B, C, E).float()
        log_yes = torch.logsumexp(log_gates[..., :E] + F.logsigmoid(experts), dim=-1)  # (B, C)
        log_no = torch.cat([log_gates[..., :E] + F.logsigmoid(-experts), log_gates[..., E:]], dim=-1)
        return log_yes - torch.logsumexp(log_no, dim=-1)
