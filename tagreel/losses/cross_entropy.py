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
    """Logits (B, C), labels (B, C) in [0, 1], optional weights (B, C) in; one number out.

    `epsilon` None computes from logits, exact however sure the model is; a number gives the references'
    log(p + ε), whose gradient vanishes where p does. Weighted classes count by their weight (YouTube-8M 2019:
    1 where a class was rated, 0 where nobody looked).
    """

    def __init__(self, *, epsilon: float | None = None) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """The mean over the B videos."""
        logits = logits.float()
        if self.epsilon is None:
            loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        else:
            p = torch.sigmoid(logits)
            loss = -(labels * torch.log(p + self.epsilon) + (1 - labels) * torch.log(1 - p + self.epsilon))
        if weights is not None:
            loss = loss * weights
        return loss.sum(1).mean()
