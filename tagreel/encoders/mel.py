"""How loud each band of frequencies is: a weak baseline that needs no weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagreel.decoding import Sound
from tagreel.encoders._identity import identity
from tagreel.encoders._inputs import check
from tagreel.encoders._log_mel import BANDS, RATE, log_mel
from tagreel.encoders._rows import rows


class Mel:
    """(n, 15600) at 16 kHz to (n, 128): mean and standard deviation of 64 log mel bands over 0.975 s.

    It tells speech from music from silence, and little more. For trying things out; what is to be used
    takes an encoder that was trained, such as VGGish.
    """

    kind = "mel"
    expects = None

    def __init__(self) -> None:
        self.stream = "audio"
        self.wants = Sound(rate=RATE, seconds=0.975)
        self.out_dim = 2 * BANDS

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Encode windows of sound; raises `ValueError` for any other input."""
        check(inputs, self.wants)
        return rows(_statistics, inputs, self.out_dim, device=torch.device("cpu"))

    def identity(self) -> dict[str, Any]:
        """What determines the features."""
        return identity(
            self.kind, None, wants=self.wants, out_dim=self.out_dim, options={}, packages=("torch",)
        )


def _statistics(sound: Tensor) -> Tensor:
    bands = log_mel(sound)  # (n, frames, 64)
    return torch.cat([bands.mean(1), bands.std(1, correction=0)], dim=1)
