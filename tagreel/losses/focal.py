"""Focal loss: what the model already has right counts less, by a power of how wrong it is.

    Σ_c -[α y_c (1 - p_c)^γ log p_c + (1 - α) (1 - y_c) p_c^γ log(1 - p_c)]

Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", 2017, arXiv 1708.02002, eq. 5, with
its γ = 2 and α = 0.25; the Non-local NetVLAD team tried γ = 2 on YouTube-8M. Summed over classes like our
other losses, where the paper divides by the number of positives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.losses._terms import mean_over_videos


class Focal(nn.Module):
    """Logits (B, C), labels (B, C) in [0, 1], optionally what was rated (B, C) in; one number out.

    `gamma` is γ, `alpha` the weight of positives against 1 - α of negatives; 0.5 weighs both alike.
    """

    def __init__(self, *, gamma: float = 2.0, alpha: float = 0.25) -> None:
        super().__init__()
        if gamma < 0 or not 0 < alpha < 1:
            raise ValueError(f"Focal: gamma={gamma}, alpha={alpha}; expected >= 0 and between 0 and 1")
        self.gamma, self.alpha = gamma, alpha

    def forward(self, logits: Tensor, labels: Tensor, rated: Tensor | None = None) -> Tensor:
        """The mean over the B videos."""
        log_p, log_not_p = F.logsigmoid(logits.float()), F.logsigmoid(-logits.float())
        # Powers as exponentials of logarithms: a root's gradient at 0 is infinite.
        yes = -self.alpha * torch.exp(self.gamma * log_not_p) * log_p
        no = -(1 - self.alpha) * torch.exp(self.gamma * log_p) * log_not_p
        return mean_over_videos(yes, no, labels, rated)
