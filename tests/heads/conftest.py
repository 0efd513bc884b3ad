"""Holds a head beside a naive reference, written from its equations."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def assert_follows():
    """`assert_follows(head, naive, x)`: the float32 head gives the naive values and gradients of float64.

    `naive(head, rows)` takes the head in float64 and rows (B, D), and returns logits (B, C).
    """

    def check(head, naive, x):
        torch.manual_seed(1)
        with torch.no_grad():  # first statistics and first biases are too plain to tell an error
            for name, tensor in [*head.named_parameters(), *head.named_buffers()]:
                if name.endswith(("bias", "running_mean")):
                    tensor.normal_()
                elif name.endswith(("norm.weight", "running_var")):
                    tensor.uniform_(0.5, 2.0)
        for training in (False, True):
            head.train(training)
            exact = copy.deepcopy(head).double()
            x, exact_x = x.detach().requires_grad_(), x.detach().double().requires_grad_()
            found, expected = head(x).double(), naive(exact, exact_x)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            weights = torch.randn(expected.shape, dtype=torch.float64)
            found_grads = torch.autograd.grad((found * weights).sum(), [x, *head.parameters()])
            expected_grads = torch.autograd.grad((expected * weights).sum(), [exact_x, *exact.parameters()])
            for one, other in zip(found_grads, expected_grads, strict=True):
                scale = max(1.0, other.abs().max().item())
                torch.testing.assert_close(one.double() / scale, other / scale, rtol=1e-5, atol=1e-5)

    return check


def _linear(linear, rows):
    weight = linear.weight
    units = [
        [sum(weight[j, d] * row[d] for d in range(len(row))) for j in range(len(weight))] for row in rows
    ]
    out = torch.stack([torch.stack(row) for row in units])
    return out if linear.bias is None else out + linear.bias


def _perceptron(layer, rows):
    """ReLU, then batch norm column by column."""
    columns, norm = [], layer.norm
    for d, column in enumerate(_linear(layer.linear, rows).clamp_min(0).unbind(1)):
        mean, variance = norm.running_mean[d], norm.running_var[d]
        if norm.training:
            mean = sum(column) / len(column)
            variance = sum((value - mean) ** 2 for value in column) / len(column)
        columns.append((column - mean) / torch.sqrt(variance + 1e-3) * norm.weight[d] + norm.bias[d])
    return torch.stack(columns, dim=1)


def _mixed(mixture, rows, hidden):
    """p_c = Σ_e softmax(gates)_ce σ(expert_ce), as a logit; a gate beyond the experts says no."""
    E, C = mixture.num_experts, mixture.classes
    gates, votes = _linear(mixture.gates, rows), _linear(mixture.experts, hidden)
    units, probabilities = gates.shape[1] // C, []
    for b in range(len(rows)):
        for c in range(C):
            raised = [torch.exp(gates[b, c * units + e]) for e in range(units)]
            p = sum(raised[e] / (1 + torch.exp(-votes[b, c * E + e])) for e in range(E))
            probabilities.append(p / sum(raised))
    p = torch.stack(probabilities).view(len(rows), C)
    return torch.log(p / (1 - p))


@pytest.fixture
def naive():
    """Parts of the references: `linear`, `perceptron` (no dropout) and `mixed`, each with loops alone."""
    return SimpleNamespace(linear=_linear, perceptron=_perceptron, mixed=_mixed)
