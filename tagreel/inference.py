"""How a trained model scores a video: its frames once, or several views of them combined.

A recipe's `inference` names one; it is called with a model and a batch and returns probabilities (B, C).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from tagreel.batch import Batch


class Scores(Protocol):
    """What gives the probabilities of a batch's frames: a model."""

    def __call__(self, batch: Batch) -> Tensor:
        """Probabilities (B, C)."""
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

    def __call__(self, scores: Scores, batch: Batch) -> Tensor:
        """Probabilities (B, C) of a batch, by `scores`, which gives those of any frames."""
        result = self.whole * scores(batch)
        for segment in range(self.segments):
            part = scores(_segment(batch, segment, self.segments))
            result = result + (1 - self.whole) / self.segments * part
        return result


def _segment(batch: Batch, segment: int, segments: int) -> Batch:
    """Part number `segment` of every video; a stream of too few frames stays whole."""
    streams, num_frames = {}, {}
    for name, frames in batch.streams.items():
        counts = batch.num_frames[name]
        length = counts // segments
        short = length == 0
        first = torch.where(short, 0, segment * length)
        counts = torch.where(short, counts, length)
        steps = torch.arange(max(int(counts.max()), 1), device=frames.device)
        index = (first[:, None] + steps).clamp_max(frames.shape[1] - 1)  # (B, T')
        taken = frames.gather(1, index[..., None].expand(-1, -1, frames.shape[2]))
        streams[name] = taken
        num_frames[name] = counts
    return replace(batch, streams=streams, num_frames=num_frames)
