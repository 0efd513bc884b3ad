from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def follows_the_equation() -> Callable[..., None]:
    """Compares a loss and its gradient with one term a class, written in probabilities."""

    def check(loss_function, term: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """`term(y, z, p)` is the loss of one class of one video: label, logit and probability."""
        torch.manual_seed(0)
        logits = 3 * torch.randn(5, 7)
        labels = (torch.rand(5, 7) < 0.4).float()
        labels[0] = 0.3  # of a mixed-up label each half brings its own loss
        weights = torch.rand(5, 7)
        weights[1, :3] = 0
        for rated in (None, weights):
            x, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
            loss = loss_function(x, labels, rated)
            expected = torch.zeros((), dtype=torch.float64)
            for b in range(5):
                for c in range(7):
                    z, y = exact[b, c], labels[b, c].double()
                    p = 1 / (1 + torch.exp(-z))
                    one, zero = torch.ones_like(y), torch.zeros_like(y)
                    value = y * term(one, z, p) + (1 - y) * term(zero, z, p)
                    expected = expected + (value if rated is None else value * rated[b, c])
            expected = expected / 5
            assert loss.item() != 0
            torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
            found = torch.autograd.grad(loss, x)[0].double()
            wanted = torch.autograd.grad(expected, exact)[0]
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)

    return check
