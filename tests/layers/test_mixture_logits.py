from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tagreel.layers import mixture_logits as module
from tagreel.layers.mixture_logits import mixture_logits


def _naive(gates, votes, classes):
    """The mixture as the papers write it, number by number; a gate beyond the votes says no."""
    units, experts = gates.shape[1] // classes, votes.shape[1] // classes
    rows = []
    for b in range(len(gates)):
        for c in range(classes):
            raised = [torch.exp(gates[b, c * units + e]) for e in range(units)]
            p = sum(raised[e] / (1 + torch.exp(-votes[b, c * experts + e])) for e in range(experts))
            rows.append(p / sum(raised))
    p = torch.stack(rows).view(len(gates), classes)
    return torch.log(p / (1 - p))


def _by_autograd(gates, votes, classes):
    """The same in log space, every number kept."""
    B, E = len(gates), votes.shape[1] // classes
    log_gates = F.log_softmax(gates.view(B, classes, -1), dim=-1)
    votes = votes.view(B, classes, E)
    log_yes = torch.logsumexp(log_gates[..., :E] + F.logsigmoid(votes), dim=-1)
    log_no = torch.cat([log_gates[..., :E] + F.logsigmoid(-votes), log_gates[..., E:]], dim=-1)
    return log_yes - torch.logsumexp(log_no, dim=-1)


def _inputs(experts, null_expert, *, classes=5, videos=4, size=2.0, dtype=torch.float32):
    torch.manual_seed(0)
    gates = size * torch.randn(videos, classes * (experts + null_expert), dtype=dtype)
    return gates.requires_grad_(), (
        size * torch.randn(videos, classes * experts, dtype=dtype)
    ).requires_grad_()


any_mixture = pytest.mark.parametrize(
    ("experts", "null_expert"), [(1, True), (2, False), (2, True), (5, False), (30, True)]
)


@any_mixture
def test_is_the_logit_of_the_mixed_probability(experts, null_expert):
    gates, votes = _inputs(experts, null_expert)
    exact = [x.detach().double().requires_grad_() for x in (gates, votes)]
    found, expected = mixture_logits(gates, votes, 5), _naive(*exact, 5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(4, 5)
    found_grads = torch.autograd.grad((found * weights).sum(), [gates, votes])
    expected_grads = torch.autograd.grad((expected * weights).sum(), exact)
    for one, other in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@any_mixture
@pytest.mark.parametrize("votes_at_once", [1, 7, 60])
def test_a_few_classes_at_a_time_give_what_all_at_once_give(monkeypatch, experts, null_expert, votes_at_once):
    gates, votes = _inputs(experts, null_expert, classes=11)
    found = [mixture_logits(gates, votes, 11)]
    found += torch.autograd.grad(found[0].square().sum(), [gates, votes])
    monkeypatch.setattr(module, "_VOTES_AT_ONCE", votes_at_once)
    few = [mixture_logits(gates, votes, 11)]
    few += torch.autograd.grad(few[0].square().sum(), [gates, votes])
    for one, other in zip(found, few, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@any_mixture
def test_gradients_are_the_derivatives(experts, null_expert):
    gates, votes = _inputs(experts, null_expert, classes=2, videos=2, dtype=torch.float64)
    torch.autograd.gradcheck(lambda gates, votes: mixture_logits(gates, votes, 2), (gates, votes))


@any_mixture
@pytest.mark.parametrize("size", [30.0, 1e3])
def test_stays_finite_and_exact_where_the_probability_rounds_to_0_or_1(experts, null_expert, size):
    gates, votes = _inputs(experts, null_expert, size=size)
    found, expected = mixture_logits(gates, votes, 5), _by_autograd(gates.double(), votes.double(), 5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    found_grads = torch.autograd.grad(found.sum(), [gates, votes])
    for one, other in zip(found_grads, torch.autograd.grad(expected.sum(), [gates, votes]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_keeps_nothing_but_the_gates_and_the_votes():
    gates, votes = _inputs(30, True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        mixture_logits(gates, votes, 5)
    assert sorted(x.data_ptr() for x in kept) == sorted(x.data_ptr() for x in (gates, votes))


def test_halves_come_back_as_halves_and_are_mixed_in_float():
    gates, votes = (x.detach().bfloat16().requires_grad_() for x in _inputs(5, True))
    found = mixture_logits(gates, votes, 5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, mixture_logits(gates.float(), votes.float(), 5))
    assert {x.dtype for x in torch.autograd.grad(found.sum(), [gates, votes])} == {torch.bfloat16}
