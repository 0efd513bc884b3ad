"""Holds a pool beside a naive reference, written from its equation, on videos of different lengths."""

from __future__ import annotations

import copy

import pytest
import torch

LENGTHS = (6, 3, 1, 4)


@pytest.fixture
def assert_follows():
    """`assert_follows(pool, naive, dim)`: the float32 pool gives the naive values and gradients of float64.

    `naive(pool, videos)` takes the pool in float64 and B videos (F, D) without padding, and returns (B, out).
    Frames that only pad are noise here, and no gradient may reach them.
    """

    def check(pool, naive, dim, *, lengths=LENGTHS):
        torch.manual_seed(1)
        frames = torch.randn(len(lengths), max(lengths) + 1, dim)
        mask = torch.arange(frames.shape[1]) < torch.tensor(lengths)[:, None]
        weights = torch.randn(len(lengths), pool.out_dim, dtype=torch.float64)
        with torch.no_grad():  # first statistics and first biases are too plain to tell an error
            for name, tensor in [*pool.named_parameters(), *pool.named_buffers()]:
                if name.endswith(("bias", "running_mean")):
                    tensor.normal_()
                elif name.endswith(("norm.weight", "running_var")):
                    tensor.uniform_(0.5, 2.0)
        for training in (True, False):
            pool.train(training)
            exact = copy.deepcopy(pool).double()
            x, exact_x = frames.clone().requires_grad_(), frames.double().requires_grad_()
            found = pool(x, mask).double()
            expected = naive(exact, [video[:n] for video, n in zip(exact_x, lengths, strict=True)])
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            found_grads = torch.autograd.grad((found * weights).sum(), [x, *pool.parameters()])
            expected_grads = torch.autograd.grad((expected * weights).sum(), [exact_x, *exact.parameters()])
            for one, other in zip(found_grads, expected_grads, strict=True):
                scale = max(1.0, other.abs().max().item())
                torch.testing.assert_close(one.double() / scale, other / scale, rtol=1e-5, atol=1e-5)

    return check
