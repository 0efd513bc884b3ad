from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from tagreel.layers.compact_bilinear import CompactBilinear


class _Split(nn.Module):
    """The join on the parts of one row."""

    def __init__(self, dims, width):
        super().__init__()
        self.dims, self.join = dims, CompactBilinear(dims, width=width)

    def forward(self, x):
        return self.join(list(x.split(self.dims, 1)))


@pytest.mark.parametrize("width", [1, 6, 7])
@pytest.mark.parametrize("dims", [(3, 4), (4,), (2, 3, 2)])
def test_is_the_outer_product_hashed(assert_follows, dims, width):
    # Each product of entries goes, with the product of their signs, to the sum of their places.
    def naive(layer, rows):
        places, signs = layer.join.places.tolist(), layer.join.signs
        offsets = list(itertools.accumulate(dims, initial=0))[:-1]
        sums = []
        for row in rows:
            hashed = [torch.zeros((), dtype=torch.float64) for _ in range(width)]
            for entries in itertools.product(*map(range, dims)):
                at = [offset + i for offset, i in zip(offsets, entries, strict=True)]
                to = sum(places[i] for i in at) % width
                hashed[to] = hashed[to] + math.prod(signs[i] * row[i] for i in at)
            sums.append(torch.stack(hashed))
        return torch.stack(sums)

    torch.manual_seed(0)
    assert_follows(_Split(dims, width), naive, torch.randn(5, sum(dims)))


def test_inner_products_estimate_those_of_the_outer_products():
    torch.manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(2, 20), dim=1) for _ in range(2))
    exact = (x[0] @ x[1]) * (y[0] @ y[1])
    estimates = []
    for _ in range(400):
        out = CompactBilinear((20, 20), width=64)([x, y])
        estimates.append(out[0] @ out[1])
    estimates = torch.stack(estimates)
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / 20
    assert estimates.std() < 0.25  # about 1 / √width


def test_places_and_signs_travel_as_a_state_dict_and_are_not_trained():
    torch.manual_seed(0)
    join = CompactBilinear((3, 4), width=5)
    other = CompactBilinear((3, 4), width=5)
    other.load_state_dict(join.state_dict())
    descriptors = [torch.randn(2, 3), torch.randn(2, 4)]
    assert torch.equal(other(descriptors), join(descriptors))
    assert not list(join.parameters())
    assert set(CompactBilinear((500,), width=5).signs.tolist()) == {-1.0, 1.0}
    assert set(CompactBilinear((500,), width=5).places.tolist()) == set(range(5))


def test_bfloat16_is_close_to_float32():
    torch.manual_seed(0)
    join = CompactBilinear((30, 40), width=16)
    descriptors = [torch.randn(6, 30), torch.randn(6, 40)]
    expected = join(descriptors)
    found = join.to(torch.bfloat16)([x.bfloat16() for x in descriptors])
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 0.02


def test_exported_it_gives_the_same_for_any_number_of_videos():
    join = CompactBilinear((3, 4), width=6)
    given = ([torch.randn(5, 3), torch.randn(5, 4)],)
    B = torch.export.Dim("B")
    program = torch.export.export(join, given, dynamic_shapes=([{0: B}, {0: B}],)).module()
    for videos in (2, 7):
        descriptors = [torch.randn(videos, 3), torch.randn(videos, 4)]
        torch.testing.assert_close(program(descriptors), join(descriptors))


def test_a_width_that_cannot_be_is_named():
    with pytest.raises(ValueError, match="CompactBilinear: width=0; expected at least 1"):
        CompactBilinear((3, 4), width=0)
