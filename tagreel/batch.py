"""What readers yield and models take: one `Example` a video, one `Shard` a file, one `Batch` a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagreel.errors import DataError
from tagreel.layers.product import Scaled
from tagreel.layers.ragged import Ragged, pack


@dataclass(slots=True)
class Example:
    """One video, or one rated segment of it, as it lies in a file.

    `streams` maps a stream's name to its frames (T, D): uint8 on the YouTube-8M grid (`dequantize`), or
    float16/float32 taken as they are. A video-level vector is a video of one frame, (1, D). All streams
    with more than one frame have the same number of frames. `labels` holds the ids of the true classes;
    `rated` the ids of the only classes that anyone judged (YouTube-8M 2019 segments), None for all classes.
    """

    id: str
    labels: NDArray[np.int64]
    streams: dict[str, NDArray[Any]]
    rated: NDArray[np.int64] | None = None


class Shard(Protocol):
    """One opened file of examples, read in any order from any thread."""

    path: str

    def __len__(self) -> int:
        """The number of examples, damaged ones counted."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The example at `index`; raises `DataError` when it is damaged."""
        ...


@dataclass(slots=True)
class Batch:
    """B videos, padded to the longest; made by the loader, moved to a device, read by a model.

    `streams[name]` is (B, T, D), uint8 or float, and `num_frames[name]` (B,) says how many of the T frames
    are real (0 where the video lacks the stream). Labels are kept sparse: `label_ids` lists the classes of
    the first video, then of the second, ..., `label_counts` (B,) how many each has; likewise `rated_ids` and
    `rated_counts`, None when every class counts for every video. Among others `rated_all` (B,) is True where
    every class counts. `damaged` lists the records that were left out of this batch. `sizes` is what
    `num_frames` says, known to the host without asking the device; left out, it is found when it is needed.
    """

    ids: list[str]
    streams: dict[str, Tensor]
    num_frames: dict[str, Tensor]
    label_ids: Tensor
    label_counts: Tensor
    rated_ids: Tensor | None = None
    rated_counts: Tensor | None = None
    rated_all: Tensor | None = None
    damaged: list[DataError] = field(default_factory=list)
    sizes: dict[str, list[int]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Ragged]]:
        """For each stream its real frames end to end, (ΣT, D), and where each video lies among them."""
        masks = {name: Ragged(sizes, self.streams[name].device) for name, sizes in self._sizes().items()}
        return {name: pack(frames, masks[name]) for name, frames in self.streams.items()}, masks

    def masks(self) -> dict[str, Tensor]:
        """For each stream (B, T), True where a frame is real."""
        return {
            name: frame_mask(self.num_frames[name], frames.shape[1]) for name, frames in self.streams.items()
        }

    def labels(self, classes: int) -> Tensor:
        """The labels as float32 zeros and ones, (B, classes)."""
        return _dense(self.label_ids, self.label_counts, classes)

    def rated(self, classes: int) -> Tensor | None:
        """(B, classes), one where the class counts for the video; None when every class counts for all."""
        if self.rated_ids is None or self.rated_counts is None:
            return None
        rated = _dense(self.rated_ids, self.rated_counts, classes)
        return rated if self.rated_all is None else rated.masked_fill(self.rated_all[:, None], 1.0)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Batch(
            ids=self.ids,
            streams={name: frames.to(device, non_blocking=True) for name, frames in self.streams.items()},
            num_frames={name: count.to(device, non_blocking=True) for name, count in self.num_frames.items()},
            label_ids=self.label_ids.to(device, non_blocking=True),
            label_counts=self.label_counts.to(device, non_blocking=True),
            rated_ids=move(self.rated_ids),
            rated_counts=move(self.rated_counts),
            rated_all=move(self.rated_all),
            damaged=self.damaged,
            sizes=self._sizes(),
        )

    def _sizes(self) -> dict[str, list[int]]:
        if self.sizes is None:
            self.sizes = {name: counts.tolist() for name, counts in self.num_frames.items()}
        return self.sizes


def frame_mask(num_frames: Tensor, length: int) -> Tensor:
    """(B,) frame counts to a mask (B, length), True where a frame is real."""
    return torch.arange(length, device=num_frames.device) < num_frames[:, None]


def dequantize(frames: Tensor) -> Tensor:
    """Bytes on the YouTube-8M grid to float32 in about [-2, 2]; floats are returned as float32.

    x = q · 4/255 + 4/512 - 2, the formula of the YouTube-8M starter code (`utils.Dequantize`): it lies
    4/512 above the true inverse of the quantiser, and every published number was made with it.
    """
    if frames.dtype == torch.uint8:
        return frames.float() * (4 / 255) + (4 / 512 - 2)
    return frames.float()


def on_the_grid(frames: Tensor) -> Scaled:
    """Bytes (..., D) as the numbers that `dequantize` makes of them, not multiplied out."""
    like = torch.ones(frames.shape[-1], device=frames.device)
    return Scaled(frames, like * (4 / 255), like * (4 / 512 - 2))


def quantize(features: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Floats to bytes on the YouTube-8M grid, q = round((clip(x, -2, 2) + 2) · 255/4).

    So its feature extractor has it. `dequantize` gives x + 4/512, at most half a step of 4/255 off, for x
    within [-2, 2]. Raises `ValueError` for what is not a number, which no byte can say.
    """
    if np.isnan(features).any():
        raise ValueError("the features hold NaN; the encoder or the projection made numbers that are none")
    scaled = (np.clip(features, -2, 2).astype(np.float64) + 2) * (255 / 4)
    return np.rint(scaled).astype(np.uint8)


def _dense(ids: Tensor, counts: Tensor, classes: int) -> Tensor:
    rows = torch.repeat_interleave(torch.arange(len(counts), device=ids.device), counts)
    dense = torch.zeros(len(counts), classes, device=ids.device)
    dense[rows, ids] = 1.0
    return dense
