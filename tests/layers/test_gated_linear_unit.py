from __future__ import annotations

import pytest
import torch

from tagreel.layers.gated_linear_unit import GatedLinearUnit


def _naive(layer, rows):
    B, D = rows.shape
    products = []
    for b in range(B):
        for j in range(D):
            gate = sum(layer.gate.weight[j, i] * rows[b, i] for i in range(D)) + layer.gate.bias[j]
            value = sum(layer.linear.weight[j, i] * rows[b, i] for i in range(D)) + layer.linear.bias[j]
            products.append(value / (1 + torch.exp(-gate)))
    return torch.stack(products).view(B, D)


def test_follows_the_equation(assert_follows):
    torch.manual_seed(0)
    assert_follows(GatedLinearUnit(4), _naive, torch.randn(6, 4))


def test_parameters_are_twice_those_of_context_gating():
    with torch.device("meta"):
        layer = GatedLinearUnit(1024)
    assert sum(p.numel() for p in layer.parameters()) == 2_099_200


def test_weights_start_as_those_of_context_gating():
    torch.manual_seed(0)
    layer = GatedLinearUnit(256)
    for linear in (layer.gate, layer.linear):
        assert linear.weight.std().item() == pytest.approx(1 / 16, rel=0.05)
        assert linear.bias.std().item() == pytest.approx(1 / 16, rel=0.2)
