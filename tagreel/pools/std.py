"""Standard-deviation pooling: how much each feature moves within the video.

CMU Informedia tried it on temporal segments in the 2017 YouTube-8M challenge, without gain; beside the mean
of whole clips it adds little (docs/log.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
