"""What the decoder hands to an encoder, checked and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagreel.decoding import Pictures, Sound


def size_of(wants: Pictures) -> tuple[int, int]:
    """Height and width of the pictures that come of it."""
    if wants.crop is not None:
        return wants.crop, wants.crop
    assert not isinstance(wants.resize, int), "no encoder here takes pictures of any size"
    return wants.resize


def check(inputs: NDArray[Any], wants: Pictures | Sound) -> None:
    """Raise `ValueError` where these are not the pictures or the sound that an encoder wants."""
    expected, dtype = shape_of(wants), dtype_of(wants)
    if inputs.shape[1:] != expected or inputs.dtype != dtype:
        numbers = ", ".join(map(str, expected))
        raise ValueError(
            f"expected {'pictures' if isinstance(wants, Pictures) else 'sound'} (n, {numbers}) in "
            f"{dtype}, found {inputs.shape} in {inputs.dtype}"
        )


def shape_of(wants: Pictures | Sound) -> tuple[int, ...]:
    """The shape of one second's input."""
    return (*size_of(wants), 3) if isinstance(wants, Pictures) else (wants.samples,)


def dtype_of(wants: Pictures | Sound) -> np.dtype[Any]:
    """Bytes for pictures, floats for sound."""
    return np.dtype(np.uint8 if isinstance(wants, Pictures) else np.float32)


def normalised(pictures: Tensor, mean: Sequence[float], std: Sequence[float], *, scale: float) -> Tensor:
    """(n, H, W, 3) bytes to (n, 3, H, W) float32, (bytes · scale - mean) / std for each colour."""
    channels = pictures.permute(0, 3, 1, 2).float() * scale
    mean_of, std_of = (torch.tensor(values, device=pictures.device).view(3, 1, 1) for values in (mean, std))
    return (channels - mean_of) / std_of
