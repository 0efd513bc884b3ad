"""Frame records to the means of each video's segments, stored once for CMU Informedia's video-level models.

A segment of F frames is floor(F / segments) of them in a row; the F mod segments frames at the end are in
none. Training draws the video or one of its segments (`sampling.RandomSegment`), prediction weighs them
(`inference.SegmentedInference`); the mean over a video's rows is its video-level vector, but for those last
frames. Arrays are float16: what the bytes they come from tell apart is 30 times as coarse.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tagreel.batch import Example, Shard, dequantize
from tagreel.errors import DataError, RecipeError
from tagreel.files import written_whole
from tagreel.source import Source


@dataclass(frozen=True)
class Segments:
    """What `write_segments` wrote: files, videos, the files that were there before, and what was damaged."""

    files: int
    videos: int
    kept: int
    damaged: list[DataError]


def write_segments(
    source: Source,
    out: Path,
    *,
    segments: int = 3,
    skip_damaged: int = 0,
    on_videos: Callable[[int], None] | None = None,
) -> Segments:
    """Write one `.npz` a shard into the folder `out`: streams `mean_rgb`, ... of `segments` rows a video.

    A video of fewer frames than segments has one row, its mean. A file that is there already and newer than
    its shard is kept, so an interrupted run goes on. `on_videos` is told how many videos are done. More than
    `skip_damaged` damaged records raise the last one's `DataError`.
    """
    if segments < 1:
        raise RecipeError(f"--segments is {segments}; expected at least 1")
    out.mkdir(parents=True, exist_ok=True)
    versions = source.versions()
    targets = [out / _name(*shard, segments) for shard in zip(source.paths, versions, strict=True)]
    for stranger in sorted(set(out.glob("*.npz")) - set(targets)):
        raise RecipeError(
            f"--out {out}: holds {stranger.name}, which is not of these files and this number of segments; "
            "remove it or choose another folder"
        )
    damaged: list[DataError] = []
    videos = kept = done = 0
    for number, (path, target) in enumerate(zip(source.paths, targets, strict=True)):
        done += source.counts[number]
        if target.exists() and ("://" in path or os.stat(target).st_mtime_ns > int(versions[number])):
            kept += 1
        else:
            examples = _readable(source.open(number), source.counts[number], damaged, skip_damaged)
            target.unlink(missing_ok=True)
            if examples:
                _write(target, examples, segments, path, source.label_names)
                videos += len(examples)
        if on_videos is not None:
            on_videos(done)
    return Segments(files=len(source.paths), videos=videos, kept=kept, damaged=damaged)


def _name(path: str, version: str, segments: int) -> str:
    """The same for the same shard and number of segments, whatever is read beside it.

    One in a store has no time to compare, and another name with other content.
    """
    place = f"{path}\0{version}" if "://" in path else os.path.realpath(path)
    digest = hashlib.blake2b(f"{segments}\0{place}".encode(), digest_size=4).hexdigest()
    return f"{Path(path).name.split('.')[0]}-{digest}.npz"


def _readable(shard: Shard, count: int, damaged: list[DataError], skip_damaged: int) -> list[Example]:
    examples = []
    for index in range(count):
        try:
            example = shard[index]
            empty = [name for name, frames in example.streams.items() if not len(frames)]
            if empty:
                raise DataError(f"{empty[0]!r} has no frames", path=shard.path, record=index)
            examples.append(example)
        except DataError as error:
            damaged.append(error)
            if len(damaged) > skip_damaged:
                raise
    return examples


def _write(
    target: Path, examples: list[Example], segments: int, path: str, label_names: list[str] | None
) -> None:
    names = list(examples[0].streams)
    if all(len(frames) == 1 for example in examples for frames in example.streams.values()):
        raise DataError("has one vector a video; segments are parts of frame-level records", path=path)
    for example in examples:
        if example.rated is not None:
            raise DataError(
                f"video {example.id!r} is a rated segment already; read it whole with --whole-videos",
                path=path,
            )
        if list(example.streams) != names:
            raise DataError(
                f"video {example.id!r} has {', '.join(example.streams)}; the first has {', '.join(names)}",
                path=path,
            )
    rows = [
        {name: segment_means(frames, segments) for name, frames in example.streams.items()}
        for example in examples
    ]
    # A vector of the whole video, where there is one beside frames, stands beside each segment.
    counts = [max(map(len, row.values())) for row in rows]
    widened = [
        {name: np.broadcast_to(part, (count, part.shape[1])) for name, part in row.items()}
        for row, count in zip(rows, counts, strict=True)
    ]
    arrays: dict[str, Any] = {
        f"mean_{name}": np.concatenate([row[name] for row in widened]).astype(np.float16) for name in names
    }
    if label_names is not None:
        arrays["label_names"] = np.array(label_names)
    with written_whole(target) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            id=np.array([example.id for example in examples]),
            labels=np.concatenate([example.labels for example in examples]),
            label_offsets=np.cumsum([0, *(len(example.labels) for example in examples)]),
            frame_offsets=np.cumsum([0, *counts]),
            **arrays,
        )


def segment_means(frames: NDArray[np.generic], segments: int) -> NDArray[np.float32]:
    """Frames (T, D), bytes or floats, to the means (segments, D) of equal parts; (1, D) where T is less."""
    values = dequantize(torch.from_numpy(np.array(frames)))
    length = len(values) // segments
    parts = values[: length * segments].view(segments, length, -1) if length else values[None]
    return parts.mean(1).numpy()
