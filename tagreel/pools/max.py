"""Maximum pooling: the strongest response of each feature over the frames of a video.

An option of the starter code's deep bag of frames (Abu-El-Haija et al., arXiv 1609.08675, section 5.1.2).
"""

from __future__ import annotations

from torch import Tensor, nn


class Max(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, D) out."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Largest value among the real frames; a video without any gives zeros."""
        if mask is None:
            return frames.amax(1)
        largest = frames.masked_fill(~mask[..., None], float("-inf")).amax(1)  # (B, D)
        return largest.masked_fill(~mask.any(1, keepdim=True), 0.0)
