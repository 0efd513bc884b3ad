"""One matrix, multiplied with at every step of a sequence by few rows at a time.

The rows of a step are too few for a product of their own to be fast: on a CPU a good part of its time goes
into laying out the matrix, which is done here once for all steps. And the matrix's gradient, a sum over all
steps, is one product of all their rows, where autograd would make a matrix at each step and add it up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from tagreel.layers.product import is_fast_here, multiply

Multiply = Callable[[Tensor], Tensor]


def repeated(weight: Tensor, sizes: Sequence[int]) -> list[Multiply]:
    """For each step t a function, to be called once and in turn: x (sizes[t], H) times weight (K, H)."""
    matrix = _Matrix(weight.detach())
    places = _Gather.apply(weight, matrix, sizes)  # type: ignore[no-untyped-call]
    return [partial(_multiply, matrix=matrix, place=place) for place in places]


def _multiply(x: Tensor, *, matrix: _Matrix, place: Tensor) -> Tensor:
    return _Multiply.apply(x, place, matrix)  # type: ignore[no-untyped-call, no-any-return]


class _Matrix:
    """A matrix (K, H) laid out for many products, and every x that it was multiplied with."""

    def __init__(self, weight: Tensor) -> None:
        kind = weight.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            weight = weight.to(torch.get_autocast_dtype(kind))
        self.weight = weight
        self.multiplied: list[Tensor] = []

    @cached_property
    def forward(self) -> Multiply:
        """x (B, H) to (B, K)."""
        return _laid_out(self.weight)

    @cached_property
    def backward(self) -> Multiply:
        """The gradient of what came out, (B, K), to that of x."""
        return _laid_out(self.weight.t())


class _Gather(torch.autograd.Function):
    """A place (B, K) a step, without memory, where autograd leaves that step's gradient: all meet here."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, matrix: _Matrix, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(weight)  # so that PyTorch notices when it has changed meanwhile
        ctx.matrix = matrix
        ctx.set_materialize_grads(False)
        K, dtype = len(weight), matrix.weight.dtype
        return tuple(weight.new_empty_strided((B, K), (0, 0), dtype=dtype) for B in sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        pairs = [
            (gradient, x)
            for gradient, x in zip(gradients, ctx.matrix.multiplied, strict=True)
            if gradient is not None
        ]
        gradient, x = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        # This way round oneDNN is an eighth faster.
        return _product(x.to(gradient.dtype).t(), gradient).t().to(weight.dtype), None, None


class _Multiply(torch.autograd.Function):
    """x (B, H) times the matrix: (B, K)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor, matrix: _Matrix) -> Tensor:
        ctx.matrix = matrix
        if ctx.needs_input_grad[1]:
            matrix.multiplied.append(x.detach())
        return matrix.forward(x.to(matrix.weight.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        for_x, for_place, _ = ctx.needs_input_grad
        return ctx.matrix.backward(gradient) if for_x else None, gradient if for_place else None, None


def _laid_out(weight: Tensor) -> Multiply:
    if _is_fast(weight):
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, laid_out, None, "none", [], "")
    return lambda x: torch.mm(x, weight.t())


def _product(x: Tensor, y: Tensor) -> Tensor:
    return multiply(x, y) if x.numel() and _is_fast(x) else torch.mm(x, y)


def _is_fast(x: Tensor) -> bool:
    with torch.autocast("cpu", enabled=False):  # which has been seen to
        return x.dtype in (torch.float32, torch.bfloat16) and is_fast_here(x)
