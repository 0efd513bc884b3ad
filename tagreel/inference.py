"""How a trained model scores a video: what its recipe shows of it once, or several views of it combined.

A recipe's `inference` names one. It is called with the model's scores, the recipe's view and a batch of whole
videos, and returns probabilities (B, C).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tagreel.batch import Batch
from tagreel.sampling import FrameChoice, view


class Scores(Protocol):
    """What gives the probabilities of a batch's frames: a model."""

    def __call__(self, batch: Batch) -> Tensor:
        """Probabilities (B, C)."""
        ...


class View(Protocol):
    """What a recipe's `evaluation_sampling` takes of videos."""

    def __call__(self, batch: Batch, draw: int) -> Batch:
        """The same videos; where the sampling is random another `draw` has other frames."""
        ...


class SegmentedInference:
    """The whole video with weight `whole`, its `segments` equal parts sharing the rest.

    CMU Informedia: p = 0.7 p(video) + 0.1 (p(first third) + p(second) + p(last)). The frames F mod segments
    at the end are in no part; a video of fewer frames than parts is scored whole.
    """

    def __init__(self, *, segments: int = 3, whole: float = 0.7) -> None:
        if segments < 1 or not 0 <= whole <= 1:
            raise ValueError(
                f"segments={segments}, whole={whole}; expected 1 or more segments and a share of 0 to 1"
            )
        self.segments, self.whole = segments, whole

    def __call__(self, scores: Scores, shown: View, batch: Batch) -> Tensor:
        """Probabilities (B, C) of whole videos."""
        result = self.whole * scores(shown(batch, 0))
        for segment in range(self.segments):
            part = scores(shown(view(batch, _Segment(segment, self.segments)), 0))
            result = result + (1 - self.whole) / self.segments * part
        return result


class RepeatedSampling:
    """The mean over `times` independent draws of the frames that the recipe's `evaluation_sampling` takes.

    For models that look at random frames: Tang, Zhang, Wang, Wang, "Non-local NetVLAD Encoding for Video
    Classification", 2018, arXiv 1810.00207, with 5 and 10 draws. What a video's draws are follows from its
    id, so that a file is scored the same again.
    """

    def __init__(self, *, times: int = 10) -> None:
        if times < 1:
            raise ValueError(f"times is {times}; expected at least 1")
        self.times = times

    def __call__(self, scores: Scores, shown: View, batch: Batch) -> Tensor:
        """Probabilities (B, C) of whole videos."""
        return sum((scores(shown(batch, draw)) for draw in range(self.times)), torch.zeros(())) / self.times


class MultiCrop:
    """The mean over crops that begin at frames 0 ... starts - 1, of each crop's `top_k` best classes alone.

    Tsinghua, arXiv 1706.09274: every `stride`-th frame from the start on, at most `frames` of them; classes
    outside of a crop's list count 0. A video shorter than a start begins at its last frame.
    """

    def __init__(self, *, starts: int = 5, stride: int = 5, frames: int = 45, top_k: int = 20) -> None:
        for name, value in (("starts", starts), ("stride", stride), ("frames", frames), ("top_k", top_k)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        self.starts, self.stride, self.frames, self.top_k = starts, stride, frames, top_k

    def __call__(self, scores: Scores, shown: View, batch: Batch) -> Tensor:
        """Probabilities (B, C) of whole videos; of the recipe's view nothing is used."""
        result = torch.zeros(())
        for start in range(self.starts):
            crop = _Crop(start, self.stride, self.frames)
            result = result + keep_top(scores(view(batch, crop)), self.top_k)
        return result / self.starts


def keep_top(scores: Tensor, top_k: int) -> Tensor:
    """Scores (B, C) with all but each video's `top_k` highest set to 0."""
    best, classes = scores.topk(min(top_k, scores.shape[1]), dim=1)
    return torch.zeros_like(scores).scatter_(1, classes, best)


class _Segment:
    """Part number `segment` of a video; one with fewer frames than parts stays whole."""

    def __init__(self, segment: int, segments: int) -> None:
        self.segment, self.segments = segment, segments

    def __call__(self, num_frames: int, seed: tuple[int, ...]) -> FrameChoice:
        length = num_frames // self.segments
        return slice(self.segment * length, (self.segment + 1) * length) if length else slice(0, num_frames)


class _Crop:
    """Every `stride`-th frame from `start` on, at most `frames`."""

    def __init__(self, start: int, stride: int, frames: int) -> None:
        self.start, self.stride, self.frames = start, stride, frames

    def __call__(self, num_frames: int, seed: tuple[int, ...]) -> FrameChoice:
        start = max(min(self.start, num_frames - 1), 0)
        return slice(start, min(start + self.stride * self.frames, num_frames), self.stride)
