"""Join by outer product: every entry of one stream's descriptor times every entry of the others'.

Lin, RoyChowdhury, Maji, "Bilinear CNNs for Fine-grained Visual Recognition", 2015, arXiv 1504.07889. Miech,
Laptev, Sivic, arXiv 1706.06905, tried it to fuse picture and sound: no gain over placing them side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class OuterProduct(nn.Module):
    """A descriptor (B, P_i) of every stream in, (B, P_1 · P_2 · ...) out; the last index moves fastest."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.out_dim = math.prod(dims)

    def forward(self, descriptors: Sequence[Tensor]) -> Tensor:
        """Multiply the streams' descriptors, one after the other."""
        product, *others = descriptors
        for other in others:
            product = (product[:, :, None] * other[:, None, :]).flatten(1)
        return product
