"""What several models say of the same labelled videos, kept so that any weighting of them is scored at once.

Each model sees the videos once. Of a video those classes are kept that some model has among its best, and the
true ones, with what every model says of them. The GAP@20 of a weighting is then what `evaluate` finds; so is
its mAP where all classes are kept, else a class that no model lists for a video ranks below those listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagreel.batch import Batch
from tagreel.ensemble import EnsembleTagger
from tagreel.errors import DataError, RecipeError
from tagreel.evaluate import check_names
from tagreel.loader import Loader
from tagreel.metrics._precision import average_precision, by_class, mean_over_classes
from tagreel.metrics._scored import Scored
from tagreel.metrics.gap import GlobalAveragePrecision

By = Literal["gap@20", "map"]


@dataclass(frozen=True)
class Block:
    """K classes of each of B videos: `scores` (M, B, K), `labels` (B, K) and `classes` (B, K).

    A video with fewer classes has zeros at the end, and -1 as their class.
    """

    scores: Tensor
    labels: Tensor
    classes: Tensor


class ModelPanel:
    """The members of an ensemble as a method of `tagreel.ensembles` asks them, scored by GAP@20 or mAP.

    They score the videos of the loader once, when first a weighting's score is wanted; `on_batch` is told how
    many are done. `listed` classes are kept a member and video, at least 20; None: all where there are no
    more than 1,000, else 100. That takes 4 bytes a member and kept class. Raises `DataError` when nothing
    can be read, no video has a label, or the data name the classes otherwise, `RecipeError` when a member's
    scores are NaN.
    """

    def __init__(
        self,
        ensemble: EnsembleTagger,
        loader: Loader,
        *,
        by: By = "gap@20",
        listed: int | None = None,
        device: torch.device,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        check_names(ensemble, loader.source)
        if listed is None:
            listed = max(ensemble.classes, 20) if ensemble.classes <= 1000 else 100
        if listed < 20:
            raise RecipeError(f"--listed is {listed}; expected at least 20, the classes that GAP@20 ranks")
        self.ensemble, self.loader, self.by, self.listed = ensemble, loader, by, listed
        self.device, self.on_batch = device, on_batch
        self._known: dict[tuple[float, ...], float] = {}

    @property
    def names(self) -> list[str]:
        """What the M models are called."""
        return self.ensemble.member_names

    @property
    def videos(self) -> int:
        """How many videos were scored."""
        return sum(len(block.labels) for block in self.blocks)

    def score(self, weights: Tensor) -> float:
        """GAP@20 or mAP of the average by these weights (M,)."""
        # Rounded, so that the same models are known again after another division by their sum.
        key = tuple((weights.double() / weights.sum()).round(decimals=12).tolist())
        if key not in self._known:
            averages = (_average(block.scores, key) for block in self.blocks)
            self._known[key] = self._gap(averages) if self.by == "gap@20" else self._map(averages)
        return self._known[key]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Probabilities (B, K, M) and labels (B, K)."""
        for block in self.blocks:
            yield block.scores.permute(1, 2, 0), block.labels

    @cached_property
    def blocks(self) -> list[Block]:
        """What was kept, batch by batch."""
        self.ensemble.eval()
        blocks: list[Block] = []
        done = positives = 0
        # Not in inference mode: whoever learns from these tensors needs gradients.
        with torch.no_grad():
            for _, batch in self.loader.epoch():
                blocks.append(_block(self.ensemble, batch.to(self.device), self.listed))
                done += len(batch)
                positives += len(batch.label_ids)
                if self.on_batch is not None:
                    self.on_batch(done)
        where = str(self.loader.source.paths[0])
        if not done:
            raise DataError("no record could be read", path=where)
        if not positives:
            raise DataError(
                f"none of the {done:,} videos has a label, so there is nothing to score against", path=where
            )
        return blocks

    def _gap(self, averages: Iterable[Tensor]) -> float:
        metric = GlobalAveragePrecision(top_k=20)
        for average, block in zip(averages, self.blocks, strict=True):
            metric.add(Scored(average, block.labels))
        return metric.compute()

    def _map(self, averages: Iterable[Tensor]) -> float:
        order, bounds, labels = self._by_class
        scores = np.concatenate([average.numpy().ravel() for average in averages])[order]
        found = []
        for first, last in pairwise(bounds):
            of_class = scores[first:last]
            positives = of_class[labels[first:last]]
            found.append(average_precision(of_class, positives, len(positives)) if len(positives) else np.nan)
        return mean_over_classes(np.array(found), empty_classes="skip")

    @cached_property
    def _by_class(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """The order that sorts kept places by class, where each class begins and ends in it, their labels."""
        classes = np.concatenate([block.classes.numpy().ravel() for block in self.blocks])
        labels = np.concatenate([block.labels.numpy().ravel() for block in self.blocks])
        order, bounds = by_class(classes + 1, int(classes.max()) + 2)
        order = order[bounds[1] :]  # what only fills up has come first
        return order, bounds[1:] - bounds[1], labels[order]


def _block(ensemble: EnsembleTagger, batch: Batch, listed: int) -> Block:
    labels = batch.labels(ensemble.classes).cpu() > 0
    rated = batch.rated(ensemble.classes)
    kept = labels.clone()
    scores = []
    for name, found in zip(ensemble.member_names, ensemble.each(batch), strict=True):
        # As in evaluation: what nobody rated counts 0.
        scores.append((found if rated is None else found * rated).float().cpu())
        try:
            best = Scored(scores[-1], labels).top(listed).classes
        except ValueError as error:
            raise RecipeError(f"{name}: its {error}; its weights cannot be used") from error
        kept.scatter_(1, torch.from_numpy(best), True)
    counts = kept.sum(1)
    rows, classes = kept.nonzero(as_tuple=True)
    places = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    shape = (len(kept), int(counts.max()))
    block = Block(
        scores=torch.zeros(len(scores), *shape),
        labels=torch.zeros(shape, dtype=torch.bool),
        classes=torch.full(shape, -1, dtype=torch.int32),
    )
    for target, found in zip(block.scores, scores, strict=True):
        target[rows, places] = found[rows, classes]
    block.labels[rows, places] = labels[rows, classes]
    block.classes[rows, places] = classes.to(torch.int32)
    return block


def _average(scores: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Scores (M, B, K) to (B, K), in the order in which an ensemble adds them up."""
    total = torch.zeros(scores.shape[1:])
    for weight, member in zip(weights, scores, strict=True):
        if weight:
            total.add_(member, alpha=weight)
    return total
