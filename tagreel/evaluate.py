"""A model and a loader in, an `Evaluation` out: every metric in one pass over the videos."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagreel.batch import Batch
from tagreel.distributed import ALONE, Ranks
from tagreel.errors import DataError, RecipeError
from tagreel.loader import Loader
from tagreel.metrics._scored import Metric, Scored
from tagreel.metrics.average_precision import MeanAveragePrecision
from tagreel.metrics.calibration import Calibration
from tagreel.metrics.gap import GlobalAveragePrecision
from tagreel.metrics.hit import HitAt1
from tagreel.metrics.perr import PrecisionAtEqualRecall
from tagreel.metrics.segment_average_precision import SegmentMeanAveragePrecision
from tagreel.metrics.top_average_precision import TopMeanAveragePrecision
from tagreel.model import Model
from tagreel.provenance import check
from tagreel.report import ClassScore, Report
from tagreel.sampling import AllFrames
from tagreel.sharding import is_sharded
from tagreel.source import Source


@dataclass(frozen=True)
class Evaluation:
    """What a model reached on a data set.

    `metrics` holds gap@20, map (all scores; classes without positives left out), map_top20 (the starter
    code's: each video's 20 best scores, such classes count 0), hit@1, perr and calibration_error; of rated
    segments also map@100000, the score of 2019's challenge.
    `average_precision` (C,), NaN without positives, and `support` (C,) are by class.
    """

    metrics: dict[str, float]
    videos: int
    seconds: float
    average_precision: NDArray[np.float64]
    support: NDArray[np.int64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    calibration: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


class Scorer:
    """All metrics of a report, fed scores and labels batch by batch."""

    def __init__(self) -> None:
        self.map = MeanAveragePrecision()
        self.gap = GlobalAveragePrecision(top_k=20)
        self.calibration = Calibration()
        self.all: dict[str, Metric] = {
            "gap@20": self.gap,
            "map": self.map,
            "map_top20": TopMeanAveragePrecision(top_k=20),
            "hit@1": HitAt1(),
            "perr": PrecisionAtEqualRecall(),
            "calibration_error": self.calibration,
        }
        self._of_segments = SegmentMeanAveragePrecision(cut=100_000)
        self._any_rated = False
        self.videos = 0
        self._began = time.perf_counter()

    def update(self, scores: torch.Tensor, labels: torch.Tensor, rated: torch.Tensor | None = None) -> None:
        """Add the probabilities (B, C) and labels (B, C) of B videos.

        Where only some classes were `rated` (B, C), as in 2019's segments, the scores of the others are set
        to 0, as the starter code does; calibration looks at the rated ones alone, and map@100000 ranks all.
        """
        scored = Scored(scores if rated is None else scores * rated, labels)
        for metric in self.all.values():
            if metric is not self.calibration:
                metric.add(scored)
        if rated is None:
            self.calibration.add(scored)
        else:
            judged = rated > 0
            self.calibration.update(scores[judged][:, None], labels[judged][:, None])
            segments = ~judged.all(1)  # what was judged on every class is a whole video among them
            self._of_segments.update(scores[segments], labels[segments], judged[segments])
            self._any_rated = True
        self.videos += len(scored)

    def result(self) -> Evaluation:
        """Everything computed."""
        average_precision, support = self.map.per_class()
        recall, precision = self.gap.curve()
        metrics = {name: metric.compute() for name, metric in self.all.items()}
        if self._any_rated:
            metrics["map@100000"] = self._of_segments.compute()
        return Evaluation(
            metrics=metrics,
            videos=self.videos,
            seconds=time.perf_counter() - self._began,
            average_precision=average_precision,
            support=support,
            recall=recall,
            precision=precision,
            calibration=self.calibration.curve(),
        )


@torch.inference_mode()
def evaluate(
    model: Model, loader: Loader, *, device: torch.device, on_batch: Callable[[int], None] | None = None
) -> Evaluation:
    """Score every video of the loader; `on_batch` is told how many videos are done.

    The ranks of the loader score a slice of every batch each. The first one counts them all, in the order in
    which one process would, and tells the others what came out. Raises `DataError` when nothing could be
    read, no video has a label, or the data name the classes otherwise than the model does.
    """
    check_names(model, loader.source)
    training, ranks = model.training, loader.ranks
    model.eval()
    scorer = Scorer()
    try:
        for _, batch in loader.epoch():
            scored = _score(model, batch.to(device), loader)
            with ranks.together():
                for of_rank in ranks.gather(scored):
                    if len(of_rank[0]):
                        _count(scorer, *of_rank)
            if on_batch is not None:
                on_batch(scorer.videos)
    finally:
        model.train(training)
    result: Evaluation | None = None
    with ranks.together():
        if ranks.first:
            result = _result(scorer, loader.source)
    told = ranks.tell(result)
    assert told is not None
    return told


_Scores = tuple[Tensor, Tensor, Tensor | None]


def _score(model: Model, batch: Batch, loader: Loader) -> _Scores:
    """Scores (B, C) and labels (B, C) of a batch, and what was rated."""
    scores = labels = batch.labels(model.classes)
    rated = batch.rated(model.classes)
    if len(batch):
        scores = model.probabilities(batch)
    elif is_sharded(model):  # the other ranks need this one's part of it
        model.probabilities(loader.stand_in().to(labels.device))
    if loader.ranks.count > 1:  # they travel between main memories
        return scores.cpu(), labels.cpu(), None if rated is None else rated.cpu()
    return scores, labels, rated


def _count(scorer: Scorer, scores: Tensor, labels: Tensor, rated: Tensor | None) -> None:
    try:
        scorer.update(scores, labels, rated)
    except ValueError as error:
        if not scores.isnan().any():
            raise
        raise RecipeError(f"the model's {error}; its weights cannot be used") from error


def _result(scorer: Scorer, data: Source) -> Evaluation:
    if not scorer.videos:
        raise DataError("no record could be read", path=str(data.paths[0]))
    result = scorer.result()
    if not result.support.any():
        raise DataError(
            f"none of the {result.videos:,} videos has a label, so there is nothing to score against; "
            "`tagreel predict` needs none",
            path=str(data.paths[0]),
        )
    return result


def scoring_loader(
    model: Model,
    data: Source,
    *,
    batch_size: int | None = None,
    threads: int = 1,
    skip_damaged: int = 0,
    whole: bool = False,
    foreign: bool = False,
    ranks: Ranks = ALONE,
) -> Loader:
    """What a model is to score, in order and as the model `reads` it, or every frame of a `whole` video.

    Raises `DataError` for features made otherwise than those that it knows, unless `foreign` ones will do.
    """
    if not foreign:
        check_provenance(model, data)
    return Loader(
        data,
        features=model.features,
        optional=model.optional,
        classes=model.classes,
        batch_size=batch_size or model.batch_size,
        sampling=AllFrames(max_frames=None) if whole else model.reads(),
        threads=threads,
        skip_damaged=skip_damaged,
        ranks=ranks,
    )


def check_names(model: Model, data: Source) -> None:
    """Raise `DataError` where the data and the model name a class differently."""
    if data.label_names is None or not model.has_label_names:
        return
    for label, (ours, theirs) in enumerate(zip(model.label_names, data.label_names, strict=False)):
        if ours != theirs:
            raise DataError(
                f"class {label:,} is {theirs!r} here and {ours!r} in the model; its labels mean other things",
                path=str(data.paths[0]),
            )


def check_provenance(model: Model, data: Source) -> None:
    """Raise `DataError` where the model was trained on features that were made otherwise."""
    check(model.provenance, data.provenance, path=data.paths[0])


def make_report(
    model: Model,
    result: Evaluation,
    *,
    title: str,
    data: Source,
    checkpoint: Path,
    facts: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    best: Mapping[str, float] | None = None,
) -> Report:
    """Everything about an evaluation on one page.

    `facts` are those noted with the checkpoint, `log` the events of its training, and `best` the scores that
    are possible where that is known.
    """
    seen = facts.get("train_counts") or [None] * model.classes
    score, frequency, count = result.calibration
    columns = (model.label_names, result.average_precision.tolist(), result.support.tolist(), seen)
    per_class: list[ClassScore] = [
        {"id": index, "name": name, "ap": ap, "support": support, "train_count": train_count}
        for index, (name, ap, support, train_count) in enumerate(zip(*columns, strict=True))
    ]
    return Report(
        title=title,
        recipe=model.name,
        data=[str(path) for path in data.paths],
        checkpoint=str(checkpoint),
        step=facts.get("step", 0),
        videos=result.videos,
        classes=model.classes,
        parameters=sum(p.numel() for p in model.parameters()),
        seconds=result.seconds,
        metrics=result.metrics,
        best_possible=best,
        history=[row for row in log if row["event"] == "train"],
        validations=[row for row in log if row["event"] == "validate"],
        precision_recall={"recall": result.recall.tolist(), "precision": result.precision.tolist()},
        calibration={"score": score.tolist(), "frequency": frequency.tolist(), "count": count.tolist()},
        per_class=per_class,
    )
