from __future__ import annotations

import pytest
import torch

from tagreel.layers.context_gating import ContextGating


@pytest.mark.parametrize("remove_diagonal", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_follows_equation_1(assert_follows, naive_batch_norm, batch_norm, remove_diagonal):
    def naive(layer, rows):
        B, D = rows.shape
        gates = []
        for b in range(B):
            for j in range(D):
                sources = [i for i in range(D) if i != j or not remove_diagonal]
                gates.append(sum(rows[b, i] * layer.weight[i, j] for i in sources))
        gates = torch.stack(gates).view(B, D)
        gates = naive_batch_norm(layer.norm, gates) if batch_norm else gates + layer.bias
        return rows / (1 + torch.exp(-gates))

    torch.manual_seed(0)
    layer = ContextGating(4, batch_norm=batch_norm, remove_diagonal=remove_diagonal)
    assert_follows(layer, naive, torch.randn(6, 4))


def test_an_entry_never_grows_nor_changes_sign():
    torch.manual_seed(0)
    x = torch.randn(8, 5)
    share = ContextGating(5)(x) / x
    assert ((share > 0) & (share < 1)).all()


@pytest.mark.parametrize(
    ("dim", "batch_norm", "expected"), [(1024, False, 1_049_600), (4716, True, 22_240_656 + 9_432)]
)
def test_parameters_are_those_of_the_paper(dim, batch_norm, expected):
    with torch.device("meta"):
        layer = ContextGating(dim, batch_norm=batch_norm)
    assert sum(p.numel() for p in layer.parameters()) == expected


def test_weights_start_as_in_the_authors_code():
    torch.manual_seed(0)
    layer = ContextGating(256, batch_norm=False)
    assert layer.weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert layer.bias.std().item() == pytest.approx(1 / 16, rel=0.2)
