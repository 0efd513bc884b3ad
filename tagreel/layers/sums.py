"""What a pool has to keep of frames when its descriptor follows from sums over them.

Such a pool is additive: sums over two stretches of a video, added, are those over both. So hours of video
are pooled in constant memory, and a window that moves or a video without one of its seconds at little cost.
A pool says that it is by having two methods, which one after the other do what its `forward` does:

    accumulate(frames (B, T, D), mask (B, T)) -> Sums,   finish(Sums) -> (B, out_dim)

Stretches add up in evaluation alone: in training batch norm looks at all frames of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sums:
    """`sums` over the frames of B videos, (B, ...) each, and the `maxima` of them where a pool asks for some.

    `a + b` joins two stretches of the same videos. `a - b` takes away a stretch that was added, to the
    rounding of what is taken; no maximum can be undone, so it raises `TypeError` where there are some.
    """

    sums: tuple[Tensor, ...] = ()
    maxima: tuple[Tensor, ...] = ()

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            tuple(torch.maximum(a, b) for a, b in zip(self.maxima, other.maxima, strict=True)),
        )

    def __sub__(self, other: Sums) -> Sums:
        if self.maxima:
            raise TypeError("a stretch of frames cannot be taken out of their maxima")
        return Sums(tuple(a - b for a, b in zip(self.sums, other.sums, strict=True)))

    def double(self) -> Sums:
        """With its sums in float64, which `finish` takes as well: for sums over hours."""
        return Sums(tuple(tensor.double() for tensor in self.sums), self.maxima)
