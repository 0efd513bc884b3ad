from __future__ import annotations

import pytest
import torch

from tagreel.layers.probability_gating import ProbabilityGating


@pytest.mark.parametrize("remove_diagonal", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_gates_probabilities_as_the_paper_writes_it(
    assert_follows, naive_batch_norm, batch_norm, remove_diagonal
):
    def naive(layer, logits):
        gating, (B, C) = layer.gating, logits.shape
        p = 1 / (1 + torch.exp(-logits))
        gates = []
        for b in range(B):
            for j in range(C):
                sources = [i for i in range(C) if i != j or not remove_diagonal]
                gates.append(sum(p[b, i] * gating.weight[i, j] for i in sources))
        gates = torch.stack(gates).view(B, C)
        gates = naive_batch_norm(gating.norm, gates) if batch_norm else gates + gating.bias
        gated = p / (1 + torch.exp(-gates))
        return torch.log(gated / (1 - gated))

    torch.manual_seed(0)
    layer = ProbabilityGating(4, batch_norm=batch_norm, remove_diagonal=remove_diagonal)
    assert_follows(layer, naive, 2 * torch.randn(6, 4))


@pytest.mark.parametrize("size", [30.0, 1e3, 1e4])
def test_stays_finite_where_the_probability_rounds_to_0_or_1(size):
    torch.manual_seed(0)
    layer = ProbabilityGating(5)
    logits = (size * torch.randn(6, 5)).requires_grad_()
    gated = layer(logits)
    grads = torch.autograd.grad(gated.sum(), [logits, *layer.parameters()])
    assert gated.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)
    assert (gated <= logits).all()  # a gate below 1 only ever lowers
    surely_not = logits < -20
    torch.testing.assert_close(  # log p' = log p + log g, and both logs are the logits there
        gated[surely_not],
        (logits + torch.nn.functional.logsigmoid(layer.gating.gate(logits.sigmoid())))[surely_not],
    )
