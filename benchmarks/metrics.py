"""Seconds and memory of the metrics, beside the method of the YouTube-8M starter code.

    python benchmarks/metrics.py [--videos 100000] [--starter-videos 2000] [--rows GAP]

Scores and labels are made batch by batch, which is not timed. Every row runs in a process of its own, on
one thread; its memory is the growth of the process's peak beyond that of two batches. The starter code's
loops run on fewer videos, where its numbers have to agree with ours. Both are scaled to a million videos;
what sorts grows a little faster than that.
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from typing import Protocol

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
}


def batches(videos: int, classes: int, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Scores like a model's: 3.4 labels a video, classes of uneven frequency, few scores above 0.1."""
    rng = torch.Generator().manual_seed(0)
    frequency = torch.arange(1, classes + 1).float().pow(-0.9)
    frequency *= 3.4 / frequency.sum()
    for start in range(0, videos, batch):
        B = min(batch, videos - start)
        labels = (torch.rand(B, classes, generator=rng) < frequency).float()
        logits = torch.randn(B, classes, generator=rng) * 1.5 + frequency.log() + 6 * labels
        yield logits.sigmoid_(), labels


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(
    name: str, starter: bool, videos: int, classes: int, batch: int
) -> tuple[float, int, float | list[float]]:
    """Seconds, bytes and values of one metric on its own."""
    torch.set_num_threads(1)
    make = ROWS[name][1 if starter else 0]
    assert make is not None
    warm = make()  # what libraries load and allocate on first use is not the metric's
    for scores, labels in batches(2 * batch, classes, batch):
        warm.update(scores, labels)
    warm.compute()
    metric = make()
    before, seconds = peak_bytes(), 0.0
    for scores, labels in batches(videos, classes, batch):
        start = time.perf_counter()
        metric.update(scores, labels)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    value = metric.compute()
    return seconds + time.perf_counter() - start, max(0, peak_bytes() - before), value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--starter-videos", type=int, default=2_000)
    parser.add_argument("--classes", type=int, default=3862)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rows", default="", help="only the rows with this in their name")
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    # glibc gives whole batches back when they are gone, so that they do not count, and keeps the rest
    os.environ.update(MALLOC_MMAP_THRESHOLD_=str(2**23), MALLOC_TRIM_THRESHOLD_=str(2**27))

    print(f"{args.videos:,} videos × {args.classes:,} classes in batches of {args.batch:,}, 1 thread;")
    print(
        f"the starter code's method on {args.starter_videos:,} videos; s/1M and MB/1M: scaled to a million\n"
    )
    print(f"{'':24}{'s':>8}{'MB':>8}{'s/1M':>9}{'MB/1M':>9}{'starter s/1M':>14}{'MB/1M':>9}{'ratio':>8}")
    context = multiprocessing.get_context("spawn")
    for name, (_, starter) in ROWS.items():
        if args.rows not in name:
            continue
        with context.Pool(1, maxtasksperchild=1) as pool:
            size = args.classes, args.batch
            seconds, held, _ = pool.apply(measure, (name, False, args.videos, *size))
            scale = 1e6 / args.videos
            row = f"{name:24}{seconds:8.2f}{held / 1e6:8.0f}{seconds * scale:9.1f}{held * scale / 1e6:9.0f}"
            if starter is not None:
                _, _, ours = pool.apply(measure, (name, False, args.starter_videos, *size))
                theirs, their_bytes, reference = pool.apply(measure, (name, True, args.starter_videos, *size))
                np.testing.assert_allclose(np.ravel(ours), np.ravel(reference), rtol=1e-5)
                scale = 1e6 / args.starter_videos
                ratio = theirs * scale / (seconds * 1e6 / args.videos)
                row += f"{theirs * scale:14.1f}{their_bytes * scale / 1e6:9.0f}{ratio:7.0f}×"
        print(row, flush=True)


if __name__ == "__main__":
    main()
