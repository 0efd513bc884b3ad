"""When in a video a tag applies: what each second says for it, and the stretches in which it says so.

There are two answers, for which nobody has to mark places to train on. A second's *segment score* is the
model's probability for a few seconds around it, as if they were the whole video: any model has it. Its
*contribution* is by how much the tag's logit would fall if the second were missing from the video: exact, for
models whose pools are sums over frames (`layers/sums.py`). On planted places contributions tell more: the
intervals found from them overlap the true ones by 0.85 (intersection over union), those from segment scores
by 0.4 to 0.6, as one second of a tag is enough for all windows that hold it (tests/test_evidence.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tagreel.batch import Batch
from tagreel.errors import DataError, RecipeError
from tagreel.layers.sums import Sums
from tagreel.model import Model
from tagreel.streaming import Additive, State, checked, evaluating, joined

Curves = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What each of T seconds says for S tags: `segments` (T, S) in 0 ... 1, `contributions` (T, S) in logits.

    Contributions are None where the model is not additive.
    """

    tags: tuple[int, ...]
    segments: Curves
    contributions: Curves | None

    def curves(self) -> Curves:
        """How much each second says beside the one that says most, (T, S) in 0 ... 1: to draw, and to cut.

        Of contributions, the mean over three seconds, what speaks against a tag counting 0; without them, of
        segment scores.
        """
        curves = self.segments
        if self.contributions is not None:
            around = np.pad(self.contributions, ((1, 1), (0, 0)))
            near = np.pad(np.ones((len(curves), 1), np.float32), ((1, 1), (0, 0)))
            curves = (around[:-2] + around[1:-1] + around[2:]) / (near[:-2] + near[1:-1] + near[2:])
        highest = curves.max(0, initial=0.0)
        return (curves / np.where(highest > 0, highest, 1.0)).clip(min=0.0).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Interval:
    """The seconds from `start` up to `end`, and the first at which the evidence is highest."""

    start: int
    end: int
    peak: int


@torch.inference_mode()
def gather(
    model: Model, frames_by_stream: Mapping[str, Any], tags: Sequence[int], *, window: int = 5
) -> Evidence:
    """The evidence of one video, given as one (T, D) array a feature, for the classes `tags`.

    `window` is how many seconds a segment score looks at, its own in the middle; fewer at the ends of the
    video. Every frame counts, whatever the model's `reads` would pick. Raises `DataError` for a feature that
    is missing or misshapen.
    """
    if window < 1:
        raise RecipeError(f"window={window}; expected 1 second or more")
    frames = _frames(model, frames_by_stream)
    try:
        sums = Additive(model)
    except RecipeError:  # it names the part that is not additive; segment scores need none that is
        sums = None
    with evaluating(model):
        return Evidence(
            tags=tuple(tags),
            segments=_segments(model, frames, list(tags), window),
            contributions=None if sums is None else _contributions(sums, frames, list(tags)),
        )


def intervals(
    curve: Sequence[float] | Curves, *, high: float = 0.5, low: float = 0.2, shortest: int = 3, gap: int = 2
) -> list[Interval]:
    """The stretches of a curve (T,) that reach `high`, each as far as the curve stays at `low` or above.

    Two of them with `gap` seconds or fewer in between are one, and one of less than `shortest` seconds is
    left out, unless the whole video is shorter. The defaults did best on planted places.
    """
    if not low <= high:
        raise RecipeError(f"low={low}, high={high}; expected a low that is not above the high")
    values = np.asarray(curve, np.float64)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], values >= low, [False]]).astype(np.int8)))
    merged: list[tuple[int, int]] = []
    for start, end in edges.reshape(-1, 2).tolist():
        if values[start:end].max() < high:
            continue
        if merged and start - merged[-1][1] <= gap:
            start = merged.pop()[0]
        merged.append((start, end))
    return [
        Interval(start, end, start + int(values[start:end].argmax()))
        for start, end in merged
        if end - start >= min(shortest, len(values))
    ]


def _frames(model: Model, frames_by_stream: Mapping[str, Any]) -> dict[str, Tensor]:
    """Frames (T, D) of every feature on the model's device, none of an optional one that is missing."""
    device = next(model.parameters()).device
    frames = {}
    for name, width in model.features.items():
        if name in frames_by_stream:
            frames[name] = checked(name, frames_by_stream[name], width, device, "evidence")
        elif name in model.optional:
            frames[name] = torch.zeros(0, width, device=device)
        else:
            raise DataError(f"no {name!r}; got: {', '.join(frames_by_stream)}", path="evidence")
    if not any(map(len, frames.values())):
        raise DataError("has no frames; expected at least one second", path="evidence")
    return frames


def _segments(model: Model, frames: Mapping[str, Tensor], tags: list[int], window: int) -> Curves:
    """Probabilities (T, S) of the seconds around each second."""
    length = max(map(len, frames.values()))
    parts = []
    for begin in range(0, length, model.batch_size):
        seconds = torch.arange(begin, min(begin + model.batch_size, length))
        first = (seconds - window // 2).clamp_min(0)
        last = seconds - window // 2 + window
        streams, counts = {}, {}
        for name, rows in frames.items():
            count = (last.clamp_max(len(rows)) - first).clamp_min(0)
            place = (first[:, None] + torch.arange(window)).clamp_max(max(len(rows) - 1, 0))
            known = rows if len(rows) else rows.new_zeros(1, rows.shape[1])
            streams[name], counts[name] = known[place.to(rows.device)], count.to(rows.device)
        none = torch.zeros(0, dtype=torch.int64, device=streams[name].device)
        batch = Batch(
            ids=[""] * len(seconds),
            streams=streams,
            num_frames=counts,
            label_ids=none,
            label_counts=none.new_zeros(len(seconds)),
        )
        parts.append(model.probabilities(batch)[:, tags].float().cpu())
    return torch.cat(parts).numpy()


def _contributions(sums: Additive, frames: Mapping[str, Tensor], tags: list[int]) -> Curves | None:
    """Logit of the video less its logit without each second, (T, S); None where there are maxima.

    Without a second there are the sums before it and those after it. To take its own from all sums would
    cost the same and round worse: where one second outweighs the others, nothing of them would be left.
    Of a maximum every second but one could be left out, which says nothing.
    """
    length = max(map(len, frames.values()))
    # About as many parts as seconds in one, so that what is kept grows with the root of the length.
    size = max(isqrt(length), 8)
    parts = [range(at, min(at + size, length)) for at in range(0, length, size)]
    nothing = _together(_seconds(sums, frames, range(1), present=False))
    if any(each.maxima for each in nothing):
        return None
    after = [nothing]
    for part in reversed(parts[1:]):
        after.append(joined(_together(_seconds(sums, frames, part)), after[-1]))
    before, without = nothing, []
    for part in parts:
        seconds = _seconds(sums, frames, part)
        triples = zip(before, seconds, after.pop(), strict=True)
        without.append(sums.logits(tuple(_without_each(*triple) for triple in triples))[:, tags])
        before = joined(before, _together(seconds))
    difference: Curves = (sums.logits(before)[:, tags] - torch.cat(without)).float().cpu().numpy()
    return difference


def _seconds(sums: Additive, frames: Mapping[str, Tensor], seconds: range, *, present: bool = True) -> State:
    """The sums of each second by itself, as of videos of one frame, or of none."""
    streams, masks = {}, {}
    for name, rows in frames.items():
        part = rows[seconds.start : seconds.stop]
        streams[name] = F.pad(part, (0, 0, 0, len(seconds) - len(part)))[:, None]
        real = torch.arange(seconds.start, seconds.stop, device=rows.device) < len(rows)
        masks[name] = (real & present)[:, None]
    return sums.accumulate(streams, masks)


def _together(seconds: State) -> State:
    """The sums of B stretches as those of one."""
    return tuple(
        Sums(tuple(sums.sum(0, keepdim=True) for sums in each.sums), each.maxima) for each in seconds
    )


def _without_each(before: Sums, seconds: Sums, after: Sums) -> Sums:
    """What is before, B seconds and what is after: without the first second, ..., without the last."""
    earlier = [
        torch.cat([start, own[:-1]]).cumsum(0) for start, own in zip(before.sums, seconds.sums, strict=True)
    ]
    later = [
        torch.cat([end, own[1:].flip(0)]).cumsum(0).flip(0)
        for end, own in zip(after.sums, seconds.sums, strict=True)
    ]
    return Sums(tuple(a + b for a, b in zip(earlier, later, strict=True)))
