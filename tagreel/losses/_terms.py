"""What losses of independent classes share: from a loss for yes and one for no to one number."""

from __future__ import annotations

from torch import Tensor


def mean_over_videos(yes: Tensor, no: Tensor, labels: Tensor, rated: Tensor | None) -> Tensor:
    """Σ_c rated_c (y_c yes_c + (1 - y_c) no_c), averaged over videos; all are (B, C).

    Linear in the labels, so that of a mixed-up label each half brings its own loss.
    """
    loss = labels * yes + (1 - labels) * no
    if rated is not None:
        loss = loss * rated
    return loss.sum(1).mean()
