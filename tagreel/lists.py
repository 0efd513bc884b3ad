"""What a file says of millions of videos, in few bytes: where each stands in it, and the classes it lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Places:
    """Where videos stand in a file of `ids`, given in pieces; `twice` is the first that stands there twice.

    16 bytes a video: kept are 64 bits of each id, the same within this process; of six million two agree
    once in a million times.
    """

    def __init__(self, ids: Sequence[NDArray[np.int64]]) -> None:
        hashes = np.concatenate(ids)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        doubled = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        self.twice: tuple[int, int] | None = None
        if len(doubled):
            first, second = self._order[doubled[0] : doubled[0] + 2].tolist()
            self.twice = (first, second)

    @staticmethod
    def hashes(ids: Sequence[str]) -> NDArray[np.int64]:
        """What is kept of some ids."""
        return np.fromiter(map(hash, ids), np.int64, len(ids))

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The places of videos, -1 for one that is not there."""
        wanted = self.hashes(ids)
        at = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        return np.where(self._hashes[at] == wanted, self._order[at], -1)


class Lists:
    """Of every video some `classes`, one video's after the other's, each with a number or else one.

    Video i has those between `offsets[i]` and `offsets[i + 1]`.
    """

    def __init__(
        self, lengths: NDArray[np.int64], classes: NDArray[Any], numbers: NDArray[Any] | None = None
    ) -> None:
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.classes, self.numbers = classes, numbers

    def dense(self, places: NDArray[np.int64], classes: int, device: torch.device) -> Tensor:
        """(B, C) float32: the numbers of the videos at B places; zero for what is not listed, or at -1."""
        starts = self.offsets[places]
        lengths = np.where(places < 0, 0, self.offsets[places + 1] - starts)
        videos = np.repeat(np.arange(len(places)), lengths)
        # Counted through all pairs of the batch, but from where each video's own begin.
        pairs = np.arange(len(videos)) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        numbers = np.ones(len(pairs), np.float32) if self.numbers is None else self.numbers[pairs]
        dense = torch.zeros(len(places), classes, device=device)
        at = torch.from_numpy(np.stack([videos, self.classes[pairs].astype(np.int64)])).to(device)
        dense[at[0], at[1]] = torch.from_numpy(numbers).to(device).float()
        return dense
