"""Many media files to a data set: Arrow shards of features, made in parallel, interrupted and gone on with.

    OUT/videos-00000-of-00012.arrow   the data set, which training takes as it is
    OUT/projection-rgb.safetensors    where one was fitted
    OUT/report.json                   how many videos and seconds there are, and what could not be read
    OUT/extraction.json               what is being done, so that another run does the same
    OUT/.parts/                       videos that are done and not in a shard yet

A video's features depend on it alone and a shard's bytes on its videos, so that the data set is the same
however often it was interrupted, and by however many processes or machines it was made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, Literal

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray

from tagreel import shards
from tagreel.batch import Example
from tagreel.errors import DataError, RecipeError, TagreelError
from tagreel.extractor import Extractor, Frames
from tagreel.files import read_json, read_tensors, write_json, write_tensors
from tagreel.projection import Projection, fit

PER_SHARD = 256
FIT_VIDEOS = 1000


@dataclass(frozen=True)
class Video:
    """A media file to read, under the id that it gets, with the classes that it is known to show."""

    id: str
    path: str
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Extracted:
    """What is in a data set now: videos, seconds of them, and the files that could not be read, and why."""

    videos: int
    seconds: int
    bad: list[dict[str, str]]


def extract(
    videos: Sequence[Video],
    out: Path,
    extractor: Extractor,
    *,
    label_names: Sequence[str] | None = None,
    pca: Mapping[str, int] | None = None,
    per_shard: int = PER_SHARD,
    jobs: int = 1,
    part: tuple[int, int] = (1, 1),
    engine: Literal["local", "ray"] = "local",
    max_bad: int | None = None,
    retry: bool = False,
    on_video: Callable[[int], None] | None = None,
) -> Extracted | None:
    """Write the features of all videos to the folder `out`; the same call goes on where one was stopped.

    `pca` gives a stream so many numbers by a projection that is fitted first, on `FIT_VIDEOS` of the videos
    (those whose ids have the lowest hashes). `jobs` files are decoded at a time. As `part` (i, n) only every
    n-th shard is made, from the i-th on; the result is None until all shards are there. With Ray as `engine`
    shards are made by the workers of a cluster that see the same folders. A file that cannot
    be read is noted and left out; more than `max_bad` of them end the work with a `DataError`. `retry` reads
    again what was left out earlier. `on_video` is told how many videos are done.
    """
    if twice := _twice(video.id for video in videos):
        raise RecipeError(f"two videos have the id {twice!r}; extract them into two data sets")
    if not videos:
        raise RecipeError("there is no video to extract")
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, _plan(videos, extractor, label_names, pca, per_shard))
    if engine == "ray":  # whose workers have other current folders
        videos = [replace(video, path=os.path.abspath(video.path)) for video in videos]
        out = out.absolute()
    work = _Work(videos, out, extractor, list(label_names) if label_names else None, per_shard, max_bad)
    if retry:
        work.forget_bad()
    work.part(0).parent.mkdir(exist_ok=True)
    with _Readers(work, jobs) as readers:
        for stream, dim in (pca or {}).items():
            if part[0] > 1 and not work.projection(stream).exists():
                raise RecipeError(
                    f"--part {part[0]}/{part[1]}: part 1 fits the projection of {stream!r}; start this one "
                    f"when {work.projection(stream)} is there"
                )
            work.extractor = _fitted(work, readers, stream, dim)
        own = range(part[0] - 1, work.shards, part[1])
        missing = [number for number in own if not work.target(number).exists()]
        done = sum(len(work.members(number)) for number in own if number not in missing)
        for count in _on_ray(work, missing, jobs) if engine == "ray" else _here(work, missing, readers):
            done += count
            if on_video is not None:
                on_video(done)
    return work.finish()


def _here(work: _Work, missing: Sequence[int], readers: _Readers) -> Iterator[int]:
    """Make shards one after the other; yields how many videos more are done."""
    arrived = readers.read([index for number in missing for index in work.members(number)])
    for number in missing:
        for _ in work.members(number):
            next(arrived)
            yield 1
        work.write(number)


def _on_ray(work: _Work, missing: Sequence[int], jobs: int) -> Iterator[int]:
    """Make shards as a Ray Data job, each by one of as many actors as the cluster has cores for.

    A shard gets its name when it is whole, and is the same whoever makes it: one whose worker was lost is
    made again by another.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RecipeError("--engine ray needs Ray; install it with pip install 'tagreel[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="warning")
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    most = max(1, int(ray.cluster_resources().get("CPU", 1)) // jobs)
    made = ray.data.from_items([{"shard": number} for number in missing]).map(
        _Maker,
        fn_constructor_args=(work, jobs),
        num_cpus=jobs,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
    )
    for row in made.iter_rows() if missing else ():
        yield int(row["videos"])


class _Maker:
    """What a worker of a cluster is: it makes the shards that it is told."""

    def __init__(self, work: _Work, jobs: int) -> None:
        self._work, self._jobs = work, jobs

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make one."""
        with _Readers(self._work, self._jobs) as readers:
            return {"videos": sum(_here(self._work, [row["shard"]], readers))}


@dataclass
class _Work:
    """The videos of a data set, its files, and its parts: a video's raw features, or why it has none."""

    videos: Sequence[Video]
    out: Path
    extractor: Extractor
    label_names: list[str] | None
    per_shard: int
    max_bad: int | None

    @property
    def shards(self) -> int:
        return -(-len(self.videos) // self.per_shard)

    def target(self, number: int) -> Path:
        return self.out / f"videos-{number:05d}-of-{self.shards:05d}.arrow"

    def projection(self, stream: str) -> Path:
        return self.out / f"projection-{stream}.safetensors"

    def members(self, number: int) -> range:
        first = number * self.per_shard
        return range(first, min(first + self.per_shard, len(self.videos)))

    def part(self, index: int) -> Path:
        return self.out / ".parts" / f"{index:09d}.safetensors"

    def note(self, index: int) -> Path:
        return self.part(index).with_suffix(".json")

    def is_read(self, index: int) -> bool:
        return self.part(index).exists() or self.note(index).exists()

    def read(self, index: int, stop: Event) -> None:
        """Make the part of a video, unless it is there."""
        if self.is_read(index):
            return
        video = self.videos[index]
        try:
            pieces: list[Frames] = []
            for piece in self.extractor.pieces(video.path):
                if stop.is_set():
                    return
                pieces.append(piece)
            raw = {stream: np.concatenate([piece[stream] for piece in pieces]) for stream in pieces[0]}
        except DataError as error:
            bad = {"id": video.id, "path": video.path, "reason": error.reason}
            write_json(self.note(index), bad)
            noted = sum(1 for _ in self.note(index).parent.glob("*.json"))
            if self.max_bad is not None and noted > self.max_bad:
                raise DataError(
                    f"{error.reason}; this is unreadable file number {noted:,}, and --max-bad allows "
                    f"{self.max_bad:,}",
                    path=video.path,
                ) from error
        else:
            write_tensors(self.part(index), {name: torch.from_numpy(frames) for name, frames in raw.items()})

    def raw(self, index: int) -> dict[str, NDArray[np.float32]] | None:
        """A part; None where the video could not be read."""
        if self.note(index).exists():
            return None
        return {name: tensor.numpy() for name, tensor in read_tensors(self.part(index)).items()}

    def write(self, number: int) -> None:
        """Write a shard, and remove the parts that it is made of."""
        parts = [self.part(index) for index in self.members(number)]
        lengths = [_seconds(part) for part in parts if part.exists()]
        shards.write(
            self.target(number),
            self._examples(number),
            label_names=self.label_names,
            provenance=self.extractor.provenance,
            inputs={"videos": len(lengths), "seconds": sum(lengths)},
        )
        for part in parts:
            part.unlink(missing_ok=True)

    def finish(self) -> Extracted | None:
        """The report, once all shards are there."""
        targets = [self.target(number) for number in range(self.shards)]
        report = self.out / "report.json"
        if not all(target.exists() for target in targets):
            return None
        if not report.exists():
            bad = [read_json(note) for note in sorted((self.out / ".parts").glob("*.json"))]
            read = [shards.made_of(target)[0] for target in targets]
            videos, seconds = (sum(each[key] for each in read) for key in ("videos", "seconds"))
            write_json(report, {"videos": videos, "seconds": seconds, "bad": bad})
        found = read_json(report)
        shutil.rmtree(self.out / ".parts", ignore_errors=True)
        if not found["videos"]:
            first = found["bad"][0]
            raise DataError(f"{first['reason']}; and no other file can be read either", path=first["path"])
        return Extracted(found["videos"], found["seconds"], found["bad"])

    def forget_bad(self) -> None:
        """Remove the shards that lack a video, so that it is tried again."""
        report = self.out / "report.json"
        bad = read_json(report)["bad"] if report.exists() else []
        known = {video.id: index for index, video in enumerate(self.videos)}
        noted = {int(note.stem) for note in (self.out / ".parts").glob("*.json")}
        for index in {*(known[each["id"]] for each in bad), *noted}:
            self.target(index // self.per_shard).unlink(missing_ok=True)
            self.note(index).unlink(missing_ok=True)
        report.unlink(missing_ok=True)

    def _examples(self, number: int) -> Iterator[Example]:
        for index in self.members(number):
            if (raw := self.raw(index)) is not None:
                video = self.videos[index]
                labels = np.array(sorted(video.labels), np.int64)
                yield Example(id=video.id, labels=labels, streams=self.extractor.finish(raw))


class _Readers:
    """Threads that make parts, some files ahead of the one that is waited for."""

    def __init__(self, work: _Work, jobs: int) -> None:
        self._work, self._ahead, self._stop = work, 4 * jobs, Event()
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="tagreel-extract")

    def read(self, indices: Sequence[int]) -> Iterator[int]:
        """Yield each index once its part is there, in order."""
        pending: deque[tuple[int, Future[None]]] = deque()
        upcoming = iter(indices)
        for _ in indices:
            while len(pending) < self._ahead and (index := next(upcoming, None)) is not None:
                pending.append((index, self._pool.submit(self._work.read, index, self._stop)))
            index, future = pending.popleft()
            future.result()
            yield index

    def __enter__(self) -> _Readers:
        return self

    def __exit__(self, *error: object) -> None:
        # Nobody waits for the rest of a film: its decoder ends with the next piece.
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


def _fitted(work: _Work, readers: _Readers, stream: str, dim: int) -> Extractor:
    """The extractor with the projection of a stream, read or else fitted and written."""
    path = work.projection(stream)
    if not path.exists():
        by_hash = sorted(range(len(work.videos)), key=lambda index: _hash(work.videos[index].id))
        chosen = by_hash[:FIT_VIDEOS]
        for _ in readers.read(chosen):
            pass
        parts = (work.raw(index) for index in sorted(chosen))
        try:
            fit((part[stream] for part in parts if part is not None and stream in part), dim).save(path)
        except TagreelError as error:
            raise RecipeError(f"--pca {stream}={dim}: {error}") from error
    projections = {**work.extractor.projections, stream: Projection.load(path)}
    return Extractor(work.extractor.encoders, projections, limits=work.extractor.limits)


def _seconds(part: Path) -> int:
    with safetensors.safe_open(part, "np") as file:
        return int(max(file.get_slice(name).get_shape()[0] for name in file.keys()))  # noqa: SIM118


def _plan(
    videos: Sequence[Video],
    extractor: Extractor,
    label_names: Sequence[str] | None,
    pca: Mapping[str, int] | None,
    per_shard: int,
) -> dict[str, Any]:
    listed = [(video.id, sorted(video.labels)) for video in videos]
    return {
        "videos": len(videos),
        "listed": _hash(json.dumps([listed, list(label_names) if label_names else None])),
        "streams": {name: dict(made) for name, made in extractor.provenance.streams.items()},
        "pca": dict(pca or {}),
        "videos_per_shard": per_shard,
    }


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Note what is done in `out`; raise `RecipeError` where something else was."""
    path = out / "extraction.json"
    if not path.exists():
        if strangers := [name for name in os.listdir(out) if not name.startswith(".")]:
            raise RecipeError(f"--out {out}: holds {strangers[0]}; expected a new folder")
        write_json(path, plan)
    before = read_json(path)
    for key, now in plan.items():
        if (was := before.get(key) if isinstance(before, dict) else None) != now:
            what = (
                "the videos or their labels have changed"
                if key in ("videos", "listed")
                else f"{key} was {json.dumps(was)}, now it is {json.dumps(now)}"
            )
            raise RecipeError(
                f"--out {out}: was begun otherwise: {what}; give the same, or extract into another folder"
            )


def _twice(ids: Iterator[str]) -> str | None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            return name
        seen.add(name)
    return None


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
