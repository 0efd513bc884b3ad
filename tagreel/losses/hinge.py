"""Hinge loss: a class costs nothing once its logit is beyond the margin b on the right side.

    Σ_c max(0, b - (2 y_c - 1) z_c)

The YouTube-8M starter code (github.com/google/youtube-8m, `losses.HingeLoss`) puts the probability in place
of the logit z. With its b = 1 no negative could then reach the margin, and but for a constant the loss would
be Σ_c |y_c - p_c|; its own description, outputs between -1 and 1, is met by logits.
"""

from __future__ import annotations

from torch import Tensor, nn

from tagreel.losses._terms import mean_over_videos


class Hinge(nn.Module):
    """Logits (B, C), labels (B, C) in [0, 1], optionally what was rated (B, C) in; one number out.

    `margin` is b.
    """

    def __init__(self, *, margin: float = 1.0) -> None:
        super().__init__()
        if margin <= 0:
            raise ValueError(f"Hinge: margin={margin}; expected more than 0")
        self.margin = margin

    def forward(self, logits: Tensor, labels: Tensor, rated: Tensor | None = None) -> Tensor:
        """The mean over the B videos."""
        logits = logits.float()
        yes, no = (self.margin - logits).relu(), (self.margin + logits).relu()
        return mean_over_videos(yes, no, labels, rated)
