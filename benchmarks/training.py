"""One training step at published size: packed and folded, beside the same model padded and plain.

    python benchmarks/training.py [RECIPE ...] [--threads 1 2] [--batch 32 160] [--runs 5]

A step is the forward and backward pass of a batch, gradient clipping and Adam, from bytes in memory. Videos
have 120 to 300 frames of 1,024 + 128 bytes (232 in the middle: a fifth of a padded batch is padding) and
three of 3,862 labels. "Plain" is the same model with the same weights on padded frames with a mask: every
product by PyTorch's own float32 kernel and in the order in which the paper writes it. Losses of the first
step are compared. The ways take turns, step by step, and medians are shown; "of peak" is the share of this
machine's fastest matrix product, measured in between, that the model's operations as the paper writes them
come to: what needs fewer operations can go past what the processor multiplies.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

from tagreel.__main__ import keep_freed_memory
from tagreel.batch import Batch, Example
from tagreel.layers import product
from tagreel.loader import collate
from tagreel.optimization import Optimization
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.recipe import find
from tagreel.tagger import Tagger, build
from tagreel.train import training_loss

RECIPES = (
    "nextvlad-g8-d05-k128",
    "willow-rel-gated-netvlad-256",
    "willow-rel-soft-dbow-8000",
    "willow-rel-gru-1200",
)
CLASSES = 3862


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--batch", nargs="*", type=int, default=[32, 160])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measured = measure(options.recipes[0], options.batch[0], options.threads[0], options.runs)
        print(json.dumps(measured))
        return
    ways = "".join(f" {way:>15}" for way in ("float32", "bfloat16"))
    heading = f"{'recipe':<30} {'threads':>7} {'batch':>5} {'plain':>6}{ways}"
    print(f"{heading} {'of peak':>11} {'loss differs by':>17}")
    for name in options.recipes:
        for threads in options.threads:
            for size in options.batch:
                row = _in_a_process(name, size, threads, options.runs)
                cells = "".join(
                    f" {size / row[way]:>7.1f} {row['plain'] / row[way]:>6.2f}x"
                    for way in ("float32", "bfloat16")
                )
                of_peak = f"{row['of_peak_float32']:>6.0%} {row['of_peak_bfloat16']:>4.0%}"
                differs = f"{row['differs_float32']:>8.0e} {row['differs_bfloat16']:>8.0e}"
                start = f"{name:<30} {threads:>7} {size:>5} {size / row['plain']:>6.1f}"
                print(f"{start}{cells} {of_peak} {differs}", flush=True)
    print("videos/s, and times as fast as plain")


def _in_a_process(name: str, size: int, threads: int, runs: int) -> dict[str, float]:
    arguments = ["--one", "--batch", str(size), "--threads", str(threads), "--runs", str(runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, name, *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(ended.stderr)
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def measure(name: str, size: int, threads: int, runs: int) -> dict[str, float]:
    """Seconds of a step of each way, the first loss's distance from plain, the share of the peak."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as `tagreel train` does; here for plain, too
    model = trained(name)
    batch = videos(size)
    ways: dict[str, Callable[[], float]] = {
        "plain": lambda: step(model, batch, plain=True),
        "float32": lambda: step(model, batch),
        "bfloat16": lambda: step(model, batch, precision="bfloat16"),
    }
    losses = {way: run() for way, run in ways.items()}
    optimization = Optimization(model, model.recipe.training)
    seconds: dict[str, list[float]] = {way: [] for way in (*ways, "peak float32", "peak bfloat16")}
    for _ in range(runs + 1):
        for dtype in (torch.float32, torch.bfloat16):
            seconds[f"peak {str(dtype).removeprefix('torch.')}"].append(peak(dtype))
        for way, run in ways.items():
            began = time.perf_counter()
            run()
            optimization.step(1, examples=0, total_examples=1)
            seconds[way].append(time.perf_counter() - began)
    taken = {way: median(times[1:]) for way, times in seconds.items()}
    operations = count(model, batch)
    found = {way: taken[way] for way in ways}
    for way in ("float32", "bfloat16"):
        found[f"of_peak_{way}"] = operations / taken[way] / (1 / taken[f"peak {way}"])
        found[f"differs_{way}"] = abs(losses[way] / losses["plain"] - 1)
    return found


def trained(name: str) -> Tagger:
    """The recipe's model with first weights, of 3,862 classes."""
    torch.manual_seed(0)
    recipe = replace(find(name), classes=CLASSES)
    features = {"rgb": 1024, "audio": 128}
    for module in (model := build(recipe, features=features)).modules():
        if callable(prepare := getattr(module, "prepare", None)):
            with mock.patch("numpy.load", return_value=np.ones(1024, np.float32)):
                if getattr(module, "eigenvalues", "") is None:
                    module.eigenvalues = "ones"
                prepare()
    return model.train()


def videos(size: int) -> Batch:
    """A batch of such videos."""
    rng = np.random.default_rng(0)
    examples = []
    for number in range(size):
        frames = min(int(rng.integers(120, 361)), 300)
        streams = {
            name: rng.integers(0, 256, (frames, width), np.uint8)
            for name, width in {"rgb": 1024, "audio": 128}.items()
        }
        examples.append(
            Example(id=str(number), labels=rng.choice(CLASSES, 3, replace=False), streams=streams)
        )
    return collate(examples, features={"rgb": 1024, "audio": 128})


def step(model: Tagger, batch: Batch, *, plain: bool = False, precision: str = "float32") -> float:
    """Forward and backward: the loss."""
    torch.manual_seed(0)
    training = replace(model.recipe.training, precision=precision)
    model.recipe = replace(model.recipe, training=training)
    with as_written() if plain else _nothing(), model.autocast():
        loss, _, _ = training_loss(model, model.recipe.loss(), batch)
    with as_written() if plain else _nothing():
        loss.backward()
    return float(loss.detach())


@contextmanager
def as_written() -> Iterator[None]:
    """Padded frames, PyTorch's own products, and nothing folded."""
    with (
        mock.patch.object(Batch, "packed", lambda batch: (batch.streams, batch.masks())),
        mock.patch.object(product, "_has_wide_units", return_value=False),
        mock.patch.object(NeXtVLAD, "_gates", _gates_as_written),
    ):
        yield


def _gates_as_written(
    pool: NeXtVLAD, frames: torch.Tensor, expanded: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return pool.attention(expanded), expanded @ pool.assignment


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def peak(dtype: torch.dtype) -> float:
    """Seconds that the fastest product here takes for one operation: a multiplication or an addition."""
    x, weight = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        product.product(x, weight)
        times.append(time.perf_counter() - began)
    return min(times) / (2 * 2048**3)


def count(model: Tagger, batch: Batch) -> int:
    """Operations of a step as the paper writes the model, of real frames: three forward passes."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    whole = [
        Example(id="", labels=np.zeros(0, np.int64), streams=_frames(batch, video)) for video in range(1)
    ]
    one = collate(whole, features=model.features)
    model.eval()
    with torch.no_grad(), as_written(), counter:
        model.describe(one.streams, one.masks())
    per_frame = counter.get_total_flops() / one.streams["rgb"].shape[1]
    frames = int(batch.num_frames["rgb"].sum())
    with torch.no_grad(), FlopCounterMode(display=False) as rest, as_written():
        model.classify(torch.zeros(1, model.descriptor_dim))
    model.train()
    return int(3 * (per_frame * frames + rest.get_total_flops() * len(batch)))


def _frames(batch: Batch, video: int) -> dict[str, np.ndarray]:
    return {
        name: stream[video, : int(batch.num_frames[name][video])].numpy()
        for name, stream in batch.streams.items()
    }


if __name__ == "__main__":
    main()
