"""The segments of videos, and for each class those that show it best: the task of 2019's challenge.

As in the YouTube-8M starter code (`inference.py` with `--segment_labels`), a video is cut into segments of
five frames that do not overlap, each scored as a video of its own, and for each class a heap keeps the best
100,000. The starter code lets a segment into the heaps of its 20 best classes alone, we into any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from tagreel.batch import Batch

_SLACK = 4096


def cut(batch: Batch, length: int, *, at_once: int) -> Iterator[Batch]:
    """The segments of a batch of whole videos, from frame 0, `length`, 2 · `length` on, `at_once` a batch.

    The last one of a video has the frames that are left. A segment's id is `video:start`, and it has no
    labels. A stream of one frame beside longer ones is the video's vector, and stays.
    """
    frames = torch.stack(list(batch.num_frames.values())).amax(0).cpu().numpy()
    counts = -(-frames // length)
    videos = np.repeat(np.arange(len(batch)), counts)
    starts = (np.arange(len(videos)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    for first in range(0, len(videos), at_once):
        piece = slice(first, first + at_once)
        yield _segments(batch, videos[piece], starts[piece], frames[videos[piece]], length)


def _segments(
    batch: Batch,
    videos: NDArray[np.int64],
    starts: NDArray[np.int64],
    frames: NDArray[np.int64],
    length: int,
) -> Batch:
    streams, num_frames = {}, {}
    for name, stream in batch.streams.items():
        place = torch.from_numpy(videos).to(stream.device)
        start, longest = (torch.from_numpy(each).to(stream.device) for each in (starts, frames))
        count = batch.num_frames[name][place]
        whole = count < longest  # a vector, or a stream that the video lacks
        num_frames[name] = torch.where(whole, count, (longest - start).clamp(max=length))
        steps = torch.arange(max(int(num_frames[name].max()), 1), device=stream.device)
        index = torch.where(whole, 0, start)[:, None] + steps
        streams[name] = stream[place[:, None], index.clamp(max=stream.shape[1] - 1)]
    none = batch.label_counts.new_zeros(0)
    return replace(
        batch,
        ids=[f"{batch.ids[video]}:{start}" for video, start in zip(videos, starts, strict=True)],
        streams=streams,
        num_frames=num_frames,
        label_ids=none,
        label_counts=none.new_zeros(len(videos)),
        rated_ids=None,
        rated_counts=None,
        rated_all=None,
        damaged=[],
    )


class Ranking:
    """For each of `classes` the `per_class` segments with the highest scores; the earlier one among equals.

    A score of 0 is none. In memory are 8 bytes for each segment of each class, of `per_class` and half as
    many again at most, whatever the number of segments that come by.
    """

    def __init__(self, classes: int, per_class: int) -> None:
        self.per_class = per_class
        self._most = per_class + max(per_class // 2, _SLACK)
        self._scores = np.empty((classes, 0), np.float32)
        self._segments = np.empty((classes, 0), np.int32)
        self._counts = np.zeros(classes, np.int64)
        self._bounds = np.zeros(classes, np.float32)  # what a score must exceed
        self._seen = 0

    def add(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Take in the scores (S, classes) of further segments; which of them may be in the end's ranking."""
        chosen = np.zeros(scores.shape, np.bool_)
        for first in range(0, len(scores), _SLACK):
            piece = slice(first, first + _SLACK)
            chosen[piece] = scores[piece] > self._bounds
            self._keep(scores[piece], chosen[piece])
        return chosen

    def best(self) -> Iterator[NDArray[np.int32]]:
        """Class by class the numbers of its segments, in the order in which they came, the best first."""
        for scores, segments, count in zip(self._scores, self._segments, self._counts, strict=True):
            yield segments[np.argsort(-scores[:count], kind="stable")[: self.per_class]]

    def _keep(self, scores: NDArray[np.float32], chosen: NDArray[np.bool_]) -> None:
        added = chosen.sum(0)
        if (self._counts + added).max() > self._scores.shape[1]:
            self._make_room(added)
        classes, segments = np.nonzero(chosen.T)
        # Counted through all that are added, but behind what each class has.
        place = np.arange(len(classes)) + np.repeat(self._counts - (np.cumsum(added) - added), added)
        self._scores[classes, place] = scores[segments, classes]
        self._segments[classes, place] = segments + self._seen
        self._counts += added
        self._seen += len(scores)

    def _make_room(self, added: NDArray[np.int64]) -> None:
        for c in np.flatnonzero(self._counts + added > self._most).tolist():
            self._cut_back(c)
        width = self._scores.shape[1]
        needed = int((self._counts + added).max())
        if needed > width:
            more = min(max(2 * width, needed), self._most) - width
            self._scores = np.pad(self._scores, ((0, 0), (0, more)))
            self._segments = np.pad(self._segments, ((0, 0), (0, more)))

    def _cut_back(self, c: int) -> None:
        """Keep the best of a class, in their order."""
        N, count = self.per_class, self._counts[c]
        scores = self._scores[c, :count]
        bound = np.partition(scores, count - N)[count - N]
        kept = scores > bound
        kept[np.flatnonzero(scores == bound)[: N - kept.sum()]] = True
        self._scores[c, :N], self._segments[c, :N] = scores[kept], self._segments[c, :count][kept]
        self._counts[c], self._bounds[c] = N, bound
