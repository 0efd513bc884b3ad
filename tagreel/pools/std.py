"""Standard-deviation pooling: how much each feature moves within the video.

CMU Informedia tried it on temporal segments in the 2017 YouTube-8M challenge, without gain; beside the mean
of whole clips it adds little (docs/log.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagreel.layers.sums import Sums


class Std(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, D) out, sqrt(Σ_t (x_t - mean)² / F + 1e-6).

    The small constant keeps the gradient finite where nothing moves, as in a video of one frame.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Deviation over the real frames."""
        B, T, _ = frames.shape
        real = frames.new_ones(B, T, 1) if mask is None else mask[..., None].to(frames.dtype)
        count = real.sum(1, keepdim=True).clamp_min(1)  # (B, 1, 1)
        mean = (frames * real).sum(1, keepdim=True) / count  # (B, 1, D)
        variance = ((frames - mean).square() * real).sum(1) / count[:, 0]  # (B, D)
        return torch.sqrt(variance + 1e-6)

    def accumulate(self, frames: Tensor, mask: Tensor | None = None) -> Sums:
        """The sums of the frames and of their squares, (B, D), and their number, (B, 1).

        In float64: of squares and a mean that are almost alike, float32 would leave nothing.
        """
        if mask is None:
            mask = frames.new_ones(frames.shape[:2], dtype=torch.bool)
        x = frames.double() * mask[..., None]
        return Sums((x.sum(1), x.square().sum(1), mask.sum(1, keepdim=True)))

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        summed, squares, count = state.sums
        mean = summed / count.clamp_min(1)
        variance = squares / count.clamp_min(1) - mean.square()
        return torch.sqrt(variance.clamp_min(0) + 1e-6).float()
