"""From a source to batches: shuffle, share among ranks, choose frames, pad, collate.

Batch number b of epoch e is a function of (seed, e, b) and of nothing else; what is drawn of videos in order,
to score them, follows from their ids. So the order is the same whatever the number of threads, a resumed run
goes on in the middle of an epoch by starting at its batch, and of several ranks each takes a slice of every
batch. Threads rather than processes read ahead: what they do is one checksum and one copy a stream, and a
process would have to copy the result once more.
"""

from __future__ import annotations

import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tagreel.batch import Batch, Example
from tagreel.distributed import ALONE, Ranks
from tagreel.errors import DataError, RecipeError
from tagreel.sampling import AllFrames, Sampler, choose, seed_of
from tagreel.source import Source

_ROUNDED = 1 << 20


class Loader:
    """Reads batches of a source, each example exactly once an epoch.

    `features` maps each stream to read to its width. A record without one of them is damaged unless the
    stream is `optional`, and so is one with a label of `classes` or more. With `subset`, (size, number), an
    epoch has only the number-th of disjoint random sets of so many examples, drawn once for all seeds; raises
    `RecipeError` where the source has too few. Shuffling permutes the shards and
    then the records of `window` shards together, so that only those need to be open at once. `threads`
    workers prepare up to `ahead` batches, and one each at least. More than `skip_damaged` damaged records
    raise a `DataError`, the first one's own when none may be skipped; those that were skipped are in
    `damaged`, which begins with those given: a resumed run goes on counting where it stopped. `waited` counts
    the seconds that the consumer stood waiting. Of several `ranks` each reads its slice of every batch of
    `batch_size`, and all know of the damage that any of them found.
    """

    def __init__(
        self,
        source: Source,
        *,
        features: Mapping[str, int],
        classes: int,
        batch_size: int,
        optional: Sequence[str] = (),
        sampling: Sampler | None = None,
        subset: tuple[int, int] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        ranks: Ranks = ALONE,
        threads: int = 1,
        ahead: int = 3,
        window: int = 16,
        skip_damaged: int = 0,
        damaged: Iterable[DataError] = (),
    ) -> None:
        self.source, self.features, self.optional, self.classes = source, dict(features), optional, classes
        self.batch_size, self.sampling = batch_size, sampling or AllFrames()
        self.shuffle, self.seed, self.ranks = shuffle, seed, ranks
        self.threads, self.ahead, self.window, self.skip_damaged = threads, ahead, window, skip_damaged
        self.damaged = {(error.path, error.record): error for error in damaged}
        self.waited = 0.0
        self._ends = np.cumsum(source.counts)
        self._chosen = None if subset is None else _chosen(len(source), *subset)
        self.examples = len(source) if subset is None else subset[0]
        self._memory = _Memory(keep=(max(ahead, threads) + 3) * len(self.features))
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        """Batches an epoch, on every rank the same."""
        return -(-self.examples // self.batch_size)

    def epoch(
        self, epoch: int = 0, *, start: int = 0, stop: int | None = None, empty: bool = False
    ) -> Iterator[tuple[int, Batch]]:
        """The batches of an epoch from number `start` on, to before `stop`, each with its number.

        One in which every record is damaged, on every rank, is left out unless `empty`.
        """
        ahead = max(self.ahead, self.threads)
        numbers = range(start, len(self) if stop is None else min(stop, len(self)))
        with (
            self.source.fetching(partial(self._needs, epoch, numbers)) as done,
            ThreadPoolExecutor(self.threads, thread_name_prefix="tagreel-loader") as pool,
        ):
            pending: deque[Future[Batch]] = deque()
            upcoming = iter(numbers)
            try:
                for index in numbers:
                    while len(pending) <= ahead and (number := next(upcoming, None)) is not None:
                        pending.append(pool.submit(self.batch, epoch, number))
                    began = time.perf_counter()
                    batch = pending.popleft().result()
                    self.waited += time.perf_counter() - began
                    done(index)
                    videos, damaged = self.ranks.add_up(len(batch), len(batch.damaged))
                    if damaged:
                        self._count_damage([error for on in self.ranks.share(batch.damaged) for error in on])
                    if videos or empty:
                        yield index, batch
            finally:
                for future in pending:
                    future.cancel()

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch number `index` of an epoch, this rank's slice of it, without its damaged records."""
        of_all = self._epoch_order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        examples: list[Example] = []
        damaged: list[DataError] = []
        for position in of_all[self.ranks.slice(len(of_all))].tolist():
            shard = int(np.searchsorted(self._ends, position, side="right"))
            record = position - int(self._ends[shard]) + self.source.counts[shard]
            try:
                opened = self.source.open(shard)
                example = opened[record]
                self._validate(example, path=opened.path, record=record)
            except DataError as error:
                damaged.append(error)
                continue
            examples.append(self._sampled(example, epoch, position))
        return collate(examples, features=self.features, damaged=damaged, empty=self._memory.empty)

    def stand_in(self) -> Batch:
        """A made-up video, for a rank that has none of a batch and has to take part in the step."""
        frames = {name: np.ones((1, width), np.float32) for name, width in self.features.items()}
        return collate([Example("", np.empty(0, np.int64), frames)], features=self.features)

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            epoch = 0
        cached = self._order
        if cached is not None and cached[0] == epoch:
            return cached[1]
        counts = np.asarray(self.source.counts)
        if self.shuffle:
            rng = np.random.default_rng((self.seed, epoch))
            shards = rng.permutation(len(counts))
            pieces = []
            for at in range(0, len(shards), self.window):
                group = shards[at : at + self.window]
                records = np.concatenate([np.arange(self._ends[s] - counts[s], self._ends[s]) for s in group])
                pieces.append(rng.permutation(self._among_chosen(records)))
            order = np.concatenate(pieces)
        else:
            order = self._among_chosen(np.arange(len(self.source)))
        self._order = (epoch, order)
        return order

    def _needs(self, epoch: int, numbers: range) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each shard the first and the last of these batches that has any of it; -1 for none."""
        start, stop = numbers.start * self.batch_size, numbers.stop * self.batch_size
        order = self._epoch_order(epoch)[start:stop]
        shards = np.searchsorted(self._ends, order, side="right")
        batches = numbers.start + np.arange(len(order)) // self.batch_size
        first, last = np.full((2, len(self._ends)), -1)
        first[shards[::-1]] = batches[::-1]  # of several the last one stays
        last[shards] = batches
        return first, last

    def _among_chosen(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return positions if self._chosen is None else positions[self._chosen[positions]]

    def _validate(self, example: Example, *, path: str, record: int) -> None:
        for name, width in self.features.items():
            frames = example.streams.get(name)
            if frames is None or not len(frames):
                if name not in self.optional:
                    raise DataError(self._reason_without(name, example), path=path, record=record)
            elif frames.shape[1] != width:
                found = frames.shape[1]
                swapped = found in self.features.values()
                hint = "are two streams swapped?" if swapped else f"train with --set features.{name}={found}"
                raise DataError(
                    f"{name!r} is {frames.shape[1]:,} wide, the model expects {width:,}; {hint}",
                    path=path,
                    record=record,
                )
            elif frames.dtype.kind == "f" and not np.isfinite(frames).all():
                raise DataError(f"{name!r} holds numbers that are not finite", path=path, record=record)
        # Rated classes too: one that was rated false is not among the labels.
        for labels in (example.labels, example.rated):
            if labels is not None and len(labels) and labels.max() >= self.classes:
                raise DataError(
                    f"label {labels.max():,}, but the model has {self.classes:,} classes "
                    f"(0 to {self.classes - 1:,})",
                    path=path,
                    record=record,
                )

    def _reason_without(self, name: str, example: Example) -> str:
        """Why a record that lacks a stream, or its frames, cannot be used, and how it could."""
        streams = example.streams
        if not streams.keys() & self.features.keys():
            there = ", ".join(f"{key} ({frames.shape[1]:,})" for key, frames in streams.items())
            wanted = ", ".join(f"{key} ({width:,})" for key, width in self.features.items())
            return f"other data than the model's: it has {there or 'nothing'}, the model reads {wanted}"
        missing = f"no {name!r} (it has: {', '.join(streams)})"
        reason = f"{name!r} has no frames" if name in streams else missing
        if any(len(frames) for key, frames in streams.items() if key in self.features):
            reason += f"; if videos may lack it, train with --set 'optional=[\"{name}\"]'"
        return reason

    def _sampled(self, example: Example, epoch: int, position: int) -> Example:
        streams = {
            name: frames
            for name in self.features
            if (frames := example.streams.get(name)) is not None and len(frames)
        }
        lengths = {name: len(frames) for name, frames in streams.items()}
        # What is scored does not depend on where it lies, nor on what else is.
        seed = (self.seed, epoch, position) if self.shuffle else seed_of(example.id, epoch)
        chosen = choose(self.sampling, lengths, seed)
        example.streams = {name: streams[name][choice] for name, choice in chosen.items()}
        return example

    def _count_damage(self, damaged: list[DataError]) -> None:
        for error in damaged:
            self.damaged[error.path, error.record] = error
            if not self.skip_damaged:
                raise error
            if len(self.damaged) > self.skip_damaged:
                raise DataError(
                    f"{error.reason}; this is damaged record number {len(self.damaged):,}, and "
                    f"--skip-damaged allows {self.skip_damaged:,}",
                    path=error.path,
                    record=error.record,
                )


def _chosen(total: int, size: int, number: int) -> NDArray[np.bool_]:
    """Whether each of `total` positions is in subset `number`: consecutive pieces of one permutation."""
    if size * number > total:
        raise RecipeError(
            f"training.subset: {number} disjoint sets of {size:,} videos need {size * number:,}, and "
            f"there are {total:,}; give more data, or set a smaller size"
        )
    mask = np.zeros(total, np.bool_)
    mask[np.random.default_rng(0).permutation(total)[size * (number - 1) : size * number]] = True
    return mask


def collate(
    examples: Sequence[Example],
    *,
    features: Mapping[str, int],
    damaged: Sequence[DataError] = (),
    empty: Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]] = np.empty,
) -> Batch:
    """Pad each stream to its longest video and put the examples side by side, in arrays from `empty`."""
    streams, num_frames = {}, {}
    for name, width in features.items():
        rows = [example.streams.get(name) for example in examples]
        counts = np.array([0 if row is None else len(row) for row in rows], np.int64)
        length = max(int(counts.max(initial=0)), 1)
        padded = empty((len(rows), length, width), _common_dtype(rows))
        _fill(padded, rows)
        streams[name] = torch.from_numpy(padded)
        num_frames[name] = torch.from_numpy(counts)
    label_ids, label_counts = _ragged([example.labels for example in examples])
    batch = Batch(
        ids=[example.id for example in examples],
        streams=streams,
        num_frames=num_frames,
        label_ids=label_ids,
        label_counts=label_counts,
        damaged=list(damaged),
    )
    if any(example.rated is not None for example in examples):
        none = np.empty(0, np.int64)
        rated = [none if example.rated is None else example.rated for example in examples]
        batch.rated_ids, batch.rated_counts = _ragged(rated)
        batch.rated_all = torch.tensor([example.rated is None for example in examples])
    return batch


def _common_dtype(rows: Sequence[NDArray[Any] | None]) -> np.dtype[Any]:
    kinds = {row.dtype for row in rows if row is not None}
    return kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)


def _fill(padded: NDArray[Any], rows: Sequence[NDArray[Any] | None]) -> None:
    for target, row in zip(padded, rows, strict=True):
        count = 0
        if row is not None:
            count = len(row)
            # Bytes among floats, in a mixed source, take the values that the device would give them.
            mixed = row.dtype == np.uint8 and padded.dtype != np.uint8
            target[:count] = row * np.float32(4 / 255) + np.float32(4 / 512 - 2) if mixed else row
        target[count:] = 0


class _Memory:
    """Arrays for batches out of memory that earlier batches no longer use.

    Fresh memory costs more than the copy into it: the system hands it out page by page, each zeroed. When the
    last tensor of a batch is gone its memory returns here, up to `keep` pieces.
    """

    def __init__(self, *, keep: int) -> None:
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=keep)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An uninitialised array, as `np.empty`."""
        size = math.prod(shape) * dtype.itemsize
        memory = self._take(size)
        array = memory[:size].view(dtype).reshape(shape)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array

    def _take(self, size: int) -> NDArray[np.uint8]:
        for _ in range(len(self._free)):
            try:
                memory = self._free.popleft()
            except IndexError:  # another thread was faster
                break
            if size <= len(memory) <= 2 * size + _ROUNDED:
                return memory
            self._free.append(memory)
        return np.empty(-(-size // _ROUNDED) * _ROUNDED, np.uint8)


def _ragged(lists: Sequence[NDArray[np.int64]]) -> tuple[torch.Tensor, torch.Tensor]:
    counts = torch.tensor([len(ids) for ids in lists], dtype=torch.int64)
    flat = np.concatenate(lists) if lists else np.zeros(0, np.int64)
    return torch.from_numpy(flat.astype(np.int64, copy=False)), counts
