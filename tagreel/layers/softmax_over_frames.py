"""Softmax over the real frames of each video: what attention poolings weigh frames with."""

from __future__ import annotations

import torch
from torch import Tensor

from tagreel.layers.ragged import Mask, Ragged, largest, masked, spread, total


def softmax_over_frames(scores: Tensor, mask: Mask = None) -> Tensor:
    """Scores (B, T, H) and a mask (B, T) to weights (B, T, H) that sum to 1 over a video's real frames.

    Padded frames weigh 0, and so do all of a video that has no real ones.
    """
    if mask is None:
        return scores.softmax(1)
    if isinstance(mask, Ragged):
        peaks = largest(scores.detach(), mask, default=0.0)
        weights = torch.exp(scores - spread(peaks, mask))
        return weights / spread(total(weights, mask), mask)
    padded = ~mask[..., None]
    # Not -inf: the softmax of nothing else is NaN, which stops whoever looks for one in the gradients.
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(padded, lowest).softmax(1).masked_fill(padded, 0.0)


SMALLEST = torch.finfo(torch.float64).tiny
"""Less than any sum of weights: what to divide by where there are no frames."""


def exp_over_frames(scores: Tensor, mask: Mask = None) -> Tensor:
    """Scores (B, T, H) and a mask (B, T) to weights (B, T, H) whose shares of their sum are the softmax.

    Unlike shares, weights of two stretches can be added. In float64, to whose range scores are cut; within it
    scores may differ by 35 before the smaller is lost beside the larger, where its share is nothing anyhow.
    """
    weights = scores.double().clamp(-600, 600).exp()
    return masked(weights, mask)
