"""Which frames of a video a model sees, chosen while reading, before anything is copied.

A sampler is called with the number of frames F and a seed of this video and epoch, and returns a slice or an
array of indices; the same frames are taken from every stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tagreel.batch import Batch

FrameChoice = slice | NDArray[Any]


class Sampler(Protocol):
    """Chooses frames; what else is in this file, and what a user writes."""

    def __call__(self, num_frames: int, seed: tuple[int, ...]) -> FrameChoice:
        """A slice or indices into `num_frames` frames."""
        ...


def choose(sampler: Sampler, lengths: Mapping[str, int], seed: tuple[int, ...]) -> dict[str, FrameChoice]:
    """What a sampler takes of each stream of one video, given their numbers of frames.

    The same frames of all, unless the sampler says that it is not `aligned`. A one-frame stream beside longer
    ones is the video's vector, not its first second, and stays.
    """
    longest = max(lengths.values(), default=0)
    choice = sampler(longest, seed)
    aligned = getattr(sampler, "aligned", True)
    return {
        name: slice(None) if length != longest else choice if aligned else sampler(longest, (*seed, number))
        for number, (name, length) in enumerate(lengths.items())
    }


def seed_of(video: str, draw: int = 0) -> tuple[int, ...]:
    """What a random choice of frames follows from when a video, by its id, is scored."""
    return int.from_bytes(hashlib.blake2b(video.encode(), digest_size=8).digest()), draw


def view(batch: Batch, sampler: Sampler, draw: int = 0) -> Batch:
    """The videos of a batch as a sampler shows them; another `draw` is another random choice.

    What is random follows from a video's id and the draw, so that it does not depend on the batch.
    """
    choices = []
    counted = {name: count.tolist() for name, count in batch.num_frames.items()}
    for row, video in enumerate(batch.ids):
        counts = {name: count[row] for name, count in counted.items() if count[row]}
        chosen = choose(sampler, counts, seed_of(video, draw))
        choices.append({name: np.arange(counts[name])[choice] for name, choice in chosen.items()})
    streams, num_frames = {}, {}
    none = np.empty(0, np.int64)
    for name, frames in batch.streams.items():
        rows = [choice.get(name, none) for choice in choices]
        lengths = np.array([len(row) for row in rows], np.int64)
        index = np.zeros((len(rows), max(int(lengths.max(initial=0)), 1)), np.int64)
        index[np.arange(index.shape[1]) < lengths[:, None]] = np.concatenate([none, *rows])
        place = torch.from_numpy(index).to(frames.device)
        streams[name] = frames[torch.arange(len(rows), device=frames.device)[:, None], place]
        num_frames[name] = torch.from_numpy(lengths).to(frames.device)
    return replace(batch, streams=streams, num_frames=num_frames, sizes=None)


class AllFrames:
    """The first `max_frames` frames in order, 300 as in the starter code's reader; None takes them all."""

    def __init__(self, *, max_frames: int | None = 300) -> None:
        if max_frames is not None:
            _at_least_one("max_frames", max_frames)
        self.max_frames = max_frames

    def __call__(self, num_frames: int, seed: tuple[int, ...]) -> FrameChoice:
        """Frames 0 ... min(F, max_frames) - 1."""
        return slice(0, num_frames if self.max_frames is None else min(num_frames, self.max_frames))


class RandomFrames:
    """`frames` frames drawn with replacement, as the starter code and Willow feed their cluster models."""

    def __init__(self, *, frames: int = 300) -> None:
        _at_least_one("frames", frames)
        self.frames = frames

    def __call__(self, num_frames: int, seed: tuple[int, ...]) -> FrameChoice:
        """floor(u · F) for u uniform in [0, 1), so every video with frames gives the same number of them."""
        return (np.random.default_rng(seed).random(self.frames if num_frames else 0) * num_frames).astype(
            np.int64
        )


class RandomSequence:
    """`frames` frames in a row from a random start; a shorter video is taken whole."""

    def __init__(self, *, frames: int = 30) -> None:
        _at_least_one("frames", frames)
        self.frames = frames

    def __call__(self, num_frames: int, seed: tuple[int, ...]) -> FrameChoice:
        """Start uniform over all places where the sequence fits."""
        start = int(np.random.default_rng(seed).integers(max(num_frames - self.frames, 0) + 1))
        return slice(start, min(start + self.frames, num_frames))


class ShuffledFrames:
    """All of the first `max_frames` frames, out of order, to see what order is worth."""

    def __init__(self, *, max_frames: int = 300) -> None:
        _at_least_one("max_frames", max_frames)
        self.max_frames = max_frames

    def __call__(self, num_frames: int, seed: tuple[int, ...]) -> FrameChoice:
        """A random order of frames 0 ... min(F, max_frames) - 1."""
        return np.random.default_rng(seed).permutation(min(num_frames, self.max_frames))


class RandomFraction:
    """A random share of the frames, in their order; CMU Informedia's frame models see 80 %.

    `max_frames` bounds how many that are ("180f" in the names of CMU's models), None does not.
    """

    def __init__(self, *, fraction: float = 0.8, max_frames: int | None = None) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}; expected more than 0 to 1")
        if max_frames is not None:
            _at_least_one("max_frames", max_frames)
        self.fraction, self.max_frames = fraction, max_frames

    def __call__(self, num_frames: int, seed: tuple[int, ...]) -> FrameChoice:
        """round(fraction · F) different frames, one at least."""
        taken = min(max(round(self.fraction * num_frames), 1), self.max_frames or num_frames, num_frames)
        return np.sort(np.random.default_rng(seed).permutation(num_frames)[:taken])


class Crop:
    """Every `stride`-th frame from a random start, Tsinghua's random cropping, arXiv 1706.09274.

    The start is uniform in 0 ... starts - 1, and at most `frames` frames are taken. The defaults are the
    paper's rule; the other branch of the authors' code is `Crop(starts=k, stride=k, frames=300 // k)`, and
    `starts=5` their prediction. In both branches every feature drew its own start, so that picture and
    sound were apart by up to nine seconds: `aligned=False`.
    """

    def __init__(self, *, starts: int = 10, stride: int = 5, frames: int = 45, aligned: bool = True) -> None:
        for name, value in (("starts", starts), ("stride", stride), ("frames", frames)):
            _at_least_one(name, value)
        self.starts, self.stride, self.frames, self.aligned = starts, stride, frames, aligned

    def __call__(self, num_frames: int, seed: tuple[int, ...]) -> FrameChoice:
        """Frames s, s + stride, ...; a video shorter than the start begins at an earlier one."""
        start = int(np.random.default_rng(seed).integers(max(min(self.starts, num_frames), 1)))
        return slice(start, min(start + self.stride * self.frames, num_frames), self.stride)


class RandomSegment:
    """The whole video or one of its `segments` equal parts, each as likely: CMU's temporal segments.

    CMU Informedia added the three parts of every video to the training set, four times the data; drawing one
    of the four at each visit is that on average. The frames F mod segments at the end are in no part, and a
    video of fewer frames than parts is taken whole.
    """

    def __init__(self, *, segments: int = 3) -> None:
        _at_least_one("segments", segments)
        self.segments = segments

    def __call__(self, num_frames: int, seed: tuple[int, ...]) -> FrameChoice:
        """Frames [i · floor(F / segments), (i + 1) · floor(F / segments)) of part i, or all."""
        length = num_frames // self.segments
        part = int(np.random.default_rng(seed).integers(self.segments + 1))
        if part == self.segments or length == 0:
            return slice(0, num_frames)
        return slice(part * length, (part + 1) * length)


class EvenlySpaced:
    """At most `frames` frames spread over the whole video, in order; nothing is random."""

    def __init__(self, *, frames: int = 60) -> None:
        _at_least_one("frames", frames)
        self.frames = frames

    def __call__(self, num_frames: int, seed: tuple[int, ...]) -> FrameChoice:
        """The middle of each of `frames` equal parts."""
        if num_frames <= self.frames:
            return slice(0, num_frames)
        return ((np.arange(self.frames) + 0.5) * num_frames / self.frames).astype(np.int64)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; expected at least 1")
