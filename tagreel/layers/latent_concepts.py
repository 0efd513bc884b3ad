"""Latent concepts: a bottleneck that learns which tags go together, on top of a trained classifier.

    y = σ(z),   u = BN(W₂ ReLU(BN(W₁ Drop(y) + b₁)) + b₂),   z' = P(u + y)

Huang et al. (CMU Informedia), "Video Representation Learning and Latent Concept Mining for Large-scale
Multi-label Video Classification", 2017, arXiv 1707.01408: a 2-layer residual network with batch norm and
input dropout, 4,096 latent concepts in its middle, and a last layer P. It joins in after ten epochs ("late
fire"): a recipe's `late` and `training.late_epochs`. In and out are logits here, as everywhere.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.product import Linear


class LatentConcepts(nn.Module):
    """Logits (B, C) in, logits (B, C) out.

    `aggregate` is the paper's G, how u and y meet: their sum (which it found best), their maximum, or side by
    side. `output` P is the paper's full layer over all classes ("full"), which has to learn anew what y said,
    or, far lighter, a scale and a bias of each class ("classwise") with z in the place of y and u zero at
    first, so that a sum begins as what it was before the layer joined. `dropout` is that of the input y.
    """

    def __init__(
        self,
        dim: int,
        *,
        concepts: int = 4096,
        aggregate: Literal["add", "max", "append"] = "add",
        output: Literal["full", "classwise"] = "full",
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if aggregate not in ("add", "max", "append"):
            raise ValueError(f"aggregate={aggregate!r}; expected add, max or append")
        if output not in ("full", "classwise"):
            raise ValueError(f"output={output!r}; expected full or classwise")
        if concepts < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"concepts={concepts}, dropout={dropout}; expected 1 or more, and 0 to less than 1"
            )
        self.out_dim = dim
        self.aggregate, self.dropout = aggregate, dropout
        self.mine = Linear(dim, concepts)
        self.mine_norm = MaskedBatchNorm(concepts)
        self.spread = Linear(concepts, dim)
        self.spread_norm = MaskedBatchNorm(dim)
        parts = 2 if aggregate == "append" else 1
        self.output: nn.Module = Linear(parts * dim, dim) if output == "full" else _Classwise(parts, dim)
        with torch.no_grad():
            for linear in (self.mine, self.spread, self.output):
                if isinstance(linear, nn.Linear):
                    nn.init.xavier_uniform_(linear.weight)
                    linear.bias.zero_()
            if output == "classwise":
                self.spread_norm.weight.zero_()

    def forward(self, logits: Tensor) -> Tensor:
        """Logits of the classes, seen together."""
        y = torch.sigmoid(logits).to(self.mine.weight.dtype)
        concepts = torch.relu(self.mine_norm(self.mine(F.dropout(y, self.dropout, self.training))))
        u = self.spread_norm(self.spread(concepts))
        kept = logits if isinstance(self.output, _Classwise) else y
        if self.aggregate == "append":
            return self.output(torch.cat([u, kept], dim=1))  # type: ignore[no-any-return]
        return self.output(u + kept if self.aggregate == "add" else torch.maximum(u, kept))  # type: ignore[no-any-return]


class _Classwise(nn.Module):
    """(B, parts·C) in, (B, C) out: each class from its own numbers alone."""

    def __init__(self, parts: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(parts, dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return (x.view(x.shape[0], *self.weight.shape) * self.weight).sum(1) + self.bias
