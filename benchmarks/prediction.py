"""Prediction at published size: folded weights in 32, 16 and 8 bits, beside the plain forward pass.

    python benchmarks/prediction.py [RECIPE ...] [--threads 1 2] [--batch 64] [--runs 5]
    python benchmarks/prediction.py --model DIR --data FILES

A batch is scored from bytes in memory to probabilities: videos of 120 to 300 frames, 232 in the middle,
1,024 + 128 features, 3,862 classes. "Plain" is the same model on padded frames with a mask, every product
by PyTorch's own float32 kernel in the order in which the paper writes it. The ways take turns; medians are
shown. The second command prints what each precision does to the scores of a trained model on labelled data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import get_args

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from training import as_written, trained, videos

from tagreel.__main__ import keep_freed_memory
from tagreel.batch import Batch
from tagreel.checkpoint import load
from tagreel.evaluate import evaluate, scoring_loader
from tagreel.folding import Precision, fold
from tagreel.source import Source
from tagreel.tagger import Tagger

RECIPES = ("nextvlad-g8-d05-k128", "willow-rel-gated-netvlad-256")
PRECISIONS = get_args(Precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", nargs="+")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.recipes[0], options.batch, options.threads[0], options.runs)))
        return
    if options.model is not None:
        quality(options.model, options.data)
        return
    print(f"{'recipe':<30} {'threads':>7} {'plain':>8}" + "".join(f" {name:>17}" for name in PRECISIONS))
    for name in options.recipes:
        for threads in options.threads:
            taken = _in_a_process(name, options.batch, threads, options.runs)
            cells = "".join(
                f" {options.batch / taken[way]:>9.1f} {taken['plain'] / taken[way]:>6.2f}x"
                for way in PRECISIONS
            )
            print(f"{name:<30} {threads:>7} {options.batch / taken['plain']:>8.1f}{cells}", flush=True)
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
    """Seconds of a batch each way."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as `tagreel predict` does; here for plain, too
    model, batch = trained(name).eval(), videos(size)
    ways: dict[str, Callable[[], torch.Tensor]] = {"plain": lambda: plain(model, batch)}
    for precision in PRECISIONS:
        folded = fold(model, precision)
        ways[precision] = lambda folded=folded: folded.probabilities(batch)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with torch.inference_mode():
        for _ in range(runs + 1):
            for way, run in ways.items():
                began = time.perf_counter()
                run()
                seconds[way].append(time.perf_counter() - began)
    return {way: median(times[1:]) for way, times in seconds.items()}


def plain(model: Tagger, batch: Batch) -> torch.Tensor:
    """The probabilities of a batch as `measure` compares with."""
    with as_written():
        return model.probabilities(batch)


def quality(folder: Path, data: list[str]) -> None:
    """What a trained model scores in each precision."""
    model, source = load(folder), Source(data)
    found = {}
    for name in ("as trained", *PRECISIONS):
        shown = model if name == "as trained" else fold(model, name)
        loader = scoring_loader(shown, source)
        found[name] = evaluate(shown, loader, device=torch.device("cpu")).metrics
        first = found["as trained"]
        cells = "   ".join(
            f"{key} {found[name][key]:.5f} ({found[name][key] - first[key]:+.5f})"
            for key in ("gap@20", "map")
        )
        print(f"{name:<12} {cells}", flush=True)


if __name__ == "__main__":
    main()
