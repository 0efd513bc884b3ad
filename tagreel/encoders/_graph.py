"""What one second of input becomes for a network in a file, told from the shape that its input has there."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tagreel.decoding import Pictures, Sound
from tagreel.errors import DataError, RecipeError

Fit = Literal["crop", "stretch"]
Colours = tuple[float, float, float]
_BYTES_ARE = {"uint8": 0, "int8": -128}


@dataclass(frozen=True)
class Options:
    """What a user may say about an input; None says nothing.

    `size` is a picture's height and width where the file leaves them open. "crop" shrinks a frame until its
    shorter side fits and cuts the rest off, "stretch" shows all of it, out of proportion. A picture in floats
    is (x / 255 - mean) / std, for each colour. `rate` is that of sound, in samples a second, and `seconds`
    the length of a window where the file leaves it open.
    """

    size: int | None
    fit: Fit | None
    mean: Colours | None
    std: Colours | None
    rate: int | None
    seconds: float | None


@dataclass(frozen=True)
class Front:
    """Makes of one second's input the (1, ...) array that a network takes."""

    wants: Pictures | Sound
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    mean: Colours | None = None
    std: Colours | None = None

    def __call__(self, row: NDArray[Any]) -> NDArray[Any]:
        """One picture or window of sound, prepared."""
        if isinstance(self.wants, Sound):
            return row.reshape(self.shape).astype(self.dtype)
        if self.mean is None:
            values = (row.astype(np.int16) + _BYTES_ARE[self.dtype.name]).astype(self.dtype)
        else:
            values = (row / 255.0 - np.array(self.mean)) / np.array(self.std)
        if self.shape[1] == 3:
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values.reshape(self.shape), self.dtype)

    @property
    def preparation(self) -> dict[str, Any]:
        """What of it an identity tells."""
        if isinstance(self.wants, Sound):
            return {}
        return {"mean": self.mean, "std": self.std, "dtype": self.dtype.name}


def front(
    shape: Sequence[int | None],
    dtype: np.dtype[Any],
    options: Options,
    *,
    mean: Colours,
    std: Colours,
    path: str,
) -> Front:
    """How to feed an input of this shape, None where the file leaves it open.

    `mean` and `std` are what such files usually expect. Raises `DataError` for an input that is neither
    pictures nor sound, `RecipeError` for an option that does not go with it.
    """
    if len(shape) == 4 and 3 in (shape[1], shape[3]):
        return _pictures(shape, dtype, options, mean=mean, std=std, path=path)
    if len(shape) in (1, 2) or (len(shape) == 3 and shape[1] == 1):
        return _sound(shape, dtype, options, path=path)
    raise DataError(
        f"its input is {_shown(shape)} in {dtype}; expected pictures, (1, height, width, 3) or "
        "(1, 3, height, width), or sound, (1, samples)",
        path=path,
    )


def chosen(name: str | None, outputs: Sequence[str], inner: Sequence[str]) -> str:
    """The name of the tensor to take, out of a file's outputs and all others; raises `RecipeError`."""
    if name is None and len(outputs) == 1:
        return outputs[0]
    if name is None:
        raise RecipeError(f"the file has {len(outputs)} outputs; choose one: output={' or '.join(outputs)}")
    known = dict.fromkeys([*outputs, *inner])
    if name in known:
        return name
    near = [one for one in known if name.lower() in one.lower()] or difflib.get_close_matches(name, known)
    raise RecipeError(
        f"output={name}: the file has no tensor of that name; it has {', '.join(near[:3] or outputs)}"
        + (", ..." if len(known) > 3 else "")
    )


def vector(found: NDArray[Any], name: str, *, path: str) -> NDArray[np.float32]:
    """What a network made of one second, as (D,); raises `DataError` where that is no vector."""
    if max(found.shape, default=1) != found.size:
        raise DataError(
            f"its output {name!r} is {found.shape} for one second; expected one vector, such as a mean over "
            "the picture; choose another with the option 'output'",
            path=path,
        )
    return found.reshape(-1).astype(np.float32)


def _pictures(
    shape: Sequence[int | None],
    dtype: np.dtype[Any],
    options: Options,
    *,
    mean: Colours,
    std: Colours,
    path: str,
) -> Front:
    _refuse(options, ("rate", "seconds"), "takes pictures")
    height, width = shape[2:] if shape[1] == 3 else shape[1:3]
    if options.size is not None and not (height in (None, options.size) and width in (None, options.size)):
        raise RecipeError(f"size={options.size}: the file takes pictures of {height} × {width}")
    height, width = height or options.size, width or options.size
    if height is None or width is None:
        raise RecipeError(f"the file takes pictures of any size, {_shown(shape)}; choose one: size=224")
    if dtype.name in _BYTES_ARE:
        _refuse(options, ("mean", "std"), f"takes a picture's bytes as they are, in {dtype}")
    elif dtype.kind != "f":
        raise DataError(f"its input is in {dtype}; expected uint8, int8 or float32", path=path)
    if options.std is not None and 0 in options.std:
        raise RecipeError(f"std={options.std}: expected numbers other than 0")
    crop = options.fit != "stretch"
    if crop and height != width:
        raise RecipeError(f"the file takes pictures of {height} × {width}, not square: fit=stretch")
    return Front(
        wants=Pictures(resize=height, crop=height) if crop else Pictures(resize=(height, width), crop=None),
        shape=(1, 3, height, width) if shape[1] == 3 else (1, height, width, 3),
        dtype=dtype,
        mean=None if dtype.name in _BYTES_ARE else options.mean or mean,
        std=None if dtype.name in _BYTES_ARE else options.std or std,
    )


def _sound(shape: Sequence[int | None], dtype: np.dtype[Any], options: Options, *, path: str) -> Front:
    _refuse(options, ("size", "fit", "mean", "std"), "takes sound")
    if dtype.kind != "f":
        raise DataError(f"its input is {_shown(shape)} in {dtype}; expected sound in float32", path=path)
    rate = 16_000 if options.rate is None else options.rate
    if rate < 1:
        raise RecipeError(f"rate={rate}: expected a number of samples a second, such as 16000")
    samples = shape[-1]
    seconds = (1.0 if options.seconds is None else options.seconds) if samples is None else samples / rate
    if options.seconds not in (None, seconds):
        raise RecipeError(f"seconds={options.seconds}: the file takes {samples:,} samples, {seconds:g} s")
    wants = Sound(rate=rate, seconds=seconds)
    return Front(wants=wants, shape=(*[1] * (len(shape) - 1), wants.samples), dtype=dtype)


def _refuse(options: Options, names: Sequence[str], why: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise RecipeError(f"{name}={getattr(options, name)}: the file {why}, which has no such option")


def _shown(shape: Sequence[int | None]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"
