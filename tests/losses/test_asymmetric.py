from __future__ import annotations

import math

import pytest
import torch

from tagreel.losses.asymmetric import Asymmetric
from tagreel.losses.cross_entropy import CrossEntropy


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.4])
@pytest.mark.parametrize(("positive", "negative"), [(0.0, 4.0), (1.0, 0.0), (0.5, 0.5)])
def test_follows_the_equation(positive, negative, margin, follows_the_equation):
    def term(y, z, p):
        if y == 1:
            return -((1 - p) ** positive) * torch.log(p)
        if p <= margin:
            return 0 * z
        q = p - margin
        return -(q**negative) * torch.log(1 - q)

    loss = Asymmetric(positive_gamma=positive, negative_gamma=negative, margin=margin)
    follows_the_equation(loss, term)


def test_without_its_powers_and_margin_it_is_cross_entropy():
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(4, 6), (torch.rand(4, 6) < 0.5).float()
    loss = Asymmetric(positive_gamma=0, negative_gamma=0, margin=0)(logits, labels)
    torch.testing.assert_close(loss, CrossEntropy()(logits, labels))


def test_a_negative_below_the_margin_costs_nothing_and_a_sure_one_a_bounded_amount():
    labels = torch.zeros(1, 1)
    assert Asymmetric(margin=0.05)(torch.tensor([[-3.0]]), labels).item() == 0  # p = 0.047
    assert Asymmetric(margin=0.05)(torch.tensor([[-2.9]]), labels).item() > 0  # p = 0.052
    sure = Asymmetric(margin=0.05)(torch.tensor([[1e4]]), labels)
    assert sure.item() == pytest.approx(-(0.95**4) * math.log(0.05))


@pytest.mark.parametrize(
    "options", [{"margin": 0.0}, {"margin": 0.05}, {"margin": 0.0, "negative_gamma": 0.3}]
)
def test_gradients_are_finite_however_sure_the_model_is(options):
    logits = torch.tensor([[1e4, 200.0, 90.0, 0.0, -90.0, -200.0, -1e4]])
    for labels in (torch.zeros(1, 7), torch.ones(1, 7)):
        x = logits.clone().requires_grad_()
        loss = Asymmetric(positive_gamma=0.5, **options)(x, labels)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, x)[0].isfinite().all()


def test_the_gradient_of_a_negative_falls_again_where_the_model_is_sure():
    # What the paper calls attenuating likely mislabelled negatives, its figure 3.
    logits = torch.logit(torch.tensor([[0.06, 0.3, 0.8, 0.99]])).requires_grad_()
    grad = torch.autograd.grad(Asymmetric()(logits, torch.zeros(1, 4)), logits)[0][0]
    assert grad[0] < grad[1] < grad[2]
    assert grad[3] < grad[2]


@pytest.mark.parametrize(
    "options", [{"margin": 1.0}, {"margin": -0.1}, {"positive_gamma": -1.0}, {"negative_gamma": -1.0}]
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match="expected >= 0, >= 0 and 0 to less than 1"):
        Asymmetric(**options)
