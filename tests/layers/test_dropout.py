from __future__ import annotations

import pytest
import torch

from tagreel.layers.dropout import Dropout


def test_drops_the_rate_and_scales_the_rest():
    torch.manual_seed(0)
    out = Dropout(100, rate=0.2)(torch.ones(1000, 100))
    assert (out == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1.25))


def test_evaluation_drops_nothing():
    x = torch.randn(3, 4)
    assert torch.equal(Dropout(4).eval()(x), x)
