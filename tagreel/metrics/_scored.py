"""One batch of scores and labels: checked once and ranked once, however many metrics read it.

`metric.update(scores, labels)` is `metric.add(Scored(scores, labels))`. Who feeds several metrics builds
the `Scored` himself and hands it to each, so that GAP, PERR, Hit@1 and mAP share one ranking.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array: TypeAlias = Tensor | ArrayLike

# GAP, PERR and Hit@1 ask for different depths; ranking this deep at once serves them all in any order.
_SHARED_DEPTH = 20
# Scores read at a time: a block that stays in the cache makes the CPU path twice as fast.
_CPU_BLOCK, _DEVICE_BLOCK = 2**19, 2**26


class Metric(Protocol):
    """A number about all (video, class) pairs seen so far; neither batches nor their order change it."""

    def update(self, scores: Array, labels: Array) -> None:
        """Counts B more videos: scores (B, C) and labels (B, C), positive where greater than 0."""
        ...

    def add(self, scored: Scored) -> None:
        """Counts B more videos that were checked already."""
        ...

    def compute(self) -> float:
        """The value so far; 0 before the first video."""
        ...

    def merge(self, other: Self) -> None:
        """Counts what another one has counted, on another rank say, as well."""
        ...

    def reset(self) -> None:
        """Forgets every video."""
        ...


@dataclass(slots=True)
class Top:
    """The k best classes of each video, best first; each field (B, k)."""

    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    hits: NDArray[np.bool_]

    def __getitem__(self, at: Any) -> Top:
        """The same for some of the videos, or of the places."""
        return Top(self.scores[at], self.classes[at], self.hits[at])


class Scored:
    """Scores (B, C) and labels (B, C) of B videos, on any device, of any real dtype.

    Scores are compared as float32, which keeps float16 and bfloat16 exactly. A label greater than 0 is
    positive. Among equal scores the lower class ranks first. `ValueError` for shapes that do not fit and
    for NaN, which has no rank.
    """

    def __init__(self, scores: Array, labels: Array) -> None:
        scores, labels = _tensor(scores), _tensor(labels)
        if scores.ndim != 2 or scores.shape != labels.shape or scores.shape[1] == 0:
            raise ValueError(
                f"scores and labels must both be (videos, classes); found {tuple(scores.shape)} "
                f"and {tuple(labels.shape)}"
            )
        self.scores: Tensor = scores.float().contiguous()
        self.labels: Tensor = labels.to(scores.device)
        self.positives: tuple[NDArray[np.int64], NDArray[np.int64]]
        """The videos and the classes of all positive labels, in order of video, then class."""

        # Block by block, so that checking, counting and ranking read the memory once between them.
        flat, classes = [np.zeros(0, np.int64)], []
        for rows in self._blocks():
            if torch.isnan(self.scores[rows].amax()):
                raise _nan("scores", self.scores)
            positives = _positives(self.labels[rows])
            if positives is None:
                raise _nan("labels", self.labels)
            flat.append(positives + rows.start * self.num_classes)
            classes.append(_rank(self.scores[rows], min(_SHARED_DEPTH, self.num_classes)))
        videos, ids = np.divmod(np.concatenate(flat), self.num_classes)
        self.positives = videos, ids
        self._top = self._gather(classes)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return self.scores.shape[1]

    @cached_property
    def positive_scores(self) -> NDArray[np.float32]:
        """The score of each positive label, in the order of `positives`."""
        videos, classes = (torch.from_numpy(ids).to(self.scores.device) for ids in self.positives)
        return self.scores[videos, classes].cpu().numpy()

    def top(self, k: int) -> Top:
        """The k best classes of each video, or all C where C is less."""
        k = min(k, self.num_classes)
        if self._top.scores.shape[1] < k:
            self._top = self._gather([_rank(self.scores[rows], k) for rows in self._blocks()])
        return self._top[:, :k]

    def __getitem__(self, videos: NDArray[np.int64]) -> Scored:
        """The same for some of the videos."""
        rows = torch.from_numpy(videos).to(self.scores.device)
        return Scored(self.scores[rows], self.labels[rows])

    def _blocks(self) -> Iterator[slice]:
        rows = max(1, (_CPU_BLOCK if self.scores.is_cpu else _DEVICE_BLOCK) // self.num_classes)
        for start in range(0, len(self), rows):
            yield slice(start, min(start + rows, len(self)))

    def _gather(self, blocks: list[Tensor]) -> Top:
        classes = torch.cat(blocks) if blocks else torch.zeros(0, self.num_classes, dtype=torch.int64)
        return Top(
            scores=self.scores.gather(1, classes).cpu().numpy(),
            classes=classes.cpu().numpy(),
            hits=(self.labels.gather(1, classes) > 0).cpu().numpy(),
        )


def _rank(scores: Tensor, k: int) -> Tensor:
    return top_cpu(scores, k) if scores.is_cpu else top_device(scores, k)


def top_device(scores: Tensor, k: int) -> Tensor:
    """The k best classes (B, k) of each video by sorting all; right on any device, fast on a GPU.

    Not `torch.topk`: among equal scores it returns any class.
    """
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


def top_cpu(scores: Tensor, k: int) -> Tensor:
    """The k best classes (B, k) of each video; on a CPU a third faster than `torch.topk`.

    The classes are dealt into groups, and each group's maximum is a score of the video, so the k-th largest
    maximum is a lower bound of the k-th best score. Few scores reach it, and only those are sorted.
    """
    B, C = scores.shape
    groups = 32 * -(-k // 5)  # at least 6 a class that is sought; a multiple of the vector width
    values = scores.numpy()
    if 2 * groups > C:
        flat = np.arange(B * C)
    else:
        maxima = scores[:, : C // groups * groups].view(B, -1, groups).amax(dim=1)
        bound = np.partition(maxima.numpy(), groups - k, axis=1)[:, groups - k]
        flat = _places(values >= bound[:, None])
    rows = flat // C
    # Video, score and class are sorted as one integer, several times as fast as by an order of places.
    bits = C.bit_length()
    keys = (rows << 32) + (~ordered(values.ravel()[flat]) + 2**31)
    keys = np.sort((keys << bits) + (flat - rows * C))
    first = np.searchsorted(rows, np.arange(B))
    return torch.from_numpy(keys[first[:, None] + np.arange(k)] & ((1 << bits) - 1))


def ordered(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Integers from -2^31 to 2^31 in the order of the scores; -0.0 equals 0.0."""
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _places(true: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`np.flatnonzero`, twice as fast where few are true: it looks at eight at a time."""
    flat = true.ravel()
    whole = len(flat) // 8 * 8
    words = np.flatnonzero(flat[:whole].view(np.uint64) != 0)
    within = np.flatnonzero(flat[:whole].reshape(-1, 8)[words])
    return np.concatenate([words[within >> 3] * 8 + (within & 7), whole + np.flatnonzero(flat[whole:])])


def _tensor(values: Array) -> Tensor:
    if isinstance(values, np.ndarray):
        values = np.require(values, requirements=["C", "W"])  # torch warns of arrays it could not write to
    return torch.as_tensor(values).detach()


def _positives(labels: Tensor) -> NDArray[np.int64] | None:
    """The places of the positive labels in the flattened matrix; None where a label is NaN."""
    if not labels.is_cpu:
        nan = labels.is_floating_point() and bool(labels.isnan().any())
        return None if nan else (labels > 0).view(-1).nonzero().view(-1).cpu().numpy()
    values = (labels.float() if labels.dtype == torch.bfloat16 else labels).numpy()
    flat = _places(values != 0)  # torch takes five times as long
    found = values.ravel()[flat]
    return None if np.isnan(found).any() else flat[found > 0]


def _nan(name: str, values: Tensor) -> ValueError:
    where = torch.isnan(values).nonzero()
    video, label = where[0].tolist()
    return ValueError(f"{name}: {len(where):,} are NaN; the first is class {label} of video {video}")
