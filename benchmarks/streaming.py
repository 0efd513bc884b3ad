"""Two hours of input, its tags updated every five seconds: by sums, or by reading again what came before.

    python benchmarks/streaming.py

NeXtVLAD at its published size (1,024 + 128 features, 3,862 classes), first weights, one thread. Each way runs
in a process of its own; memory is what its peak adds to that of the model. Reading the past or the window
again is timed at every 48th update. "Add, subtract" takes the sums of what leaves the window from the total,
which `tagreel.streaming` does without; drift is the largest difference of a probability from that of the
window read again, after 100,000 seconds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from torch import Tensor

from tagreel.layers.sums import Sums
from tagreel.recipe import find, override
from tagreel.streaming import Additive, State, Stream, Window, joined
from tagreel.tagger import Tagger, build

SECONDS, EVERY, WINDOW, LONG = 7200, 5, 600, 100_000
ROUND = 600  # seconds of features, which come again and again

Features = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each way")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way)))
        return
    print(f"{'what is scored':<17} {'way':<26} {'seconds/s':>10} {'ratio':>7} {'memory':>9} {'drift':>9}")
    slowest: dict[str, float] = {}
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.runs):
        for way in WAYS:
            runs[way].append(in_a_process(way))
    for way, (scored, told, _) in WAYS.items():
        speed, memory = (median(run[key] for run in runs[way]) for key in ("speed", "memory"))
        slowest.setdefault(scored, speed)
        drift = runs[way][0].get("drift")
        print(
            f"{scored:<17} {told:<26} {speed:>10,.0f} {speed / slowest[scored]:>7.1f} {memory:>6,.0f} MB "
            f"{'' if drift is None else f'{drift:.0e}':>9}"
        )


def in_a_process(way: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--way", way], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(way: str) -> dict[str, float]:
    """Seconds of input a second, memory in MB, and the drift of a way that could have one."""
    torch.set_num_threads(1)
    tagger, features = model(), frames()
    tagger.scores({name: rows[None, :EVERY] for name, rows in features.items()})  # what the kernels keep
    before = reset_peak()
    start = time.process_time()
    _, _, work = WAYS[way]
    done = work(tagger, features)
    spent = done if isinstance(done, float) else time.process_time() - start
    memory = (status("VmHWM") - before) / 1024
    found = {"speed": SECONDS / spent, "memory": memory}
    return {**found, "drift": DRIFTS[way](tagger, features)} if way in DRIFTS else found


def reset_peak() -> int:
    """Forget the largest memory so far (Linux); what is in use now, in KB."""
    ctypes.CDLL(None).malloc_trim(0)  # or what the model's first weights took would be at hand unseen
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def model() -> Tagger:
    torch.manual_seed(0)
    recipe = find("nextvlad-g8-d05-k128")
    for setting in ("features.rgb=1024", "features.audio=128", "classes=3862"):
        recipe = override(recipe, setting)
    streams = {name: replace(stream, transforms=()) for name, stream in recipe.streams.items()}
    return build(replace(recipe, streams=streams)).eval()


def frames() -> Features:
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, 256, (ROUND, width), np.uint8)
        for name, width in (("rgb", 1024), ("audio", 128))
    }


def part(features: Features, first: int, last: int) -> Features:
    """The seconds `first` ... `last` - 1 of an input without end."""
    return {name: rows[np.arange(first, last) % ROUND] for name, rows in features.items()}


def score(tagger: Tagger, features: Features, first: int, last: int) -> Tensor:
    return tagger.scores({name: rows[None] for name, rows in part(features, first, last).items()})[0]


def every(seconds: int) -> range:
    """The times of the updates."""
    return range(EVERY, seconds + 1, EVERY)


def whole_file(tagger: Tagger, features: Features) -> None:
    score(tagger, features, 0, SECONDS)


def read_again(tagger: Tagger, features: Features, window: int) -> float:
    """Of 1,440 updates every 48th, and what all would take."""
    start = time.process_time()
    some = every(SECONDS)[47::48]
    for now in some:
        score(tagger, features, max(now - window, 0), now)
    return (time.process_time() - start) * SECONDS / EVERY / len(some)


def streamed(tagger: Tagger, features: Features, window: int | None) -> None:
    stream = Stream(tagger, window=window, step=EVERY)
    for now in every(SECONDS):
        stream.feed(part(features, now - EVERY, now))
        stream.scores()


@torch.inference_mode()
def subtracted(tagger: Tagger, features: Features, dtype: torch.dtype) -> None:
    sums = Additive(tagger)
    for total in subtracting(states(sums, features, SECONDS), dtype):
        sums.probabilities(total)


def states(sums: Additive, features: Features, seconds: int) -> Iterator[State]:
    """The sums of every five seconds."""
    for now in every(seconds):
        rows = part(features, now - EVERY, now)
        streams = {name: torch.from_numpy(values)[None] for name, values in rows.items()}
        yield sums.accumulate(streams, {name: torch.ones(1, EVERY, dtype=torch.bool) for name in streams})


def subtracting(blocks: Iterable[State], dtype: torch.dtype) -> Iterator[State]:
    """The sums of the window: each block is added, and taken away when it leaves."""
    ring = deque[State]()
    total: State | None = None
    for block in blocks:
        state = tuple(Sums(tuple(tensor.to(dtype) for tensor in each.sums)) for each in block)
        total = state if total is None else joined(total, state)
        ring.append(state)
        if len(ring) > WINDOW // EVERY:
            total = tuple(a - b for a, b in zip(total, ring.popleft(), strict=True))
        yield total


def moving(blocks: Iterable[State]) -> Iterator[State | None]:
    """The same by what `Stream` does."""
    window = Window(WINDOW // EVERY)
    for block in blocks:
        window.push(block)
        yield window.total()


@torch.inference_mode()
def drift(tagger: Tagger, features: Features, move: Callable[[Iterable[State]], Iterator[State]]) -> float:
    sums = Additive(tagger)
    blocks = cycle(list(states(sums, features, ROUND)))
    *_, last = move(islice(blocks, LONG // EVERY))
    found = sums.probabilities(last)[0]
    return (found - score(tagger, features, LONG - WINDOW, LONG)).abs().max().item()


WAYS: dict[str, tuple[str, str, Callable[[Tagger, Features], object]]] = {
    "past": ("all so far", "the past read again", partial(read_again, window=SECONDS)),
    "stream": ("all so far", "streamed", partial(streamed, window=None)),
    "file": ("all, once", "whole file", whole_file),
    "window": ("last ten minutes", "the window read again", partial(read_again, window=WINDOW)),
    "subtract32": ("last ten minutes", "add, subtract, float32", partial(subtracted, dtype=torch.float32)),
    "subtract64": ("last ten minutes", "add, subtract, float64", partial(subtracted, dtype=torch.float64)),
    "stream-window": ("last ten minutes", "streamed", partial(streamed, window=WINDOW)),
}
DRIFTS: dict[str, Callable[[Tagger, Features], float]] = {
    "subtract32": partial(drift, move=partial(subtracting, dtype=torch.float32)),
    "subtract64": partial(drift, move=partial(subtracting, dtype=torch.float64)),
    "stream-window": partial(drift, move=moving),
}


if __name__ == "__main__":
    main()
