"""Gated bag of words: a soft bag of words whose entries are weighed by the strongest responses.

    s[k] = Σ_t a_k(x_t),   m[k] = max_t a_k(x_t) scaled to length one,   a(x) = softmax(W x + b)
    V = σ(BN(U₂ U₁ m)) ∘ s

scaled to length one; U₁ is D × K and U₂ K × D. Miech, Laptev, Sivic, arXiv 1706.06905, speak of Context
Gating on the bag of words; this is what their code does (github.com/antoine77340/Youtube-8M-WILLOW,
`GatedDBoF`), on the visual stream alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.product import Scaled, product
from tagreel.layers.ragged import Mask, largest, total
from tagreel.layers.soft_assignment import SoftAssignment
from tagreel.layers.sums import Sums


class GatedBagOfWords(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, K) out; `clusters` is K."""

    packs = takes_scaled = True

    def __init__(self, dim: int, *, clusters: int = 4096) -> None:
        super().__init__()
        self.out_dim = clusters
        self.assignment = SoftAssignment(dim, clusters=clusters)
        self.squeeze = nn.Parameter(torch.randn(clusters, dim) / math.sqrt(dim))
        self.excite = nn.Parameter(torch.randn(dim, clusters) / math.sqrt(dim))
        self.gate_norm = MaskedBatchNorm(clusters)

    def forward(self, frames: Tensor | Scaled, mask: Mask = None) -> Tensor:
        """Pool the real frames; a video without any gives zeros."""
        return self.finish(self.accumulate(frames, mask))

    def accumulate(self, frames: Tensor | Scaled, mask: Mask = None) -> Sums:
        """The sums of the frames' shares and their maxima, (B, K)."""
        assigned = self.assignment(frames, mask)  # (..., K)
        return Sums((total(assigned, mask),), (largest(assigned, mask, default=0.0),))

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        (summed,), (largest,) = state.sums, state.maxima
        strongest = F.normalize(largest, dim=1, eps=1e-6)  # (B, K)
        gates = torch.sigmoid(self.gate_norm(product(product(strongest, self.squeeze), self.excite)))
        return F.normalize(gates * summed, dim=1, eps=1e-6)
