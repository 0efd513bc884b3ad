from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tagreel.layers import repeated as repeated_module
from tagreel.layers.repeated import repeated

SIZES = (5, 5, 3, 1, 0)


@pytest.fixture(params=["oneDNN", "plain"])
def way(request, monkeypatch):
    """Both ways to multiply, wherever the processor has the faster one."""
    if request.param == "plain":
        monkeypatch.setattr(repeated_module, "_is_fast", lambda x: False)
    elif not repeated_module._is_fast(torch.zeros(1)):
        pytest.skip("needs a processor with AVX-512")


def _rows(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 6, generator=generator).to(dtype).requires_grad_() for size in SIZES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_and_gradients_are_those_of_single_products(way, dtype):
    torch.manual_seed(0)
    kernel = torch.randn(4, 9, dtype=dtype).requires_grad_()
    rows, weight = _rows(dtype), kernel[:, 3:]
    upstream = [torch.randn(size, 4, dtype=dtype) for size in SIZES]

    def everything(products):
        gradients = torch.autograd.grad(products, [kernel, *rows], upstream)
        return *products, *gradients

    found = everything([multiply(x) for multiply, x in zip(repeated(weight, SIZES), rows, strict=True)])
    expected = everything([F.linear(x, weight) for x in rows])
    tolerance = {torch.bfloat16: 5e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_mixed_precision_multiplies_in_bfloat16_and_gives_gradients_in_float32(way):
    torch.manual_seed(0)
    weight = torch.randn(4, 6, requires_grad=True)
    rows = _rows()
    with torch.autocast("cpu", torch.bfloat16):
        products = [multiply(x) for multiply, x in zip(repeated(weight, SIZES), rows, strict=True)]
    exact = [F.linear(x, weight) for x in rows]
    assert {p.dtype for p in products} == {torch.bfloat16}
    gradients = torch.autograd.grad(torch.cat(products).float().sum(), [weight, *rows])
    expected = torch.autograd.grad(torch.cat(exact).sum(), [weight, *rows])
    for one, other in zip((*products, *gradients), (*exact, *expected), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=3e-2, atol=3e-2)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_steps_that_nothing_depends_on_are_left_out(way):
    weight = torch.randn(4, 6, requires_grad=True)
    rows = _rows()
    products = [multiply(x) for multiply, x in zip(repeated(weight, SIZES), rows, strict=True)]
    [gradient] = torch.autograd.grad(products[1].sum() + products[3].sum(), [weight])
    torch.testing.assert_close(gradient, (rows[1].sum(0) + rows[3].sum(0)).expand(4, -1))


def test_one_gradient_after_the_other_is_the_same_as_both_at_once(way):
    weight = torch.randn(4, 6, requires_grad=True)
    rows = _rows()
    total = sum(multiply(x).sum() for multiply, x in zip(repeated(weight, SIZES), rows, strict=True))
    first = torch.autograd.grad(total, [rows[0]], retain_graph=True)
    again = torch.autograd.grad(total, [rows[0], weight], retain_graph=True)
    once_more = torch.autograd.grad(total, [weight, rows[0]])
    assert torch.equal(first[0], again[0])
    assert torch.equal(again[0], once_more[1])
    assert torch.equal(again[1], once_more[0])


def test_a_matrix_that_changed_meanwhile_is_noticed():
    weight = torch.randn(4, 6, requires_grad=True)
    [multiply] = repeated(weight, [2])
    out = multiply(torch.randn(2, 6))
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_without_gradients_nothing_is_kept():
    weight = torch.randn(4, 6, requires_grad=True)
    with torch.no_grad():
        [multiply] = repeated(weight, [2])
        multiply(torch.randn(2, 6))
    assert multiply.keywords["matrix"].multiplied == []
