"""Growth: random groups join from a pool, and after each group the models that do not help go.

Huang, Yuan, Lan, Jiang, Hauptmann, arXiv 1707.01408: 34 models chosen so among 64, their weights by
leave-one-out. How large the groups were and how often they were drawn is not said; table 3 grows by two to
ten.
"""

from __future__ import annotations

import random

from torch import Tensor

from tagreel.ensembles._leave_one_out import by_worth, prune
from tagreel.ensembles._panel import Panel


class Growth:
    """Leave-one-out weights of what is left after `rounds` passes over the pool in groups of `group`.

    In each pass those that are not in come in an order drawn by `seed`.
    """

    def __init__(self, *, group: int = 4, rounds: int = 2, seed: int = 0) -> None:
        if group < 1 or rounds < 1:
            raise ValueError(f"group={group}, rounds={rounds}; expected at least 1")
        self.group, self.rounds, self.seed = group, rounds, seed

    def __call__(self, panel: Panel) -> Tensor:
        """Weights (M,)."""
        drawn = random.Random(self.seed)
        worth: dict[int, float] = {}
        for _ in range(self.rounds):
            outside = [m for m in range(len(panel.names)) if m not in worth]
            drawn.shuffle(outside)
            for first in range(0, len(outside), self.group):
                worth = prune(panel, [*worth, *outside[first : first + self.group]])
        return by_worth(panel, worth)
