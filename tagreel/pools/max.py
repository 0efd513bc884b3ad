"""Maximum pooling: the strongest response of each feature over the frames of a video.

An option of the starter code's deep bag of frames (Abu-El-Haija et al., arXiv 1609.08675, section 5.1.2).
"""

from __future__ import annotations

from torch import Tensor, nn

from tagreel.layers.ragged import Mask, largest
from tagreel.layers.sums import Sums


class Max(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, D) out."""

    packs = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, frames: Tensor, mask: Mask = None) -> Tensor:
        """Largest value among the real frames; a video without any gives zeros."""
        return self.finish(self.accumulate(frames, mask))

    def accumulate(self, frames: Tensor, mask: Mask = None) -> Sums:
        """The largest values (B, D), -inf where there are no frames."""
        return Sums(maxima=(largest(frames, mask, default=float("-inf")),))

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        (largest,) = state.maxima
        return largest.masked_fill(largest == float("-inf"), 0.0)
