from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn

from tagreel.layers import product as products
from tagreel.layers.product import Linear, Scaled, is_fast_here, product

needs_wide_units = pytest.mark.skipif(
    not products._has_wide_units(), reason="PyTorch's own product is used on this processor"
)


def _both(shape, width, *, transposed, bias):
    """A product and its gradients by ours and by PyTorch's, and how often oneDNN was asked."""
    torch.manual_seed(0)
    x = torch.randn(*shape, requires_grad=True)
    weight = torch.randn(width, shape[-1]) if transposed else torch.randn(shape[-1], width)
    weight.requires_grad_()
    added = torch.randn(width, requires_grad=True) if bias else None
    inputs = [x, weight, *([added] if bias else [])]
    used = weight.t() if transposed else weight
    upstream = torch.randn(*shape[:-1], width)
    with mock.patch.object(products, "multiply", wraps=products.multiply) as asked:
        found = product(x, used, added)
        found_gradients = torch.autograd.grad(found, inputs, upstream)
    expected = x @ used + (0 if added is None else added)
    return (found, *found_gradients), (expected, *torch.autograd.grad(expected, inputs, upstream)), asked


@needs_wide_units
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(300, 200), (4, 90, 200)])
def test_a_large_product_and_its_gradients_are_pytorchs_to_rounding(shape, transposed, bias):
    found, expected, asked = _both(shape, 96, transposed=transposed, bias=bias)
    assert asked.call_count == 3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_small_product_is_pytorchs_own():
    found, expected, asked = _both((5, 8), 4, transposed=False, bias=True)
    assert not asked.called
    torch.testing.assert_close(found, expected)


@needs_wide_units
def test_the_gradient_of_a_weight_lies_in_memory_as_the_weight_does():
    for weight in (torch.randn(400, 300), torch.randn(300, 400).t()):
        weight.requires_grad_()
        (gradient,) = torch.autograd.grad(product(torch.randn(100, 400), weight).sum(), weight)
        assert gradient.stride() == weight.stride()


@needs_wide_units
def test_it_is_twice_differentiable():
    x, weight = torch.randn(100, 300, requires_grad=True), torch.randn(300, 200, requires_grad=True)

    def penalty(multiplied):
        (gradient,) = torch.autograd.grad(multiplied.square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().mean(), weight)[0]

    torch.testing.assert_close(penalty(product(x, weight)), penalty(x @ weight), rtol=1e-3, atol=1e-2)


def test_other_types_and_half_precision_are_left_to_pytorch():
    x, weight = torch.randn(300, 200), torch.randn(200, 100)
    assert product(x.double(), weight.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_fast_here(x)
        assert product(x, weight).dtype == torch.bfloat16
    assert not is_fast_here(x.to("meta"))
    assert product(x.to("meta"), weight.to("meta")).shape == (300, 100)


def test_a_linear_layer_is_torchs_in_all_but_speed():
    torch.manual_seed(0)
    ours = Linear(200, 150)
    theirs = nn.Linear(200, 150)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(300, 200)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [3, 400])
def test_what_is_scaled_multiplies_as_if_it_were_multiplied_out(rows):
    torch.manual_seed(0)
    x, scale, shift = torch.randn(rows, 90), torch.randn(90), torch.randn(90)
    weight, bias = torch.randn(90, 150), torch.randn(150)
    inputs = [tensor.requires_grad_() for tensor in (scale, shift, weight, bias)]
    found = product(Scaled(x, scale, shift), weight, bias)
    expected = (x * scale + shift) @ weight + bias
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
