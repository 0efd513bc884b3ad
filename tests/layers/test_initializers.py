from __future__ import annotations

import pytest
import torch

from tagreel.layers.initializers import he_truncated_


def test_the_truncated_normal_deviates_as_he_asks():
    torch.manual_seed(0)
    weight = he_truncated_(torch.empty(400, 500), 50)
    # sqrt(1.3) makes up for the variance that truncation at two deviations takes, 0.774 of it left.
    assert weight.std().item() == pytest.approx((2 / 50) ** 0.5, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=0.002)
    bound = 2 * (1.3 * 2 / 50) ** 0.5
    assert 0.99 * bound < weight.abs().max().item() <= bound
