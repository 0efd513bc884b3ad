from __future__ import annotations

import math

import pytest
import torch

from tagreel.losses.cross_entropy import CrossEntropy


def _problem(videos=5, classes=3):
    torch.manual_seed(0)
    logits = 3 * torch.randn(videos, classes)
    labels = (torch.rand(videos, classes) < 0.4).float()
    weights = torch.rand(videos, classes)
    return logits, labels, weights


def _naive(logits, labels, weights, epsilon):
    """The sum over classes and mean over videos, in probabilities, one number at a time."""
    B, C = logits.shape
    total = torch.zeros((), dtype=torch.float64)
    for b in range(B):
        for c in range(C):
            p, y = 1 / (1 + torch.exp(-logits[b, c])), labels[b, c]
            loss = -(y * torch.log(p + epsilon) + (1 - y) * torch.log(1 - p + epsilon))
            total = total + (loss if weights is None else loss * weights[b, c])
    return total / B


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("epsilon", [None, 1e-8, 1e-5, 0.1])
def test_follows_the_equation(epsilon, weighted):
    logits, labels, weights = _problem()
    labels[0] = 0.3  # mixed-up labels lie between 0 and 1
    weights = weights if weighted else None
    x, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = CrossEntropy(epsilon=epsilon)(x, labels, weights)
    expected = _naive(exact, labels.double(), weights.double() if weighted else None, epsilon or 0.0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(loss, x)[0].double(),
        torch.autograd.grad(expected, exact)[0],
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_sure_mistake_costs_its_logit_or_is_capped_by_epsilon():
    logits, labels = torch.tensor([[200.0]]), torch.zeros(1, 1)
    assert CrossEntropy()(logits, labels).item() == 200.0
    assert CrossEntropy(epsilon=1e-5)(logits, labels).item() == pytest.approx(-math.log(1e-5))


def test_knowing_nothing_costs_one_bit_a_class():
    labels = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    assert CrossEntropy()(torch.zeros(1, 4), labels).item() == pytest.approx(4 * math.log(2))


def test_smoothing_trains_towards_less_than_certainty(follows_the_equation):
    def term(y, z, p):
        y = 0.8 * y + 0.1
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p))

    follows_the_equation(CrossEntropy(smoothing=0.2), term)
    logits = torch.logit(torch.tensor([[0.9, 0.1]])).requires_grad_()
    loss = CrossEntropy(smoothing=0.2)(logits, torch.tensor([[1.0, 0.0]]))
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-6


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_that_leaves_no_label_is_refused(smoothing):
    with pytest.raises(ValueError, match="expected 0 to less than 1"):
        CrossEntropy(smoothing=smoothing)
