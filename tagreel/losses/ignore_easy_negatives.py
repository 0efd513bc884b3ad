"""Cross entropy without the negatives that the model already has right.

    Σ_c -[y_c log p_c + (1 - y_c) [p_c >= t] log(1 - p_c)]

The "loss manipulation" of the Tsinghua team, tenth place of the 2017 YouTube-8M challenge; code
github.com/taufikxu/youtube, `losses.py`, in two variants: `CrossEntropyLossSample` drops negatives below
t = 0.15, `CrossEntropyLossMat` those up to t = 0.2. It made their GAP worse. They set p to zero there, which
leaves a constant log(1 + 1e-5) in the loss; here those negatives leave nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.losses._terms import mean_over_videos


class IgnoreEasyNegatives(nn.Module):
    """Logits (B, C), labels (B, C) in [0, 1], optionally what was rated (B, C) in; one number out.

    `threshold` is t.
    """

    def __init__(self, *, threshold: float = 0.15) -> None:
        super().__init__()
        if not 0 <= threshold < 1:
            raise ValueError(f"IgnoreEasyNegatives: threshold={threshold}; expected 0 to less than 1")
        self.threshold = threshold

    def forward(self, logits: Tensor, labels: Tensor, rated: Tensor | None = None) -> Tensor:
        """The mean over the B videos."""
        logits = logits.float()
        easy = torch.sigmoid(logits) < self.threshold
        no = (-F.logsigmoid(-logits)).masked_fill(easy, 0.0)
        return mean_over_videos(-F.logsigmoid(logits), no, labels, rated)
