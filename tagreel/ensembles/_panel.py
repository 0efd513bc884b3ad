"""What a method is given: models that scored the same labelled videos, and what any weighting is worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Panel(Protocol):
    """M models and what they said of the videos that the weights are fitted on."""

    @property
    def names(self) -> Sequence[str]:
        """What the M models are called."""
        ...

    def score(self, weights: Tensor) -> float:
        """What the average by these weights (M,) scores; the higher, the better."""
        ...

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Probabilities (B, K, M) of K classes a video, its true ones among them, and labels (B, K).

        Which classes may differ from video to video; a video with fewer has zeros in both.
        """
        ...


class Method(Protocol):
    """Fits weights: what else is in this folder, and what a user writes."""

    def __call__(self, panel: Panel) -> Tensor:
        """Weights (M,), none negative, their sum one."""
        ...


def alike(panel: Panel, chosen: Iterable[int]) -> Tensor:
    """Equal weights (M,) for the chosen models; one that is chosen twice counts twice."""
    weights = torch.zeros(len(panel.names), dtype=torch.float64)
    for member in chosen:
        weights[member] += 1
    return weights / weights.sum()
