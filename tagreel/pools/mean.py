"""Average pooling, Σ_t x_t / F over the F real frames: the starter code's baseline.

Abu-El-Haija et al., "YouTube-8M: A Large-Scale Video Classification Benchmark", 2016, arXiv 1609.08675,
section 5.1.1; the average of a video-level record, a video of one frame, is the record.
"""

from __future__ import annotations

from torch import Tensor, nn

from tagreel.layers.ragged import Mask, Ragged, count, masked, total
from tagreel.layers.sums import Sums


class Mean(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, D) out."""

    packs = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, frames: Tensor, mask: Mask = None) -> Tensor:
        """Average the real frames; a video without any gives zeros."""
        if mask is None:
            return frames.mean(1)
        if isinstance(mask, Ragged):
            return total(frames, mask) / mask.counts[:, None].clamp_min(1)
        weights = mask / mask.sum(1, keepdim=True).clamp_min(1)  # (B, T)
        return (frames * weights[..., None].to(frames.dtype)).sum(1)

    def accumulate(self, frames: Tensor, mask: Mask = None) -> Sums:
        """The sums of the frames (B, D) and their number (B, 1)."""
        return Sums((total(masked(frames, mask), mask), count(frames, mask)))

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        summed, number = state.sums
        return summed / number.clamp_min(1)
