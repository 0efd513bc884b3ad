"""Matrix products as fast as the processor multiplies.

PyTorch gives float32 products on a CPU to MKL, which uses half of an AVX-512 unit where the maker is not
Intel. oneDNN, which PyTorch carries for bfloat16, uses all of it (benchmarks/training.py: about twice as
fast), so large products go there. What comes out is the same to rounding.
"""

from __future__ import annotations

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
    has no gradient, as the features of a data set, N·D·K fewer in the backward pass.
    """

    x: Tensor
    scale: Tensor
    shift: Tensor


def product(x: Tensor | Scaled, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., D) times weight (D, K), and a bias (K,) added: (..., K)."""
    if isinstance(x, Scaled):
        shift = x.shift @ weight
        return product(x.x, x.scale[:, None] * weight, shift if bias is None else shift + bias)
    if _is_slow(x, weight):
        rows = _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
        return rows.view(*x.shape[:-1], weight.shape[1])  # type: ignore[no-any-return]
    return F.linear(x, weight.t(), bias)


class Linear(nn.Linear):
    """`torch.nn.Linear` by `product`."""

    def forward(self, x: Tensor | Scaled) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return product(x, self.weight.t(), self.bias)


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
        type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and _has_wide_units()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


@cache
def _has_wide_units() -> bool:
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
