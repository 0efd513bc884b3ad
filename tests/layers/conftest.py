"""Holds a layer beside a naive reference, written from its equation."""

from __future__ import annotations

import copy

import pytest
import torch


@pytest.fixture
def assert_follows():
    """`assert_follows(layer, naive, x)`: the float32 layer gives the naive values and gradients of float64.

    `naive(layer, rows)` takes the layer in float64 and rows (B, D), and returns as many rows.
    """

    def check(layer, naive, x):
        torch.manual_seed(1)
        with torch.no_grad():  # first statistics and first biases are too plain to tell an error
            for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
                if name.endswith(("bias", "running_mean")):
                    tensor.normal_()
                elif name.endswith(("norm.weight", "running_var")):
                    tensor.uniform_(0.5, 2.0)
        for training in (True, False):
            layer.train(training)
            exact = copy.deepcopy(layer).double()
            x, exact_x = x.detach().requires_grad_(), x.detach().double().requires_grad_()
            found, expected = layer(x).double(), naive(exact, exact_x)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            weights = torch.randn(expected.shape, dtype=torch.float64)
            found_grads = torch.autograd.grad((found * weights).sum(), [x, *layer.parameters()])
            expected_grads = torch.autograd.grad((expected * weights).sum(), [exact_x, *exact.parameters()])
            for one, other in zip(found_grads, expected_grads, strict=True):
                scale = max(1.0, other.abs().max().item())
                torch.testing.assert_close(one.double() / scale, other / scale, rtol=1e-5, atol=1e-5)

    return check


@pytest.fixture
def naive_batch_norm():
    """Batch norm of rows (B, D), column by column; `norm` is the layer in float64."""

    def normalize(norm, rows):
        columns = []
        for d in range(rows.shape[1]):
            column = rows[:, d]
            mean, variance = norm.running_mean[d], norm.running_var[d]
            if norm.training:
                mean = sum(column) / len(column)
                variance = sum((value - mean) ** 2 for value in column) / len(column)
            columns.append((column - mean) / torch.sqrt(variance + 1e-3) * norm.weight[d] + norm.bias[d])
        return torch.stack(columns, dim=1)

    return normalize
