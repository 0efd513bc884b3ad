"""Standard-deviation pooling: how much each feature moves within the video.

CMU Informedia tried it on temporal segments in the 2017 YouTube-8M challenge, without gain; beside the mean
of whole clips it adds little (docs/log.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagreel.layers.ragged import Mask, count, masked, spread, total
from tagreel.layers.sums import Sums


class Std(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, D) out, sqrt(Σ_t (x_t - mean)² / F + 1e-6).

    The small constant keeps the gradient finite where nothing moves, as in a video of one frame.
    """

    packs = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, frames: Tensor, mask: Mask = None) -> Tensor:
        """Deviation over the real frames."""
        number = count(frames, mask).clamp_min(1)  # (B, 1)
        mean = total(masked(frames, mask), mask) / number  # (B, D)
        squares = (frames - spread(mean, mask)).square()
        variance = total(masked(squares, mask), mask) / number  # (B, D)
        return torch.sqrt(variance + 1e-6)

    def accumulate(self, frames: Tensor, mask: Mask = None) -> Sums:
        """The sums of the frames and of their squares, (B, D), and their number, (B, 1).

        In float64: of squares and a mean that are almost alike, float32 would leave nothing.
        """
        x = masked(frames.double(), mask)
        return Sums((total(x, mask), total(x.square(), mask), count(frames, mask)))

    def finish(self, state: Sums) -> Tensor:
        """The descriptor of what `accumulate` gave."""
        summed, squares, number = state.sums
        mean = summed / number.clamp_min(1)
        variance = squares / number.clamp_min(1) - mean.square()
        return torch.sqrt(variance.clamp_min(0) + 1e-6).float()
