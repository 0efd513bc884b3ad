"""How fast films become a picture a second, beside `ffmpeg -vf fps=1` in the same run.

    python benchmarks/decoding.py ../shared/data/clips/{chaplin,bikes,nasa_13013}.mp4

Each way turns a file into RGB pictures of 224 × 224 that arrive in this process; a time goes from before its
process starts to after its last picture, and ffmpeg has no sound to read. The ways take turns, and the table
shows medians in seconds of film a second: of each file, of the file repeated to a length at which the start
counts little, and of all files in a row, where tagreel begins the next one before it reads the last.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tagreel.decoding import Pictures, Sound, decode

SIDE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("films", nargs="+", type=Path, help="video files")
    parser.add_argument("--runs", type=int, default=7, help="runs of each way")
    parser.add_argument("--seconds", type=float, default=300, help="how long a repeated film is at least")
    options = parser.parse_args()
    if shutil.which("ffmpeg") is None:
        parser.error("needs ffmpeg to compare with")
    head = f"{'ffmpeg':>10}{'tagreel':>10}{'ratio':>7}{'and sound':>11}{'ratio':>7}"
    print(f"{'seconds of film a second':<34}{head}")
    with tempfile.TemporaryDirectory() as folder:
        repeated = [repeat(path, Path(folder), options.seconds) for path in options.films]
        for path in options.films:
            show(path.name, [path], options.runs)
        for path in repeated:
            show(f"{path.stem}, repeated", [path], options.runs)
    show("all in a row", options.films, options.runs)


def show(name: str, paths: list[Path], runs: int) -> None:
    """A row of the table."""
    ways: list[Callable[[], int]] = [
        lambda: sum(map(with_ffmpeg, paths)),
        lambda: with_tagreel(paths, None),
        lambda: with_tagreel(paths, Sound()),
    ]
    times: list[list[float]] = [[] for _ in ways]
    seconds = 0
    for run in range(runs + 1):
        for way, taken in zip(ways, times, strict=True):
            began = time.perf_counter()
            seconds = way()
            if run:  # the first is not counted
                taken.append(time.perf_counter() - began)
    other, ours, sound = (seconds / median(taken) for taken in times)
    print(f"{name:<34}{other:>10.0f}{ours:>10.0f}{ours / other:>7.2f}{sound:>11.0f}{sound / other:>7.2f}")


def with_ffmpeg(path: Path) -> int:
    """Seconds of film."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-an", "-sn"]
    command += ["-vf", f"fps=1,scale={SIDE}:{SIDE}", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    data = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return len(data) // (3 * SIDE * SIDE)


def with_tagreel(paths: list[Path], sound: Sound | None) -> int:
    """Seconds of film."""
    seconds = 0
    pictures = Pictures((SIDE, SIDE))
    following = decode(paths[0], pictures=pictures, sound=sound)
    for _, path in pairwise([*paths, None]):
        pieces = following
        if path is not None:
            following = decode(path, pictures=pictures, sound=sound)
        seconds += sum(map(len, pieces))
    return seconds


def repeat(path: Path, folder: Path, seconds: float) -> Path:
    """A film one after the other, its packets copied, until it is so long."""
    long = folder / f"{path.stem}.mkv"
    count = int(seconds / with_ffmpeg(path))
    command = ["ffmpeg", "-v", "error", "-nostdin", "-stream_loop", str(count), "-i", str(path)]
    subprocess.run([*command, "-map", "0:v:0", "-map", "0:a:0?", "-c", "copy", str(long)], check=True)
    return long


if __name__ == "__main__":
    main()
