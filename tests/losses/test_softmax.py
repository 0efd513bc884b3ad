from __future__ import annotations

import math

import pytest
import torch

from tagreel.losses.softmax import Softmax


def _naive(logits, labels, rated):
    """One video and class at a time, over the rated classes alone."""
    B, C = logits.shape
    total = torch.zeros((), dtype=torch.float64)
    for b in range(B):
        judged = [c for c in range(C) if rated is None or rated[b, c] > 0]
        there = sum(labels[b, c].item() for c in judged)
        for c in judged if there else []:
            p = torch.exp(logits[b, c]) / sum(torch.exp(logits[b, j]) for j in judged)
            weight = 1 if rated is None else rated[b, c]
            total = total - weight * labels[b, c] / there * torch.log(p)
    return total / B


@pytest.mark.parametrize("weighted", [False, True])
def test_follows_the_equation(weighted):
    torch.manual_seed(0)
    logits = 3 * torch.randn(6, 7)
    labels = (torch.rand(6, 7) < 0.4).double()
    labels[0] = torch.rand(7)
    labels[1] = 0
    rated = torch.rand(6, 7).double() * (torch.rand(6, 7) < 0.6) if weighted else None
    if rated is not None:
        rated[2] = 0
    x, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = Softmax()(x, labels.float(), rated.float() if rated is not None else None)
    expected = _naive(exact, labels, rated)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(loss, x)[0].double(),
        torch.autograd.grad(expected, exact)[0],
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_best_that_two_labels_can_reach_is_half_each():
    labels = torch.tensor([[1.0, 1.0, 0.0]])
    assert Softmax()(torch.tensor([[50.0, 50.0, -50.0]]), labels).item() == pytest.approx(math.log(2))
