"""Any readable source to Arrow shards of one size: the same videos in the same order, each shard verified.

Which records a shard takes follows from the sizes of the files alone, and a shard has its name only once it
is whole and was read again. So a run that was stopped goes on with what is missing, and the result is the
same to the byte whatever the number of jobs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from tagreel import shards
from tagreel.batch import Example
from tagreel.errors import DataError, RecipeError
from tagreel.files import written_whole
from tagreel.source import Source

SHARD_SIZE = 10**9

Damage = dict[tuple[int, int], DataError]
"""The error of each damaged record, by the number of the source's shard and its own in it."""


@dataclass(frozen=True)
class Converted:
    """What `convert` made: shards, videos in them, the shards that were there before, what was damaged."""

    shards: int
    videos: int
    kept: int
    damaged: list[DataError]


@dataclass(frozen=True)
class Piece:
    """Records `first` ... `stop - 1` of the source's shard `number`."""

    number: int
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True)
class Task:
    """A shard to write: the pieces of the source that it takes, and what it says of them in its `inputs`."""

    target: Path
    pieces: list[Piece]
    inputs: dict[str, Any]

    @property
    def records(self) -> int:
        """How many records it takes, damaged ones counted."""
        return sum(map(len, self.pieces))


def convert(
    source: Source,
    out: Path,
    *,
    shard_size: int = SHARD_SIZE,
    jobs: int = 1,
    verify: bool = True,
    skip_damaged: int = 0,
    on_videos: Callable[[int], None] | None = None,
) -> Converted:
    """Write the source's videos to `out/shard-00000-of-00012.arrow`, ..., of about `shard_size` bytes each.

    Finished shards that were made of the same records are kept, others refused (`RecipeError`). With `verify`
    each shard is read again and compared with the source. `jobs` processes write a shard each; one shard, or
    one job, takes none. `on_videos` is told how many videos are done. More than `skip_damaged` damaged
    records raise a `DataError`; a video whose streams are of another type or width than those before it
    counts as damaged as well.
    """
    if shard_size < 1 or jobs < 1:
        raise RecipeError(f"--shard-size is {shard_size} and --jobs {jobs}; expected at least 1 of each")
    types: dict[str, Any] = {}
    with suppress(DataError):  # told when its turn comes
        shards.fit(source.first(), types, path=source.paths[0])
    tasks = _plan(source, out, shard_size)
    finished = _finished(source, out, tasks)
    damaged: Damage = {}
    videos = done = 0

    def count(task: Task, found: int) -> None:
        nonlocal videos, done
        videos, done = videos + found, done + task.records
        if on_videos is not None:
            on_videos(done)

    open_tasks = []
    for task in tasks:
        if finished.get(task.target) == task.records:
            count(task, task.records)
        else:
            open_tasks.append(task)
    make = partial(_make, source, finished=finished, types=types, verify=verify, skip_damaged=skip_damaged)
    needed = {piece.number for task in open_tasks for piece in task.pieces}
    steps = np.array([number if number in needed else -1 for number in range(len(source.paths))])
    left = list(open_tasks)
    with source.fetching(lambda: (steps, steps)) as read:
        for task, (found, errors) in _each(make, open_tasks, jobs):
            for place, error in errors.items():
                _note(damaged, place, error, allowed=skip_damaged)
            count(task, found)
            left.remove(task)
            read(min((one.pieces[0].number for one in left), default=len(steps)) - 1)
    in_order = [error for _, error in sorted(damaged.items())]
    return Converted(shards=len(tasks), videos=videos, kept=len(finished), damaged=in_order)


def _plan(source: Source, out: Path, shard_size: int) -> list[Task]:
    """What each shard is made of; a record counts as its file's size by the records in it, packed or not."""
    plan: list[list[Piece]] = [[]]
    room = float(shard_size)
    sizes = source.sizes()
    for number, count in enumerate(source.counts):
        each = sizes[number] / max(count, 1)
        first = 0
        while first < count:
            fitting = int(room / each) if each else count
            if not fitting and plan[-1]:
                plan.append([])
                room = float(shard_size)
                continue
            piece = Piece(number, first, min(first + max(fitting, 1), count))
            plan[-1].append(piece)
            room -= len(piece) * each
            first = piece.stop
    tasks = []
    for number, pieces in enumerate(plan):
        files = [
            [Path(source.paths[piece.number]).name, sizes[piece.number], piece.first, piece.stop]
            for piece in pieces
        ]
        inputs = {"files": files, "whole_videos": source.whole_videos}
        tasks.append(Task(out / f"shard-{number:05}-of-{len(plan):05}.arrow", pieces, inputs))
    return tasks


def _finished(source: Source, out: Path, tasks: Sequence[Task]) -> dict[Path, int]:
    """How many videos each finished shard has; makes the folder, and refuses what else is in it."""
    local = [path for path in source.paths if "://" not in path]
    inside = [path for path in local if out.resolve() in Path(path).resolve().parents]
    if inside:
        raise RecipeError(f"--out {out}: {inside[0]} is to be read; expected another folder than the data's")
    out.mkdir(parents=True, exist_ok=True)
    names = {task.target.name for task in tasks}
    for path in sorted(out.glob("*.arrow*")):
        if path.name.partition(".arrow")[0] + ".arrow" not in names:
            raise _other(out, path)
    finished = {}
    for task in tasks:
        if task.target.exists():
            inputs, count = shards.made_of(task.target)
            if inputs != task.inputs:
                raise _other(out, task.target)
            finished[task.target] = count
    return finished


def _other(out: Path, path: Path) -> RecipeError:
    return RecipeError(
        f"--out {out}: holds {path.name}, which is not of these files and this --shard-size; remove it or "
        "choose another folder"
    )


def _make(
    source: Source,
    task: Task,
    *,
    finished: dict[Path, int],
    types: dict[str, Any],
    verify: bool,
    skip_damaged: int,
) -> tuple[int, Damage]:
    """Write a shard; how many videos it has, and what was damaged. Of a finished one only tell."""
    damaged: Damage = {}
    walk = partial(_walk, source, task.pieces, types, damaged, skip_damaged)
    if task.target in finished:
        deque(walk(), maxlen=0)
        return finished[task.target], damaged
    with written_whole(task.target) as temporary:
        videos = shards.write(
            temporary,
            walk(),
            label_names=source.label_names,
            provenance=source.provenance,
            inputs=task.inputs,
        )
        if verify:
            shards.verify(temporary, walk())
    return videos, damaged


def _walk(
    source: Source, pieces: Sequence[Piece], types: dict[str, Any], damaged: Damage, allowed: int
) -> Iterator[Example]:
    """The readable videos of pieces of the source, in order; adds to `damaged`."""
    types = dict(types)
    for piece in pieces:
        shard = source.open(piece.number)
        for index in range(piece.first, piece.stop):
            try:
                example = shard[index]
                shards.fit(example, types, path=shard.path, record=index)
            except DataError as error:
                _note(damaged, (piece.number, index), error, allowed=allowed)
            else:
                yield example


def _note(damaged: Damage, place: tuple[int, int], error: DataError, *, allowed: int) -> None:
    """Count a damaged record, once; raises the error of one that is not allowed."""
    damaged[place] = error
    if not allowed:
        raise error
    if len(damaged) > allowed:
        raise DataError(
            f"{error.reason}; this is damaged record number {len(damaged):,}, and --skip-damaged allows "
            f"{allowed:,}",
            path=error.path,
            record=error.record,
        )


def _each(
    make: Callable[[Task], tuple[int, Damage]], tasks: Sequence[Task], jobs: int
) -> Iterator[tuple[Task, tuple[int, Damage]]]:
    """What is made of each task, as it is done; what has begun is finished when one fails."""
    if jobs == 1 or len(tasks) <= 1:
        yield from ((task, make(task)) for task in tasks)
        return
    # Not forked: this process has threads, among them the progress bar's.
    spawning = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=spawning, initializer=_follow_parent)
    try:
        pending = {pool.submit(make, task): task for task in tasks}
        for future in as_completed(pending):
            yield pending[future], future.result()
    except BrokenProcessPool:
        raise RecipeError(
            f"--jobs {jobs}: a process was ended from outside, perhaps for want of memory; the same command "
            "goes on, with fewer jobs if that was it"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, but end when it is killed: a new run may write the same file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()
