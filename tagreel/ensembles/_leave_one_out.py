"""What each model is worth to the others: how far the score drops without it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tagreel.ensembles._panel import Panel, alike


def drops(panel: Panel, chosen: Iterable[int]) -> dict[int, float]:
    """For each of the chosen models, the score of all, averaged alike, less that without it.

    One alone is worth everything, 1.
    """
    models = list(chosen)
    if len(models) == 1:
        return {models[0]: 1.0}
    whole = panel.score(alike(panel, models))
    return {m: whole - panel.score(alike(panel, [o for o in models if o != m])) for m in models}


def prune(panel: Panel, chosen: Iterable[int]) -> dict[int, float]:
    """The drops of those of the chosen models that help; the others are removed, the most harmful first.

    One at a time: of two twins neither is missed while the other is there, and to remove both at once would
    lose what they know.
    """
    worth = drops(panel, chosen)
    while min(worth.values()) <= 0:
        harmful = min(worth, key=worth.__getitem__)
        worth = drops(panel, (m for m in worth if m != harmful))
    return worth


def by_worth(panel: Panel, worth: dict[int, float]) -> Tensor:
    """Weights (M,) in proportion to the drops."""
    weights = torch.zeros(len(panel.names), dtype=torch.float64)
    for member, drop in worth.items():
        weights[member] = drop
    return weights / weights.sum()
