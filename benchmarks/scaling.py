"""How much faster several processes are than one.

    python benchmarks/scaling.py

Training: NeXtVLAD as published (1,024 + 128 numbers a frame, 8 groups, dropout) with a quarter of its
clusters and width, 1,000 classes, on made-up videos of 60 to 180 frames. Every way trains the same recipe on
the same global batches; what counts are its steps, without the start. The ways take turns, and the table
shows medians. On a machine that others use too, videos a second say little; the processor's time for a
thousand videos, of all processes together, still says what it costs to share the work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

from tagreel import shards
from tagreel.batch import Example

WIDTHS, CLASSES, VIDEOS, LINE = {"rgb": 1024, "audio": 128}, 1000, 320, 4
SETTINGS = (
    "streams.rgb.transforms=[]",
    "streams.rgb.pool.clusters=32",
    "streams.audio.pool.clusters=16",
    "body.1.width=512",
    f"classes={CLASSES}",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs of each way")
    parser.add_argument(
        "--steps", type=int, default=12, help="steps a run, the first four of which are not counted"
    )
    parser.add_argument("--batch", type=int, default=160, help="videos of a batch, on all processes together")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train.arrow"
        shards.write(data, videos())
        measure = partial(training, data, steps=options.steps, batch=options.batch)
        report(
            "training",
            {
                "1 process, 1 thread": partial(measure, processes=1),
                "1 process, 2 threads": partial(measure, processes=1, threads=2),
                "2 processes, 1 thread each": partial(measure, processes=2),
                "2 processes, divided (--shard)": partial(measure, processes=2, more=("--shard",)),
            },
            runs=options.runs,
        )


@dataclass(frozen=True)
class Rate:
    """Videos a second, and the processor's seconds for a thousand of them."""

    videos: float
    work: float


def report(what: str, ways: dict[str, Callable[[], Rate]], *, runs: int) -> None:
    """A table of each way's medians, and how they compare with the first one's."""
    found: dict[str, list[Rate]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            found[name].append(way())
    medians = {
        name: Rate(median(rate.videos for rate in rates), median(rate.work for rate in rates))
        for name, rates in found.items()
    }
    first = next(iter(medians.values()))
    print(f"{what:<31} {'videos/s':>9} {'of first':>9} {'processor s/1,000':>18} {'of first':>9}")
    for name, rate in medians.items():
        speed, work = rate.videos / first.videos, rate.work / first.work
        print(f"{name:<31} {rate.videos:>9.1f} {speed:>9.2f} {rate.work:>18.1f} {work:>9.2f}")


def training(data: Path, *, steps: int, batch: int, **way: Any) -> Rate:
    """That of the steps of one run, without its start."""
    # A start costs more than a step; what it takes of the processor is seen by a run that does little else.
    _, starting = train(data, steps=1, batch=batch, **way)
    rate, working = train(data, steps=steps, batch=batch, **way)
    return Rate(rate, (working - starting) / (steps - 1) / batch * 1000)


def train(
    data: Path, *, steps: int, batch: int, processes: int, threads: int = 1, more: tuple[str, ...] = ()
) -> tuple[float, float]:
    """The videos a second after a run's first log line, and the processor's seconds from its start on."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, *(launcher if processes > 1 else []), "-m", "tagreel", "train"]
        command += ["nextvlad-g8-d05-k128", "--data", str(data), "--out", str(run), "--steps", str(steps)]
        command += ["--log-every", str(LINE), "--save-minutes", "60", "--device", "cpu", *more]
        for setting in (*SETTINGS, f"training.batch_size={batch}"):
            command += ["--set", setting]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        before = os.times()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    lines = [row["videos_per_second"] for row in rows if row["event"] == "train"][1:]
    rate = len(lines) / sum(1 / each for each in lines) if lines else 0.0
    work = after.children_user + after.children_system - before.children_user - before.children_system
    return rate, work


def videos() -> Iterator[Example]:
    rng = np.random.default_rng(0)
    for number in range(VIDEOS):
        length = int(rng.integers(60, 181))
        frames = {name: rng.integers(0, 256, (length, width), np.uint8) for name, width in WIDTHS.items()}
        yield Example(f"v{number}", np.sort(rng.choice(CLASSES, 3, replace=False)), frames)


if __name__ == "__main__":
    main()
