"""Seconds and memory of the metrics, beside the method of the YouTube-8M starter code.

    python benchmarks/metrics.py [--videos 1000000] [--runs 3] [--rows GAP]

Scores and labels are made batch by batch, which is not timed. Every row runs in processes of its own, on
one thread, ours and the starter code's in turn, and medians are shown. Seconds are those of the processor,
user and system, which other work on the machine changes little; `waited` is the clock's, where a file is
part of it. Memory is the peak beyond what one batch takes (Linux). The starter code's loops run on fewer
videos, where its numbers have to agree with ours, and are scaled to a million; what sorts grows a little
faster than that.
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch

from tagreel.metrics._scored import Scored
from tagreel.metrics.average_precision import MeanAveragePrecision
from tagreel.metrics.calibration import Calibration
from tagreel.metrics.gap import GlobalAveragePrecision
from tagreel.metrics.hit import HitAt1
from tagreel.metrics.perr import PrecisionAtEqualRecall
from tagreel.metrics.top_average_precision import TopMeanAveragePrecision


class _Measured(Protocol):
    def update(self, scores: torch.Tensor, labels: torch.Tensor) -> None: ...

    def compute(self) -> float | list[float]: ...


class _Together:
    """The four numbers of the starter code from one ranking of each batch."""

    def __init__(self) -> None:
        self.metrics = (
            GlobalAveragePrecision(),
            TopMeanAveragePrecision(),
            HitAt1(),
            PrecisionAtEqualRecall(),
        )

    def update(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        scored = Scored(scores, labels)
        for metric in self.metrics:
            metric.add(scored)

    def compute(self) -> list[float]:
        return [metric.compute() for metric in self.metrics]


class _Evaluation:
    """Everything that `tagreel evaluate` reports."""

    def __init__(self) -> None:
        from tagreel.evaluate import Scorer  # much that the other rows do without

        self.scorer = Scorer()

    def update(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        self.scorer.update(scores, labels)

    def compute(self) -> list[float]:
        return list(self.scorer.result().metrics.values())


class _StarterRanking:
    """A ranking as the starter code keeps it: a heap of (score, label)."""

    def __init__(self) -> None:
        self.heap: list[tuple[np.float32, np.float32]] = []
        self.positives = 0.0

    def push(self, scores: list[np.float32], labels: list[np.float32], positives: float) -> None:
        self.positives += positives
        for pair in zip(scores, labels, strict=True):
            heapq.heappush(self.heap, pair)

    def average_precision(self) -> float:
        if not self.heap or not self.positives:
            return 0.0
        scores, labels = np.array(list(zip(*self.heap, strict=True)))
        random.seed(0)
        shuffled = random.sample(range(len(scores)), len(scores))
        scores, labels = scores[shuffled], labels[shuffled]
        ap = found = 0.0
        for place, at in enumerate(
            sorted(range(len(scores)), key=lambda at: scores[at], reverse=True), start=1
        ):
            if labels[at] > 0:
                found += 1
                ap += found / place / self.positives
        return ap


class _StarterRankings:
    """GAP, mAP or both, as the starter code counts them."""

    def __init__(self, *, pooled: bool, per_class: bool) -> None:
        self.pooled = _StarterRanking() if pooled else None
        self.per_class: list[_StarterRanking] | None = [] if per_class else None

    def update(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        s, t = scores.numpy(), labels.numpy()
        C = s.shape[1]
        found: list[tuple[list[np.float32], list[np.float32]]] = [([], []) for _ in range(C)]
        for row, truth in zip(s, t, strict=True):
            for c in np.argpartition(row, -20)[-20:]:
                found[c][0].append(row[c])
                found[c][1].append(truth[c])
        positives = [np.sum(t[:, c]) for c in range(C)]
        if self.pooled is not None:
            pooled = [v for values, _ in found for v in values], [v for _, truths in found for v in truths]
            self.pooled.push(*pooled, sum(positives))
        if self.per_class is not None:
            self.per_class = self.per_class or [_StarterRanking() for _ in range(C)]
            for ranking, (values, truths), total in zip(self.per_class, found, positives, strict=True):
                ranking.push(values, truths, total)

    def compute(self) -> list[float]:
        values = [] if self.pooled is None else [self.pooled.average_precision()]
        if self.per_class is not None:
            values.append(float(np.mean([ranking.average_precision() for ranking in self.per_class])))
        return values


class _StarterHit:
    """Hit@1 of the starter code."""

    def __init__(self) -> None:
        self.hits = self.videos = 0.0

    def update(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        best = np.argmax(scores.numpy(), 1)
        self.hits += float(labels.numpy()[np.arange(len(best)), best].sum())
        self.videos += len(best)

    def compute(self) -> list[float]:
        return [self.hits / self.videos]


class _StarterPerr:
    """PERR of the starter code."""

    def __init__(self) -> None:
        self.total = self.videos = 0.0

    def update(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        for row, truth in zip(scores.numpy(), labels.numpy(), strict=True):
            n = int(np.sum(truth))
            best = np.argpartition(row, -n)[-n:]
            self.total += sum(truth[c] for c in best if row[c] > 0) / best.size
            self.videos += 1

    def compute(self) -> list[float]:
        return [self.total / self.videos]


class _StarterTogether:
    """The four numbers of the starter code, its way."""

    def __init__(self) -> None:
        self.metrics = (_StarterRankings(pooled=True, per_class=True), _StarterHit(), _StarterPerr())

    def update(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        for metric in self.metrics:
            metric.update(scores, labels)

    def compute(self) -> list[float]:
        return [value for metric in self.metrics for value in metric.compute()]


ROWS: dict[str, tuple[Callable[[], _Measured], Callable[[], _Measured] | None]] = {
    "GAP@20": (GlobalAveragePrecision, lambda: _StarterRankings(pooled=True, per_class=False)),
    "mAP over the top 20": (TopMeanAveragePrecision, lambda: _StarterRankings(pooled=False, per_class=True)),
    "Hit@1": (HitAt1, _StarterHit),
    "PERR": (PrecisionAtEqualRecall, _StarterPerr),
    "the four, one ranking": (_Together, _StarterTogether),
    "GAP@20, starter's ties": (lambda: GlobalAveragePrecision(ties="starter"), None),
    "mAP over all scores": (MeanAveragePrecision, None),
    "calibration": (Calibration, None),
    "all of tagreel evaluate": (_Evaluation, None),
}


Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]


def draw(batches: int, classes: int, batch: int) -> list[Batch]:
    """Scores like a model's: 3.4 labels a video, classes of uneven frequency, few scores above 0.1."""
    rng = torch.Generator().manual_seed(0)
    frequency = torch.arange(1, classes + 1).float().pow(-0.9)
    frequency *= 3.4 / frequency.sum()
    drawn = []
    for _ in range(batches):
        labels = (torch.rand(batch, classes, generator=rng) < frequency).float()
        logits = torch.randn(batch, classes, generator=rng) * 1.5 + frequency.log() + 6 * labels
        drawn.append((logits.sigmoid_(), labels))
    return drawn


def repeat(drawn: list[Batch], videos: int) -> Iterator[Batch]:
    """The batches again and again, each time a little lower: to draw them all would take too long."""
    batch = len(drawn[0][0])
    for number, start in enumerate(range(0, videos, batch)):
        scores, labels = drawn[number % len(drawn)]
        some = slice(0, min(batch, videos - start))
        yield scores[some] * (1 - number // len(drawn) / 2**12), labels[some].clone()


class Measured(NamedTuple):
    """Seconds of the processor and of the clock, bytes, and the metric's values."""

    seconds: float
    waited: float
    held: int
    values: list[float]


def median(runs: list[Measured]) -> Measured:
    """The run in the middle by its seconds, with the most memory of all."""
    middle = sorted(runs)[len(runs) // 2]
    return middle._replace(held=max(run.held for run in runs))


def measure(name: str, starter: bool, videos: int, classes: int, batch: int) -> Measured:
    """One metric on its own."""
    torch.set_num_threads(1)
    make = ROWS[name][1 if starter else 0]
    assert make is not None
    drawn = draw(8, classes, batch)
    warm = make()  # what libraries load and allocate on first use is not the metric's
    for scores, labels in repeat(drawn, 2 * batch):
        warm.update(scores, labels)
    warm.compute()
    del warm
    metric, seconds, waited = make(), 0.0, 0.0
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak_bytes()
    del scores, labels

    def timed(call: Callable[[], Any]) -> Any:
        nonlocal seconds, waited
        processor, clock = time.process_time(), time.perf_counter()
        value = call()
        seconds += time.process_time() - processor
        waited += time.perf_counter() - clock
        return value

    for scores, labels in repeat(drawn, videos):
        timed(partial(metric.update, scores, labels))
        del scores, labels
    value = timed(metric.compute)
    return Measured(seconds, waited, max(0, peak_bytes() - before), np.ravel(value).tolist())


def peak_bytes() -> int:
    """The most memory this process has held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--starter-videos", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=3862)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", default="", help="only the rows with this in their name")
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    # glibc gives whole batches back when they are gone, so that they do not count, and keeps the rest
    os.environ.update(MALLOC_MMAP_THRESHOLD_=str(2**23), MALLOC_TRIM_THRESHOLD_=str(2**27))

    print(f"{args.videos:,} videos × {args.classes:,} classes in batches of {args.batch:,}, 1 thread;")
    print(f"medians of {args.runs}; the starter code's method on {args.starter_videos:,} videos\n")
    print(f"{'':24}{'s':>8}{'waited':>8}{'MB':>8}{'s/1M':>9}{'starter s/1M':>14}{'MB/1M':>9}{'ratio':>8}")
    context = multiprocessing.get_context("spawn")
    for name, (_, starter) in ROWS.items():
        if args.rows not in name:
            continue
        runs: dict[str, list[Measured]] = {"ours": [], "small": [], "starter": []}
        for _ in range(args.runs):
            for kind, found in runs.items():
                if kind == "ours" or starter is not None:
                    videos = args.videos if kind == "ours" else args.starter_videos
                    options = (name, kind == "starter", videos, args.classes, args.batch)
                    with ProcessPoolExecutor(1, mp_context=context) as process:
                        found.append(process.submit(measure, *options).result())
        ours = median(runs["ours"])
        a_million = ours.seconds * 1e6 / args.videos
        row = f"{name:24}{ours.seconds:8.2f}{ours.waited:8.2f}{ours.held / 1e6:8.0f}{a_million:9.1f}"
        if starter is not None:
            # its PERR is added up in float32
            np.testing.assert_allclose(runs["small"][0].values, runs["starter"][0].values, rtol=1e-4)
            theirs, scale = median(runs["starter"]), 1e6 / args.starter_videos
            row += f"{theirs.seconds * scale:14.1f}{theirs.held * scale / 1e6:9.0f}"
            row += f"{theirs.seconds * scale / a_million:7.1f}×"
        print(row, flush=True)


if __name__ == "__main__":
    main()
