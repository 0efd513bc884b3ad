"""Cross entropy of independent labels, summed over classes and averaged over videos.

    Σ_c -[y_c log p_c + (1 - y_c) log(1 - p_c)]

Every YouTube-8M system trains with it; the references add an epsilon inside the logarithms, which we do only
when asked (starter code, Willow and Non-local NetVLAD 1e-5, NeXtVLAD 1e-8).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossEntropy(nn.Module):
    """Logits (B, C), labels (B, C) in [0, 1], optionally what was rated (B, C) in; one number out.

    `epsilon` None computes from logits, exact however sure the model is; a number gives the references'
    log(p + ε), whose gradient vanishes where p does. `smoothing` s trains towards y (1 - s) + s/2, as
    TensorFlow's sigmoid cross entropy does; s/2 should stay below the frequency of most classes, or the
    target of a class says more of s than of the video. Rated classes count by their weight (YouTube-8M 2019:
    1 where a class was rated, 0 where nobody looked).
    """

    def __init__(self, *, epsilon: float | None = None, smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"CrossEntropy: smoothing={smoothing}; expected 0 to less than 1")
        self.epsilon, self.smoothing = epsilon, smoothing

    def forward(self, logits: Tensor, labels: Tensor, rated: Tensor | None = None) -> Tensor:
        """The mean over the B videos."""
        logits = logits.float()
        if self.smoothing:
            labels = labels * (1 - self.smoothing) + self.smoothing / 2
        if self.epsilon is None:
            loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        else:
            p = torch.sigmoid(logits)
            loss = -(labels * torch.log(p + self.epsilon) + (1 - labels) * torch.log(1 - p + self.epsilon))
        if rated is not None:
            loss = loss * rated
        return loss.sum(1).mean()
