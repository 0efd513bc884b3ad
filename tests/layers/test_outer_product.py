from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from tagreel.layers.outer_product import OuterProduct


class _Split(nn.Module):
    """The join on the parts of one row."""

    def __init__(self, dims):
        super().__init__()
        self.dims, self.join = dims, OuterProduct(dims)

    def forward(self, x):
        return self.join(list(x.split(self.dims, 1)))


@pytest.mark.parametrize("dims", [(3, 4), (4,), (2, 3, 2)])
def test_is_every_product_of_entries(assert_follows, dims):
    def naive(layer, rows):
        products = []
        for row in rows:
            parts = row.split(dims)
            for places in itertools.product(*map(range, dims)):
                products.append(math.prod(part[i] for part, i in zip(parts, places, strict=True)))
        return torch.stack(products).view(len(rows), -1)

    torch.manual_seed(0)
    assert_follows(_Split(dims), naive, torch.randn(5, sum(dims)))
    assert OuterProduct(dims).out_dim == math.prod(dims)


def test_exported_it_gives_the_same_for_any_number_of_videos():
    join = OuterProduct((3, 4))
    given = ([torch.randn(5, 3), torch.randn(5, 4)],)
    B = torch.export.Dim("B")
    program = torch.export.export(join, given, dynamic_shapes=([{0: B}, {0: B}],)).module()
    for videos in (2, 7):
        descriptors = [torch.randn(videos, 3), torch.randn(videos, 4)]
        torch.testing.assert_close(program(descriptors), join(descriptors))
