"""Soft bag of words: how much of the video falls to each cluster.

    V[k] = Σ_t a_k(x_t),   a(x) = softmax(W x + b)

scaled to length one. Miech, Laptev, Sivic, "Learnable pooling with Context Gating for video classification",
2017, arXiv 1706.06905, section 3.1; "Soft-DBoF" in their code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.product import Scaled
from tagreel.layers.ragged import Mask, largest, total
from tagreel.layers.soft_assignment import SoftAssignment
from tagreel.layers.sums import Sums


class SoftBagOfWords(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, K) out; `clusters` is K.

    `max_pool` appends max_t a_k(x_t), likewise of length one, to make (B, 2·K): an option of the authors'
    code.
    """

    packs = takes_scaled = True

    def __init__(
        self, dim: int, *, clusters: int = 4096, batch_norm: bool = True, max_pool: bool = False
    ) -> None:
        super().__init__()
        self.out_dim = clusters * (1 + max_pool)
        self.max_pool = max_pool
        self.assignment = SoftAssignment(dim, clusters=clusters, batch_norm=batch_norm)

    def forward(self, frames: Tensor | Scaled, mask: Mask = None) -> Tensor:
        """Pool the real frames; a video without any gives zeros."""
        return self.finish(self.accumulate(frames, mask))

    def accumulate(self, frames: Tensor | Scaled, mask: Mask = None) -> Sums:
        """The sums of the frames' shares, and their maxima with `max_pool`, (B, K)."""
        assigned = self.assignment(frames, mask)  # (..., K)
        maxima = (largest(assigned, mask, default=0.0),) if self.max_pool else ()
        return Sums((total(assigned, mask),), maxima)

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        words = [F.normalize(part, dim=1, eps=1e-6) for part in (*state.sums, *state.maxima)]
        return torch.cat(words, dim=1)
