from __future__ import annotations

import pytest
import torch

from tagreel.heads.hypercolumn_experts import HypercolumnExperts


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_experts_read_all_layers_side_by_side_and_gates_the_descriptor(assert_follows, naive, depth):
    def reference(head, rows):
        column = [rows]
        for layer in head.trunk.layers:
            column.append(naive.perceptron(layer, column[-1]))
        return naive.mixed(head.mixture, rows, torch.cat(column, dim=1))

    torch.manual_seed(0)
    head = HypercolumnExperts(4, 3, experts=2, hidden=6, depth=depth, dropout=0.0)
    assert head.mixture.experts.in_features == 4 + depth * 6
    assert_follows(head, reference, torch.randn(7, 4))


@pytest.mark.parametrize(("experts", "expected"), [(12, 615_566_608), (16, 813_582_016)])
def test_parameters_of_the_papers_models(experts, expected):
    with torch.device("meta"):
        head = HypercolumnExperts(1152, 4716, experts=experts)
    assert sum(p.numel() for p in head.parameters()) == expected
