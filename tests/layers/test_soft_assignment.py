from __future__ import annotations

import copy

import pytest
import torch

from tagreel.layers.soft_assignment import SoftAssignment

MASK = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])


@pytest.mark.parametrize("batch_norm", [True, False])
def test_follows_the_equation_on_the_real_frames(naive_batch_norm, batch_norm):
    def naive(layer, frames):
        logits = torch.stack(
            [torch.stack([(column * frame).sum() for column in layer.weight.T]) for frame in frames[MASK]]
        )
        logits = naive_batch_norm(layer.norm, logits) if batch_norm else logits + layer.bias
        shares = torch.zeros(*MASK.shape, 3, dtype=torch.float64)
        for (b, t), row in zip(MASK.nonzero().tolist(), logits, strict=True):
            shares[b, t] = torch.stack([1 / sum(torch.exp(other - one) for other in row) for one in row])
        return shares

    torch.manual_seed(0)
    layer = SoftAssignment(5, clusters=3, batch_norm=batch_norm)
    with torch.no_grad():
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                tensor.normal_()
            elif name.endswith(("norm.weight", "running_var")):
                tensor.uniform_(0.5, 2.0)
    for training in (True, False):
        layer.train(training)
        exact = copy.deepcopy(layer).double()
        x = torch.randn(3, 4, 5, requires_grad=True)
        exact_x = x.detach().double().requires_grad_()
        found, expected = layer(x, MASK).double(), naive(exact, exact_x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        weights = torch.randn(expected.shape, dtype=torch.float64)
        found_grads = torch.autograd.grad((found * weights).sum(), [x, *layer.parameters()])
        expected_grads = torch.autograd.grad((expected * weights).sum(), [exact_x, *exact.parameters()])
        for one, other in zip(found_grads, expected_grads, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_weights_start_as_in_the_authors_code():
    torch.manual_seed(0)
    layer = SoftAssignment(256, clusters=64, batch_norm=False)
    assert layer.weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert layer.bias.std().item() == pytest.approx(1 / 16, rel=0.3)


@pytest.mark.parametrize("clusters", [0, -2])
def test_a_number_of_clusters_that_cannot_be_is_named(clusters):
    with pytest.raises(ValueError, match=f"clusters={clusters}; expected at least 1"):
        SoftAssignment(5, clusters=clusters)
