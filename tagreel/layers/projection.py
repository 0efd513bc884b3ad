"""The fully-connected layer that brings a descriptor, or each frame of a stream, to another width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagreel.layers.initializers import he_truncated_
from tagreel.layers.product import Linear
from tagreel.layers.ragged import Mask


class Projection(nn.Module):
    """(B, D) in, (B, width) out, or frames (B, T, D) in, (B, T, width) out; linear.

    `std` is the deviation of the normal from which the weights are drawn: Willow's code takes
    1/sqrt(clusters), whatever the width of its input. None draws as NeXtVLAD does (He, truncated). A bias
    starts as N(0, 0.01) in the first case, which is Willow's, and at 0 in the second.
    """

    packs = True

    def __init__(self, dim: int, *, width: int = 1024, bias: bool = True, std: float | None = None) -> None:
        super().__init__()
        self.out_dim = width
        self.linear = Linear(dim, width, bias=bias)
        with torch.no_grad():
            if std is None:
                he_truncated_(self.linear.weight, dim)
            else:
                nn.init.normal_(self.linear.weight, std=std)
            if bias:
                nn.init.normal_(self.linear.bias, std=0.01 if std is not None else 0.0)

    def forward(self, x: Tensor, mask: Mask = None) -> Tensor:
        """Multiply and add; `mask` is not needed, and what comes out in padded frames says nothing."""
        return self.linear(x)  # type: ignore[no-any-return]
