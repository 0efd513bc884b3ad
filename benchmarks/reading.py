"""How fast full batches are read, beside a plain copy of the same bytes out of a memory-mapped file.

    python benchmarks/reading.py

Batches of 160 frame-level YouTube-8M videos, 300 frames of 1,024 + 128 bytes, on one core, from files
that the operating system has in memory; every way opens each file once a run. The ways take turns, and the
table shows medians. With the package `tfrecord` installed (PyPI), it reads the same files too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

from tagreel import shards
from tagreel.batch import Example
from tagreel.loader import Loader
from tagreel.readers._tfexample import encode_sequence_example
from tagreel.readers._tfrecord import write
from tagreel.source import Source

BATCH, FRAMES, WIDTHS, CLASSES = 160, 300, {"rgb": 1024, "audio": 128}, 3862


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batches", type=int, default=6, help="batches a run (55 MB each)")
    parser.add_argument("--runs", type=int, default=9, help="runs of each way of reading")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"train{number:04}.tfrecord" for number in range(options.batches)]
        arrows = [path.with_suffix(".arrow") for path in paths]
        for number, path in enumerate(paths):
            write(path, [encode(video) for video in videos(number)])
            shards.write(arrows[number], videos(number))
        ways = {
            "raw copy of the mapped file": lambda: read_raw(paths),
            "TFRecord": tagreel_reader(paths, check_crc=False),
            "TFRecord, checksums verified": tagreel_reader(paths, check_crc=True),
            "Arrow": tagreel_reader(arrows, check_crc=False),
            "Arrow, checksums verified": tagreel_reader(arrows, check_crc=True),
        }
        if (other := tfrecord_reader(paths)) is not None:
            ways["tfrecord (PyPI)"] = other
        times = measure(ways, runs=options.runs, batches=options.batches)
    raw = next(iter(times.values()))
    print(f"{'way':<28} {'ms a batch':>11} {'videos/s':>10} {'GB/s':>6} {'of raw':>7}")
    for name, seconds in times.items():
        size = BATCH * FRAMES * sum(WIDTHS.values()) / seconds / 1e9
        print(
            f"{name:<28} {seconds * 1e3:>11.2f} {BATCH / seconds:>10,.0f} {size:>6.2f} {raw / seconds:>7.2f}"
        )


def videos(seed: int) -> Iterator[Example]:
    rng = np.random.default_rng(seed)
    for number in range(BATCH):
        labels = np.sort(rng.choice(CLASSES, 3, replace=False))
        frames = {name: rng.integers(0, 256, (FRAMES, width), np.uint8) for name, width in WIDTHS.items()}
        yield Example(f"{seed:02}{number:03}", labels, frames)


def encode(video: Example) -> bytes:
    return encode_sequence_example({"id": video.id, "labels": video.labels}, video.streams)


def measure(ways: dict[str, Callable[[], Iterator[int]]], *, runs: int, batches: int) -> dict[str, float]:
    """The median seconds a batch of each way; the ways take turns, and the first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            sizes = list(way())
            taken = time.perf_counter() - began
            assert len(sizes) == batches, f"{name} read {len(sizes)} batches"
            assert min(sizes) >= BATCH * FRAMES * sum(WIDTHS.values()), f"{name} read less than a batch"
            if run:
                times[name].append(taken / batches)
    return {name: median(seconds) for name, seconds in times.items()}


def read_raw(paths: list[Path]) -> Iterator[int]:
    for path in paths:
        yield np.array(np.memmap(path, mode="r")).nbytes


def tagreel_reader(paths: list[Path], *, check_crc: bool) -> Callable[[], Iterator[int]]:
    source = Source(paths, check_crc=check_crc, keep_open=1)  # so that every run opens every file again
    loader = Loader(source, features=WIDTHS, classes=CLASSES, batch_size=BATCH)

    def read() -> Iterator[int]:
        for _, batch in loader.epoch():
            yield sum(frames.numel() for frames in batch.streams.values())

    return read


def tfrecord_reader(paths: list[Path]) -> Callable[[], Iterator[int]] | None:
    try:
        from tfrecord.reader import sequence_loader
    except ImportError:
        return None

    def read() -> Iterator[int]:
        for path in paths:
            streams = {name: np.empty((BATCH, FRAMES, width), np.uint8) for name, width in WIDTHS.items()}
            kinds = {"id": "byte", "labels": "int"}
            records = sequence_loader(str(path), None, kinds, dict.fromkeys(WIDTHS, "byte"))
            for index, (_, lists) in enumerate(records):
                for name, target in streams.items():
                    target[index] = np.stack([np.frombuffer(frame, np.uint8) for frame in lists[name]])
            yield sum(frames.nbytes for frames in streams.values())

    return read


if __name__ == "__main__":
    main()
