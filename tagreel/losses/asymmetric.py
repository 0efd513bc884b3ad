"""Asymmetric loss: a focal loss with a power of its own for negatives, of which the easiest are dropped.

    Σ_c -[y_c (1 - p_c)^γ+ log p_c + (1 - y_c) q_c^γ- log(1 - q_c)],   q = max(p - m, 0)

Ben-Baruch, Ridnik, Zamir, Noy, Friedman, Protter, Zelnik-Manor, "Asymmetric Loss For Multi-Label
Classification", 2020, arXiv 2009.14119, eq. 7, with its γ+ = 0, γ- = 4, m = 0.05. A negative that the model
is very sure of, perhaps a missing label, gets less gradient than a doubtful one. The authors' training script
(github.com/Alibaba-MIIL/ASL) passes no gradient through the two powers, against the paper's analysis (eq. 8);
here it flows.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.losses._terms import mean_over_videos

_TINY = 1e-12


class Asymmetric(nn.Module):
    """Logits (B, C), labels (B, C) in [0, 1], optionally what was rated (B, C) in; one number out.

    `positive_gamma` is γ+, `negative_gamma` γ-, `margin` m: negatives less probable cost nothing.
    """

    def __init__(
        self, *, positive_gamma: float = 0.0, negative_gamma: float = 4.0, margin: float = 0.05
    ) -> None:
        super().__init__()
        if min(positive_gamma, negative_gamma) < 0 or not 0 <= margin < 1:
            options = f"positive_gamma={positive_gamma}, negative_gamma={negative_gamma}, margin={margin}"
            raise ValueError(f"Asymmetric: {options}; expected >= 0, >= 0 and 0 to less than 1")
        self.positive_gamma, self.negative_gamma, self.margin = positive_gamma, negative_gamma, margin
        self.log_margin = math.log(margin) if margin else -math.inf

    def forward(self, logits: Tensor, labels: Tensor, rated: Tensor | None = None) -> Tensor:
        """The mean over the B videos."""
        logits = logits.float()
        log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
        # log(1 - q) = min(log(1 - p + m), 0), which overflows nowhere in this form.
        log_not_q = torch.logaddexp(log_not_p, log_not_p.new_tensor(self.log_margin)).clamp(max=0)
        q = (torch.sigmoid(logits) - self.margin).clamp(min=_TINY)  # a root's gradient at 0 is infinite
        yes = -torch.exp(self.positive_gamma * log_not_p) * log_p
        no = -(q**self.negative_gamma) * log_not_q
        return mean_over_videos(yes, no, labels, rated)
