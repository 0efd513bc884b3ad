"""Greedy selection: the best model, then again and again the one that helps the average most.

    S ← S ∪ argmax_m score(mean of S ∪ {m})   while that is higher than score(mean of S)

Miech, Laptev, Sivic, "Learnable pooling with Context Gating for video classification", 2017, arXiv
1706.06905, section 5.5, where a model is taken once. With replacement one may be taken again and so counts
more: Caruana, Niculescu-Mizil, Crew, Ksikes, "Ensemble selection from libraries of models", ICML 2004.
"""

from __future__ import annotations

from torch import Tensor

from tagreel.ensembles._panel import Panel, alike


class Greedy:
    """Equal weights for a selection of at most `members` models; None: as many as help.

    With `replacement` one model may be taken several times, and there are at most `members` turns (None: M).
    """

    def __init__(self, *, members: int | None = None, replacement: bool = False) -> None:
        if members is not None and members < 1:
            raise ValueError(f"members is {members}; expected at least 1")
        self.members, self.replacement = members, replacement

    def __call__(self, panel: Panel) -> Tensor:
        """Weights (M,)."""
        M = len(panel.names)
        chosen: list[int] = []
        best = float("-inf")
        for _ in range(M if self.members is None else self.members):
            scores = {
                m: panel.score(alike(panel, [*chosen, m]))
                for m in range(M)
                if self.replacement or m not in chosen
            }
            # max takes the first of equals, so the order of the models decides.
            taken = max(scores, key=scores.__getitem__, default=None)
            if taken is None or scores[taken] <= best:
                break
            best = scores[taken]
            chosen.append(taken)
        return alike(panel, chosen)
