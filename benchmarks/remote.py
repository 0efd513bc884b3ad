"""How long a training waits for shards on S3, beside the same shards on a local disk.

    pip install 'tagreel[dev]'    # for s3fs, and for moto, the S3 server, which runs on this machine
    python benchmarks/remote.py

The server lets every request wait, 50 ms unless told otherwise, as a store far away does. What reads takes a
fixed time a batch and no processor, as a GPU does. Shuffled epochs; each way begins with an empty cache but
for the last one; the ways take turns, and the table shows medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

from tagreel import shards, source
from tagreel.batch import Example
from tagreel.loader import Loader
from tagreel.remote import Ahead, Cache, Stored
from tagreel.source import Source

VIDEOS, FRAMES, WIDTHS, CLASSES, BATCH = 128, 100, {"rgb": 1024, "audio": 128}, 3862, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", type=int, default=16, help="of 128 videos, 15 MB each")
    parser.add_argument("--latency", type=float, default=50, help="ms before each answer")
    parser.add_argument("--step", type=float, default=100, help="ms that a batch of 32 is worked on")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.latency / 1e3)
        return
    with tempfile.TemporaryDirectory() as folder, s3(options.latency) as fs:
        local, cache = Path(folder, "data"), Path(folder, "cache")
        os.environ["TAGREEL_CACHE"] = str(cache)
        write_data(local, options.shards)
        fs.mkdir("bucket")
        fs.put(str(local), "bucket/data", recursive=True)
        began = time.perf_counter()
        Source("s3://bucket/data")
        print(f"first look at {options.shards} Arrow shards: {time.perf_counter() - began:.2f} s", end="; ")
        began = time.perf_counter()
        Source("s3://bucket/data")
        print(f"the next time: {time.perf_counter() - began:.2f} s\n")
        times = measure(local, cache, options)
    disk = median(whole for whole, _, _ in times["local disk"])
    print(f"{'way':<24} {'s an epoch':>10} {'of disk':>8} {'first batch, s':>15} {'waiting after it':>17}")
    for way, found in times.items():
        whole, first, waiting = map(median, zip(*found, strict=True))
        print(f"{way:<24} {whole:>10.2f} {whole / disk:>8.2f} {first:>15.2f} {waiting:>17.1%}")


def measure(local: Path, cache: Path, options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Of each way, for each run: how long an epoch took, and how long the consumer waited in it."""
    times: dict[str, list[tuple[float, float, float]]] = {}
    for run in range(options.runs):
        for way in ("local disk", "S3, fetched when needed", "S3, fetched ahead", "S3, all in the cache"):
            if "cache" not in way:
                shutil.rmtree(cache / "copies", ignore_errors=True)
            source.Ahead = Ahead if way != "S3, fetched when needed" else NoneAhead
            data = Source(local if way == "local disk" else "s3://bucket/data", check_crc=False)
            loader = Loader(
                data, features=WIDTHS, classes=CLASSES, batch_size=BATCH, shuffle=True, seed=run, window=4
            )
            began, videos, first = time.perf_counter(), 0, 0.0
            for _, batch in loader.epoch():
                first = first or time.perf_counter() - began
                videos += len(batch)
                time.sleep(options.step / 1e3)
            assert videos == len(data), f"{way}: {videos} videos of {len(data)}"
            whole = time.perf_counter() - began
            times.setdefault(way, []).append((whole, first, max(loader.waited - first, 0) / (whole - first)))
    return times


class NoneAhead(Ahead):
    """Fetches nothing ahead."""

    def __init__(self, cache: Cache, plan: Sequence[tuple[Stored, int]]) -> None:
        super().__init__(cache, [])


def write_data(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        shards.write(folder / f"train{number:04}.arrow", videos(number))


def videos(seed: int) -> Iterator[Example]:
    rng = np.random.default_rng(seed)
    for number in range(VIDEOS):
        labels = np.sort(rng.choice(CLASSES, 3, replace=False))
        frames = {name: rng.integers(0, 256, (FRAMES, width), np.uint8) for name, width in WIDTHS.items()}
        yield Example(f"{seed:02}{number:03}", labels, frames)


@contextmanager
def s3(latency: float) -> Iterator[Any]:
    """An S3 server in a process of its own, and what reads and writes there."""
    import s3fs

    command = [sys.executable, __file__, "--serve", "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        os.environ |= {
            "AWS_ENDPOINT_URL": process.stdout.readline().strip(),
            "AWS_ACCESS_KEY_ID": "one",
            "AWS_SECRET_ACCESS_KEY": "two",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        try:
            yield s3fs.S3FileSystem()
        finally:
            process.terminate()


def serve(latency: float) -> None:
    """Be the server, after saying where."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    answer = DomainDispatcherApplication(create_backend_app)

    def later(environ: Any, start_response: Any) -> Any:
        time.sleep(latency)
        return answer(environ, start_response)

    server = make_server("127.0.0.1", 0, later, threaded=True)
    print(f"http://127.0.0.1:{server.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
