from __future__ import annotations

import pytest
import torch

from tagreel.layers.projection import Projection
from tagreel.pools.netvlad import NetVLAD


@pytest.mark.parametrize("bias", [True, False])
def test_multiplies_and_adds(assert_follows, bias):
    def naive(layer, rows):
        weight = layer.linear.weight
        return torch.stack(
            [
                torch.stack(
                    [
                        sum(weight[j, i] * row[i] for i in range(4)) + (layer.linear.bias[j] if bias else 0)
                        for j in range(3)
                    ]
                )
                for row in rows
            ]
        )

    torch.manual_seed(0)
    assert_follows(Projection(4, width=3, bias=bias), naive, torch.randn(5, 4))


def test_first_weights_are_nextvlads_or_those_of_the_given_deviation():
    torch.manual_seed(0)
    he = Projection(512, width=256)
    assert he.linear.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    assert he.linear.weight.abs().max().item() <= 2 * (2.6 / 512) ** 0.5 * 1.0001
    assert not he.linear.bias.any()
    willow = Projection(512, width=256, std=1 / 16)
    assert willow.linear.weight.std().item() == pytest.approx(1 / 16, rel=0.02)
    assert willow.linear.bias.std().item() == pytest.approx(0.01, rel=0.2)


def test_frames_are_brought_to_another_width_one_by_one():
    torch.manual_seed(0)
    layer, frames = Projection(4, width=3), torch.randn(2, 5, 4)
    torch.nn.init.normal_(layer.linear.bias)
    reduced = layer(frames, torch.ones(2, 5, dtype=torch.bool))
    for b in range(2):
        for t in range(5):
            torch.testing.assert_close(reduced[b, t], layer(frames[b, t : t + 1])[0])


def test_what_it_makes_of_padding_reaches_no_cluster():
    torch.manual_seed(0)
    layer, pool = Projection(4, width=3), NetVLAD(3, clusters=2)
    torch.nn.init.normal_(layer.linear.bias)
    mask = torch.tensor([[True, True, False]])
    frames = torch.randn(1, 3, 4)
    expected = pool(layer(frames[:, :2], mask[:, :2]), mask[:, :2])
    torch.testing.assert_close(pool(layer(frames, mask), mask), expected)
