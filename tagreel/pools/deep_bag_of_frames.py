"""Deep bag of frames: every frame is coded by a wide rectified layer, then the codes are pooled.

    h(x) = ReLU6(BN(W x)),   V[k] = max_t h_k(x_t) or the mean over t

Abu-El-Haija et al., "YouTube-8M: A Large-Scale Video Classification Benchmark", 2016, arXiv 1609.08675,
section 5.1.2; sizes and ReLU6 are those of the starter code of 2017 and 2018. "Both", of the two-stream model
of Miech, Laptev, Sivic, arXiv 1706.06905, places the mean and the maximum side by side, each of length one;
by a slip their code leaves out the activation there.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.product import Scaled, product
from tagreel.layers.ragged import Mask, count, largest, masked, total
from tagreel.layers.sums import Sums


class DeepBagOfFrames(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, K) out, (B, 2·K) if `pooling` is "both"; `clusters` is K."""

    packs = takes_scaled = True

    def __init__(
        self, dim: int, *, clusters: int = 8192, pooling: Literal["max", "mean", "both"] = "max"
    ) -> None:
        super().__init__()
        if clusters < 1:
            raise ValueError(f"DeepBagOfFrames: clusters={clusters}; expected at least 1")
        if pooling not in ("max", "mean", "both"):
            raise ValueError(f"DeepBagOfFrames: pooling={pooling!r}; choose one of: max, mean, both")
        self.out_dim = 2 * clusters if pooling == "both" else clusters
        self.pooling = pooling
        self.weight = nn.Parameter(torch.randn(dim, clusters) / math.sqrt(dim))
        self.norm = MaskedBatchNorm(clusters)

    def forward(self, frames: Tensor | Scaled, mask: Mask = None) -> Tensor:
        """Pool the codes of the real frames; a video without any gives zeros."""
        return self.finish(self.accumulate(frames, mask))

    def accumulate(self, frames: Tensor | Scaled, mask: Mask = None) -> Sums:
        """The sums of the codes (B, K) and their number (B, 1), the maxima (B, K): what `pooling` reads."""
        codes = F.relu6(self.norm(product(frames, self.weight), mask))  # (..., K)
        codes = masked(codes, mask)  # a zero beats no real code, none is negative
        return Sums(
            () if self.pooling == "max" else (total(codes, mask), count(codes, mask)),
            () if self.pooling == "mean" else (largest(codes, mask, default=0.0),),
        )

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        if self.pooling == "max":
            return state.maxima[0]
        summed, number = state.sums
        mean = summed / number.clamp_min(1)  # (B, K)
        if self.pooling == "mean":
            return mean
        halves = [F.normalize(half, dim=1, eps=1e-6) for half in (mean, *state.maxima)]
        return torch.cat(halves, dim=1)  # (B, 2·K)
