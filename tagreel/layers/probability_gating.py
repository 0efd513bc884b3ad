"""Context Gating after the classifier: p' = σ(BN(p W)) ∘ p, on logits.

Miech, Laptev, Sivic, arXiv 1706.06905, section 3.2 and table 2 (column "after MoE"). The gate reads
probabilities and the result is a probability; in and out are logits here, as everywhere, computed without
ever forming 1 - p', which would round to 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.context_gating import ContextGating


class ProbabilityGating(nn.Module):
    """Logits (B, C) in, logits (B, C) out; classes lower each other's probability, never raise it."""

    def __init__(self, dim: int, *, batch_norm: bool = True, remove_diagonal: bool = False) -> None:
        super().__init__()
        self.out_dim = dim
        self.gating = ContextGating(dim, batch_norm=batch_norm, remove_diagonal=remove_diagonal)

    def forward(self, logits: Tensor) -> Tensor:
        """With p = σ(z) and g = σ(u): log p' = log p + log g, and 1 - p' = (1 - p) + p (1 - g)."""
        z = logits.float()
        u = self.gating.gate(torch.sigmoid(logits)).float()
        log_p = F.logsigmoid(z) + F.logsigmoid(u)
        log_not_p = torch.logaddexp(F.logsigmoid(-z), F.logsigmoid(z) + F.logsigmoid(-u))
        return log_p - log_not_p
