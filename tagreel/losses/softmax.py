"""Softmax loss: the classes of a video share one unit of probability, its labels in equal parts.

    -Σ_c (y_c / Σ_j y_j) log softmax(z)_c

The YouTube-8M starter code (github.com/google/youtube-8m, `losses.SoftmaxLoss`), which takes the softmax of
probabilities, so that the best class gets at most e times the weight of the worst; here of logits. What the
model then learns is a ranking within each video: its sigmoid is no probability, and GAP, which compares
videos, suffers.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_NOWHERE = -1e30  # for -inf, whose gradient is NaN where a video was not rated at all


class Softmax(nn.Module):
    """Logits (B, C), labels (B, C) in [0, 1], optionally what was rated (B, C) in; one number out.

    A class that was not rated does not compete; the others count by their weight. A video without labels
    counts nothing.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, logits: Tensor, labels: Tensor, rated: Tensor | None = None) -> Tensor:
        """The mean over the B videos."""
        logits = logits.float()
        if rated is not None:
            logits = logits.masked_fill(rated == 0, _NOWHERE)
            labels = labels.masked_fill(rated == 0, 0.0)
        share = F.normalize(labels, p=1, dim=1)
        loss = -share * F.log_softmax(logits, dim=1)
        if rated is not None:
            loss = loss * rated
        return loss.sum(1).mean()
