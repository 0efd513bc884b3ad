"""The first minute with tagreel: a planted problem, written as shards, trained, and held against the best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tagreel.batch import Example
from tagreel.evaluate import Scorer
from tagreel.readers import _tfexample, _tfrecord
from tagreel.readers.synthetic import Planted
from tagreel.source import Source

SPLITS = {"train": (0, 6000, 4), "validate": (1_000_000, 1000, 1), "test": (2_000_000, 2000, 1)}
"""Of each split its first video, the number of videos, and of shards."""


def write_planted(folder: Path, planted: Planted, *, on_shard: Callable[[Path], None] | None = None) -> None:
    """Write the planted set as YouTube-8M frame-level TFRecord shards: train, validate and test."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, (first, count, shards) in SPLITS.items():
        size = count // shards
        for shard in range(shards):
            path = folder / f"{split}{shard:04d}.tfrecord"
            _tfrecord.write(path, map(_encode, planted.examples(first + shard * size, size)))
            if on_shard is not None:
                on_shard(path)
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in planted.label_names))


def best_possible(planted: Planted, source: Source) -> dict[str, float]:
    """The scores of the generator's own posterior on these videos: what nobody can beat on average."""
    scorer = Scorer()
    examples = [
        source.open(shard)[index] for shard, count in enumerate(source.counts) for index in range(count)
    ]
    scores = np.stack([planted.posterior(example) for example in examples])
    labels = np.zeros(scores.shape, dtype=bool)
    for row, example in zip(labels, examples, strict=True):
        row[example.labels] = True
    scorer.update(torch.from_numpy(scores.astype(np.float32)), torch.from_numpy(labels))
    return scorer.result().metrics


def _encode(example: Example) -> bytes:
    context = {"id": [example.id.encode()], "labels": example.labels}
    return _tfexample.encode_sequence_example(context, example.streams)
