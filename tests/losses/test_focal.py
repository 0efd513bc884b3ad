from __future__ import annotations

import pytest
import torch

from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.losses.focal import Focal


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [0.25, 0.9])
def test_follows_the_equation(gamma, alpha, follows_the_equation):
    def term(y, z, p):
        right = p if y == 1 else 1 - p
        return -(alpha if y == 1 else 1 - alpha) * (1 - right) ** gamma * torch.log(right)

    follows_the_equation(Focal(gamma=gamma, alpha=alpha), term)


def test_without_its_power_it_is_half_the_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 6), (torch.rand(4, 6) < 0.5).float()
    plain = CrossEntropy()(logits, labels)
    torch.testing.assert_close(Focal(gamma=0, alpha=0.5)(logits, labels), plain / 2)


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_a_root_has_finite_gradients_at_sure_answers(size):
    logits = torch.tensor([[size, -size, size, -size]], requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    loss = Focal(gamma=0.5, alpha=0.5)(logits, labels)
    assert loss.item() == pytest.approx(size)
    assert torch.autograd.grad(loss, logits)[0].tolist() == [[0, 0, 0.5, -0.5]]


@pytest.mark.parametrize("options", [{"gamma": -1.0}, {"alpha": 0.0}, {"alpha": 1.0}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match="expected >= 0 and between 0 and 1"):
        Focal(**options)
