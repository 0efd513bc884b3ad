from __future__ import annotations

import pytest
import torch

from tagreel.heads.logistic import Logistic


def test_follows_the_equation():
    torch.manual_seed(0)
    head, x = Logistic(4, 3), torch.randn(5, 4)
    with torch.no_grad():
        head.linear.bias.normal_()
    weight, bias = head.linear.weight.double(), head.linear.bias.double()
    for b, row in enumerate(head(x)):
        for c in range(3):
            expected = sum(weight[c, d] * x[b, d] for d in range(4)) + bias[c]
            assert row[c].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(("classes", "expected"), [(3862, 4_452_886), (4716, 5_437_548)])
def test_parameters_of_the_video_level_baseline(classes, expected):
    with torch.device("meta"):
        head = Logistic(1152, classes)
    assert sum(p.numel() for p in head.parameters()) == expected


def test_first_weights_are_those_of_each_reference():
    torch.manual_seed(0)
    xavier, he = Logistic(200, 100), Logistic(200, 100, init="he")
    bound = (6 / 300) ** 0.5
    assert 0.99 * bound < xavier.linear.weight.abs().max().item() <= bound * 1.0001
    assert he.linear.weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.03)
    assert not xavier.linear.bias.any()
    assert not he.linear.bias.any()


@pytest.mark.parametrize("prior", [0.5, 0.01])
def test_knowing_nothing_every_class_has_its_prior(prior):
    scores = Logistic(4, 3, prior=prior)(torch.zeros(2, 4)).sigmoid()
    torch.testing.assert_close(scores, torch.full((2, 3), prior))
