"""Leave-one-out: a model weighs as much as the score drops without it, and goes where it does not help.

    w_m ∝ s(S) - s(S - m),   s(S): the score of the plain mean of the models S

Huang, Yuan, Lan, Jiang, Hauptmann, "Video Representation Learning and Latent Concept Mining for Large-scale
Multi-label Video Classification", 2017, arXiv 1707.01408, who weighted 34 models so. The paper prints the
difference the other way round, but calls it the drop of performance.
"""

from __future__ import annotations

from torch import Tensor

from tagreel.ensembles._leave_one_out import by_worth, prune
from tagreel.ensembles._panel import Panel


class LeaveOneOut:
    """Models that do not help are removed one at a time; those that stay weigh what they are worth."""

    def __call__(self, panel: Panel) -> Tensor:
        """Weights (M,)."""
        return by_worth(panel, prune(panel, range(len(panel.names))))
