"""How a model's numbers are stored: as they are, in 16 bits, or in 8.

    float32     as they are
    bfloat16    the upper half of a float32, rounded to the nearest, to even among equals
    float16     finer by three bits in a smaller range; bfloat16 for a tensor to which that lies nearer
    int8        w ≈ offset_r + scale_r · q,  q in 0 ... 255, for each row r, along the first dimension
    codebook    w ≈ codebook[q],             q in 0 ... 255, for each tensor

All in bfloat16 is how NL-NetVLAD (2018) brought six models below a gigabyte; codebooks for tensors of more
than 17,000 elements are from the code of that year's winners (github.com/miha-skalic/youtube8mchallenge).
Only such tensors, of two or more dimensions, are put into 8 bits here. All others stay as they are, biases
and batch norm's statistics among them: they are less than a hundredth of a model, and one that is off shifts
everything behind it.

In a file, codes (uint8) have their tensor's name, and beside them lie NAME.scale and NAME.offset, or
NAME.codebook; so it can be read without this code. Integers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from tagreel.errors import DataError, RecipeError

EIGHT_BITS = ("int8", "codebook")
_LARGE = 17_000
_SAMPLE = 2**20
_LARGEST_NUMBER = 1e38


def encode(tensors: Mapping[str, Tensor], storage: str) -> dict[str, Tensor]:
    """The tensors as they are stored, on the CPU.

    Raises `RecipeError` when one is to be compressed that holds infinities or what is not a number.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        form = _form(tensor, storage)
        if form != "float32" and not (tensor.abs() < _LARGEST_NUMBER).all():
            raise RecipeError(f"tensor {name!r} holds numbers that are not finite; it cannot be compressed")
        stored |= {name + part: value for part, value in _ENCODERS[form](tensor).items()}
    return stored


def decode(stored: Mapping[str, Tensor], *, path: str) -> dict[str, Tensor]:
    """The tensors of a file: those in 8 bits in float32, all others as they are.

    Raises `DataError`, which names `path`, for codes that do not fit their scales or codebook.
    """
    tensors = dict(stored)
    for name, codes in stored.items():
        try:
            if f"{name}.codebook" in stored:
                tensors[name] = tensors.pop(f"{name}.codebook")[codes.int()]
            elif f"{name}.scale" in stored:
                per_row = (-1, *[1] * (codes.ndim - 1))
                scale, offset = (tensors.pop(f"{name}.{part}").view(per_row) for part in ("scale", "offset"))
                tensors[name] = codes.float().mul_(scale).add_(offset)
        except (KeyError, IndexError, RuntimeError) as error:
            raise DataError(f"the codes of {name!r} and what they stand for do not fit", path=path) from error
    return tensors


def size(tensors: Mapping[str, Tensor], storage: str) -> int:
    """The bytes that `encode` makes of tensors of these shapes; they may lie on the meta device."""
    return sum(_bytes(tensor, _form(tensor, storage)) for tensor in tensors.values())


def _form(tensor: Tensor, storage: str) -> str:
    """What becomes of a tensor of this shape and type; with "float32" it stays as it is."""
    if not tensor.is_floating_point():
        return "float32"
    if storage in EIGHT_BITS and (tensor.ndim < 2 or tensor.numel() <= _LARGE):
        return "float32"
    return storage


def _bytes(tensor: Tensor, form: str) -> int:
    count = tensor.numel()
    return {
        "float32": tensor.nbytes,
        "bfloat16": 2 * count,
        "float16": 2 * count,
        "int8": count + 8 * len(tensor) if tensor.ndim else 0,
        "codebook": count + 4 * 256,
    }[form]


def _nearest_16_bits(tensor: Tensor) -> dict[str, Tensor]:
    rounded = [tensor.to(dtype) for dtype in (torch.float16, torch.bfloat16)]
    # An overflow is infinitely far.
    return {"": min(rounded, key=lambda near: float((near.float() - tensor).square_().sum()))}


def _affine(tensor: Tensor) -> dict[str, Tensor]:
    rows = tensor.float().flatten(1)
    low, high = rows.aminmax(dim=1, keepdim=True)
    scale = (high - low) / 255
    codes = ((rows - low) / scale.clamp_min(torch.finfo(scale.dtype).tiny)).round_().to(torch.uint8)
    return {"": codes.view(tensor.shape), ".scale": scale[:, 0], ".offset": low[:, 0]}


def _codebook(tensor: Tensor) -> dict[str, Tensor]:
    values = tensor.float().contiguous()
    levels = _levels(values.flatten())
    codes = torch.bucketize(values, (levels[1:] + levels[:-1]) / 2, out_int32=True)
    return {"": codes.to(torch.uint8), ".codebook": levels}


def _levels(values: Tensor) -> Tensor:
    """256 levels, ascending, of small squared error: Lloyd's iterations (1957, 1982) on a sample.

    They start as dense as the cube root of the values' density, which is the best there is for many levels
    (Panter and Dite, 1951). Started from equal steps or from quantiles, as the references do, hundreds of
    iterations leave half again to twice the error.
    """
    if len(values) > _SAMPLE:
        drawn = torch.randint(len(values), (_SAMPLE,), generator=torch.Generator().manual_seed(0))
        # With both ends: what lies beyond the outer levels has the largest error.
        values = torch.cat([values[drawn], torch.stack(values.aminmax())])
    ordered = np.sort(values.double().numpy())
    # Where values lie w apart their density is as 1/w, and w·(1/w)^⅓ of the levels come between them.
    before = np.concatenate([[0.0], np.cumsum(np.diff(ordered) ** (2 / 3))])
    levels = np.interp((np.arange(256) + 0.5) / 256 * before[-1], before, ordered)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(10):
        ends = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        ends = np.concatenate([[0], ends, [len(ordered)]])
        counts = np.diff(ends)
        levels = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), levels)
    return torch.from_numpy(levels).float()


_ENCODERS: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {
    "float32": lambda tensor: {"": tensor},
    "bfloat16": lambda tensor: {"": tensor.to(torch.bfloat16)},
    "float16": _nearest_16_bits,
    "int8": _affine,
    "codebook": _codebook,
}
STORAGES = tuple(_ENCODERS)
