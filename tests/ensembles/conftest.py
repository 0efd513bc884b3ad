from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor


class Table:
    """A panel out of a table of scores (N, C, M) and labels (N, C), scored by GAP@20 in plain loops."""

    def __init__(self, scores: Tensor, labels: Tensor) -> None:
        self.scores, self.labels = scores, labels
        self.names = [f"model {m}" for m in range(scores.shape[2])]

    def score(self, weights: Tensor) -> float:
        total = sum(weights.tolist())
        pairs = []
        for video, truth in zip(self.scores.tolist(), self.labels.tolist(), strict=True):
            averages = []
            for models, label in zip(video, truth, strict=True):
                average = sum(w / total * p for w, p in zip(weights.tolist(), models, strict=True))
                averages.append((average, label))
            pairs += sorted(averages, reverse=True)[:20]
        hits, found = 0, 0.0
        for place, (_, label) in enumerate(sorted(pairs, reverse=True), start=1):
            hits += label
            found += hits / place if label else 0.0
        return found / max(self.labels.sum().item(), 1)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(self.scores), 8):
            yield self.scores[first : first + 8], self.labels[first : first + 8]


def said(*noise: float, videos: int = 30, classes: int = 6, seed: int = 0) -> Table:
    """Models that see the truth through noise of their own, each as much as given."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.rand(videos, classes, generator=g) < 0.3
    spread = torch.tensor(noise) * torch.randn(videos, classes, len(noise), generator=g)
    return Table(torch.sigmoid(4.0 * labels[..., None] - 2 + spread), labels)


@pytest.fixture
def panel() -> Table:
    return said(3.0, 2.0, 2.5, 8.0, 2.0)
