"""Which frames of a video a model sees, chosen while reading, before anything is copied.

A sampler is called with the number of frames F and a seed of this video and epoch, and returns a slice or an
array of indices; the same frames are taken from every stream.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FrameChoice = slice | NDArray[Any]


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
