"""Matrix products as fast as the processor multiplies.

PyTorch gives float32 products on a CPU to MKL, which uses half of an AVX-512 unit where the maker is not
Intel. oneDNN, which PyTorch carries for bfloat16, uses all of it (benchmarks/training.py: about twice as
fast), so large products go there. What comes out is the same to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WORTH_IT = 1 << 22
"""Multiplications below which the way there costs more than it saves."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """Vectors x · scale + shift that are not multiplied out: `x` (..., D), `scale` and `shift` (D,).

    (x · s + h) W = x (s · W) + h W: it takes D·K operations to scale the weights instead of N·D, and where x
    has no gradient, as the features of a data set, N·D·K fewer in the backward pass. `x` may be bytes.
    """

    x: Tensor
    scale: Tensor
    shift: Tensor

    def then(self, scale: Tensor, shift: Tensor) -> Scaled:
        """Scaled and shifted once more."""
        return Scaled(self.x, self.scale * scale, self.shift * scale + shift)

    def multiplied(self) -> Tensor:
        """The vectors themselves."""
        return self.x * self.scale + self.shift


def product(x: Tensor | Scaled, weight: Tensor | Frozen, bias: Tensor | None = None) -> Tensor:
    """x (..., D) times weight (D, K), and a bias (K,) added: (..., K)."""
    if isinstance(weight, Frozen):
        return weight(x)  # type: ignore[no-any-return]
    if isinstance(x, Scaled):
        shift = x.shift @ weight
        return product(
            x.x.to(weight.dtype), x.scale[:, None] * weight, shift if bias is None else shift + bias
        )
    if _is_slow(x, weight):
        rows = _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
        return rows.view(*x.shape[:-1], weight.shape[1])  # type: ignore[no-any-return]
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):  # which casts itself
        x = x.to(weight.dtype)
    return F.linear(x, weight.t(), bias)


class Linear(nn.Linear):
    """`torch.nn.Linear` by `product`."""

    def forward(self, x: Tensor | Scaled) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return product(x, self.weight.t(), self.bias)


class Frozen(nn.Module):
    """x W + b, of weights (D, K) and a bias (K,) that change no more: (..., D) in, (..., K) out.

    They are kept as they are multiplied fastest. "float32" is exact. "bfloat16" rounds weights, inputs and
    what comes out to 8 bits, which AVX-512 processors with bfloat16 multiply twice as fast; with `exact` what
    comes out is float32 all the same. "int8" takes the bytes of a `Scaled` as they are and rounds each
    column of the weights to 255 steps, with a bias that makes up for the rounding where every byte is 128,
    the middle of the grid; it multiplies four times as fast. What is not bytes it treats as "bfloat16" does.

    A `Scaled` is folded into the weights when the first of its kind comes: all of one type of numbers have to
    be of one scale and shift, as the frames of one model are.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, precision: str, exact: bool = False) -> None:
        super().__init__()
        self.precision, self.exact = precision, exact
        self.register_buffer("weight", weight.detach(), persistent=False)
        self.register_buffer("bias", bias.detach(), persistent=False)
        self._ways: dict[torch.dtype, Callable[[Tensor], Tensor]] = {}

    def forward(self, x: Tensor | Scaled) -> Tensor:
        """Multiply and add."""
        vectors, kind = (x.x, x.x.dtype) if isinstance(x, Scaled) else (x, torch.float32)
        if kind not in self._ways:
            self._ways[kind] = self._way(x)
        rows = self._ways[kind](vectors.reshape(-1, vectors.shape[-1]))
        return rows.view(*vectors.shape[:-1], -1)

    def _way(self, x: Tensor | Scaled) -> Callable[[Tensor], Tensor]:
        weight, bias = self.weight, self.bias
        if isinstance(x, Scaled):
            weight, bias = x.scale[:, None] * weight, x.shift @ weight + bias
            if self.precision == "int8" and x.x.dtype == torch.uint8 and is_fast_here(x.x):
                return _of_bytes(weight, bias, exact=self.exact)
        if self.precision == "float32":
            return lambda rows: product(rows.to(weight.dtype), weight, bias)
        halves, half = weight.bfloat16(), bias.bfloat16()
        dtype = torch.float32 if self.exact else torch.bfloat16
        return lambda rows: F.linear(rows.bfloat16(), halves.t(), half).to(dtype)


def _of_bytes(weight: Tensor, bias: Tensor, *, exact: bool) -> Callable[[Tensor], Tensor]:
    """Bytes (N, D) times weights that are rounded to bytes, too."""
    step = weight.abs().amax(0).clamp_min(torch.finfo(torch.float32).tiny) / 127  # (K,)
    rounded = (weight / step).round()
    bias = bias + 128 * (weight - rounded * step).sum(0)
    laid_out = torch.ops.onednn.qlinear_prepack(rounded.t().to(torch.int8).contiguous(), None)
    zero = torch.zeros(len(step), dtype=torch.int64)
    dtype = torch.float32 if exact else torch.bfloat16

    def multiplied(rows: Tensor) -> Tensor:
        scales = (laid_out, step, zero, bias, 1.0, 0, dtype)
        found: Tensor = torch.ops.onednn.qlinear_pointwise(rows, 1.0, 0, *scales, "none", [], "")
        return found

    return multiplied


class _Product(torch.autograd.Function):
    """x (N, D) times weight (D, K), and a bias: (N, K)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        of_x = product(gradient, weight.t()) if for_x else None
        of_bias = gradient.sum(0) if for_bias else None
        if not for_weight:
            return of_x, None, of_bias
        if weight.stride(0) == 1:  # a transposed one's gradient lies as it does, or all of it would be copied
            return of_x, product(gradient.t(), x).t(), of_bias
        return of_x, product(x.t(), gradient), of_bias


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, D) times weight (D, K), without gradients; the tensors are such as `is_fast_here` says."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):  # for a part of a matrix it has no kernel
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight.t(), bias, "none", [], "")  # type: ignore[no-any-return]


def _is_slow(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch's own product would be much slower than oneDNN's."""
    return (
        x.dtype == weight.dtype == torch.float32
        and is_fast_here(x)
        and is_fast_here(weight)
        and x.numel() * weight.shape[1] >= _WORTH_IT
    )


def is_fast_here(x: Tensor) -> bool:
    """Whether `multiply` may be given this tensor: in memory, on such a processor, traced by nobody."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and _has_wide_units()
        and not torch.is_autocast_enabled("cpu")
    )


@cache
def _has_wide_units() -> bool:
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
