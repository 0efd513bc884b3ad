from __future__ import annotations

import copy

import pytest
import torch

from tagreel.layers.non_local import NonLocal


def _naive(layer, videos):
    """The equation, one pair of rows and one number at a time."""

    def times(row, matrix):
        return [sum(row[d] * matrix[d, i] for d in range(matrix.shape[0])) for i in range(matrix.shape[1])]

    looked = []
    for rows in videos:
        theta, phi = [times(row, layer.theta) for row in rows], [times(row, layer.phi) for row in rows]
        values = phi if layer.reuse_phi else [times(row, layer.g) for row in rows]
        for i, row in enumerate(rows):
            raised = [
                torch.exp(layer.scale * sum(a * b for a, b in zip(theta[i], key, strict=True))) for key in phi
            ]
            y = [
                sum(share / sum(raised) * value[n] for share, value in zip(raised, values, strict=True))
                for n in range(len(values[0]))
            ]
            looked.append(row + torch.stack(times(y, layer.out)))
    return torch.stack(looked).view(len(videos), -1, layer.out_dim)


@pytest.mark.parametrize("reuse_phi", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_follows_the_equation(reuse_phi, scale):
    torch.manual_seed(0)
    layer = NonLocal(5, inner=3, scale=scale, reuse_phi=reuse_phi)
    exact = copy.deepcopy(layer).double()
    rows = torch.randn(2, 4, 5, requires_grad=True)
    exact_rows = rows.detach().double().requires_grad_()
    found, expected = layer(rows), _naive(exact, exact_rows)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    used = ["theta", "phi", "out"] if reuse_phi else ["theta", "phi", "g", "out"]
    found_grads = torch.autograd.grad(
        (found * weights).sum(), [rows, *(getattr(layer, name) for name in used)]
    )
    expected_grads = torch.autograd.grad(
        (expected * weights).sum(), [exact_rows, *(getattr(exact, name) for name in used)]
    )
    for one, other in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_the_scale_is_one_over_the_root_of_the_width_unless_given():
    assert NonLocal(16, inner=3).scale == 1 / 4
    assert NonLocal(16, inner=3, scale=1 / 64).scale == 1 / 64


def test_g_is_counted_and_unused_where_phi_takes_its_place():
    torch.manual_seed(0)
    layer = NonLocal(5, inner=3, reuse_phi=True)
    assert sum(p.numel() for p in layer.parameters()) == 4 * 5 * 3
    layer(torch.randn(2, 4, 5)).sum().backward()
    assert layer.g.grad is None


def test_weights_start_as_in_the_authors_code():
    torch.manual_seed(0)
    layer = NonLocal(400, inner=100)
    for weight in (layer.theta, layer.phi, layer.g):
        assert weight.std().item() == pytest.approx(1 / 20, rel=0.02)
    assert layer.out.std().item() == pytest.approx(1 / 10, rel=0.02)


def test_a_width_of_nothing_is_refused():
    with pytest.raises(ValueError, match="inner=0; expected at least 1"):
        NonLocal(5, inner=0)
