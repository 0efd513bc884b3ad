"""Videos of different lengths side by side: padded, with a mask, or packed end to end.

Padded frames are (B, T, D), and a mask (B, T) is True where one is real. Packed frames are (ΣT, D), all of
them real, and a `Ragged` says where each video lies. On YouTube-8M a fifth to a third of a padded batch is
padding, which every product of frames with a matrix pays for; packed, none is there.

What looks at one frame at a time does not care. What looks at all frames of a video does it by the functions
here, which take both: `frames` with a mask, with None where all are real, or with a `Ragged`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tagreel.layers.product import Scaled, is_fast_here, multiply


class Ragged:
    """Where each of B videos lies among packed frames: `sizes[i]` of video i, behind those before it."""

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self.sizes, self.device = list(sizes), device

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def counts(self) -> Tensor:
        """(B,) the number of frames of each video."""
        return torch.tensor(self.sizes, dtype=torch.int64).to(self.device, non_blocking=True)

    @cached_property
    def videos(self) -> Tensor:
        """(ΣT,) the number of the video that a frame is of."""
        videos, sizes = torch.arange(len(self.sizes)), torch.tensor(self.sizes, dtype=torch.int64)
        return videos.repeat_interleave(sizes, output_size=sum(self.sizes)).to(self.device, non_blocking=True)

    @cached_property
    def mask(self) -> Tensor:
        """(B, T), of the frames once they are padded."""
        return torch.arange(max(self.sizes, default=0), device=self.device) < self.counts[:, None]

    def times(self, rows: int) -> Ragged:
        """The same videos, each frame made of so many rows."""
        return Ragged([rows * size for size in self.sizes], self.device)


Mask = Tensor | Ragged | None
"""Which frames are real: of padded ones a mask (B, T), None where all are, of packed ones a `Ragged`."""


def pack(frames: Tensor, ragged: Ragged) -> Tensor:
    """Padded frames (B, T, D) to packed ones (ΣT, D)."""
    B, T, _ = frames.shape
    if ragged.sizes == [T] * B:
        return frames.flatten(0, 1)
    if not B:
        return frames.flatten(0, 1)[:0]
    return torch.cat([video[:size] for video, size in zip(frames, ragged.sizes, strict=True)])


def pad(frames: Tensor, ragged: Ragged) -> Tensor:
    """Packed frames (ΣT, D) to padded ones (B, T, D), zeros where there is none."""
    B, T = ragged.mask.shape
    if ragged.sizes == [T] * B:
        return frames.view(B, T, *frames.shape[1:])
    return frames.new_zeros(B, T, *frames.shape[1:]).index_put((ragged.mask,), frames)


def padded(
    frames: Mapping[str, Tensor], masks: Mapping[str, Mask]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Several features with their masks, those that are packed padded."""
    streams, of_padding = dict(frames), {}
    for name, mask in masks.items():
        if isinstance(mask, Ragged):
            streams[name], of_padding[name] = pad(frames[name], mask), mask.mask
        elif mask is not None:
            of_padding[name] = mask
    return streams, of_padding


def alike(masks: Iterable[Mask]) -> bool:
    """Whether all of these are of packed frames, and of as many of each video."""
    first, *others = masks
    return isinstance(first, Ragged) and all(
        isinstance(mask, Ragged) and mask.sizes == first.sizes for mask in others
    )


def masked(frames: Tensor, mask: Mask, value: float = 0.0) -> Tensor:
    """The frames, those that are padding set to a value."""
    return frames.masked_fill(~mask[..., None], value) if isinstance(mask, Tensor) else frames


def count(frames: Tensor, mask: Mask) -> Tensor:
    """(B, 1) how many frames of each video are real."""
    if isinstance(mask, Ragged):
        return mask.counts[:, None]
    if mask is None:
        return frames.new_full((len(frames), 1), frames.shape[1], dtype=torch.int64)
    return mask.sum(1, keepdim=True)


def total(frames: Tensor, mask: Mask) -> Tensor:
    """The sum of each video's frames, (B, D); those that are padding have to be zeros."""
    if isinstance(mask, Ragged):
        if frames.dtype in (torch.bfloat16, torch.float16):  # a sum of many of which loses the small ones
            frames = frames.float()
        return frames.new_zeros(len(mask), frames.shape[1]).index_add(0, mask.videos, frames)
    return frames.sum(1)


def largest(frames: Tensor, mask: Mask, *, default: float) -> Tensor:
    """The largest value of each column in a video's real frames, (B, D); `default` where there are none."""
    if isinstance(mask, Ragged):
        parts = torch.split(frames, mask.sizes)
        none = frames[:0].sum(0) + default  # with a gradient, of zeros, as the others have one
        return torch.stack([part.amax(0) if len(part) else none for part in parts])
    return masked(frames, mask, default).amax(1)


def spread(of_videos: Tensor, mask: Mask) -> Tensor:
    """What is (B, D) beside every frame of its video: (B, 1, D), or (ΣT, D) for packed ones."""
    return of_videos[mask.videos] if isinstance(mask, Ragged) else of_videos[:, None]


def outer(x: Tensor | Scaled, y: Tensor, mask: Mask) -> Tensor:
    """The sum over each video's frames of x yᵀ, (B, D, K), of x (..., D) and y (..., K).

    In frames that are padding y has to be zero, or x where it is not a `Scaled`.
    """
    if isinstance(x, Scaled):
        shifts = x.shift[:, None] * total(y, mask)[:, None, :]
        return x.scale[:, None] * outer(x.x.to(y.dtype), y, mask) + shifts
    if not isinstance(mask, Ragged):
        return torch.einsum("btd,btk->bdk", x.to(y.dtype), y)
    if x.is_cuda:  # one kernel for all videos
        return torch.bmm(pad(x.to(y.dtype), mask).transpose(1, 2), pad(y, mask))
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, y = x.to(dtype), y.to(dtype)
    return _Outer.apply(x.to(y.dtype), y, mask.sizes)  # type: ignore[no-untyped-call, no-any-return]


class _Outer(torch.autograd.Function):
    """Σ x yᵀ over each of several runs of rows: x (N, D) and y (N, K) to (B, D, K)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.sizes = sizes
        sums = x.new_empty(len(sizes), x.shape[1], y.shape[1])
        for out, a, b in zip(sums, torch.split(x, sizes), torch.split(y, sizes), strict=True):
            _multiply_into(out, a.t(), b)
        return sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, y = ctx.saved_tensors
        for_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        for_y = torch.empty_like(y) if ctx.needs_input_grad[1] else None
        at = 0
        for of_video, size in zip(gradient, ctx.sizes, strict=True):
            rows = slice(at, at + size)
            if for_x is not None:
                _multiply_into(for_x[rows], y[rows], of_video.t())
            if for_y is not None:
                _multiply_into(for_y[rows], x[rows], of_video)
            at += size
        return for_x, for_y, None


def _multiply_into(out: Tensor, x: Tensor, y: Tensor) -> None:
    if not x.shape[1]:
        out.zero_()
    elif x.numel() and x.dtype == torch.float32 and is_fast_here(x):
        out.copy_(multiply(x, y))
    else:
        torch.mm(x, y, out=out)
