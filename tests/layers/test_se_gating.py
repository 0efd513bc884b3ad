from __future__ import annotations

import pytest
import torch

from tagreel.layers.se_gating import SEGating


def test_follows_the_equation(assert_follows, naive_batch_norm):
    def naive(layer, rows):
        (B, D), R = rows.shape, layer.squeeze.shape[1]
        hidden = [sum(rows[b, i] * layer.squeeze[i, r] for i in range(D)) for b in range(B) for r in range(R)]
        hidden = naive_batch_norm(layer.norm, torch.stack(hidden).view(B, R)).clamp_min(0)
        gates = [sum(hidden[b, r] * layer.excite[r, j] for r in range(R)) for b in range(B) for j in range(D)]
        return rows / (1 + torch.exp(-torch.stack(gates).view(B, D)))

    torch.manual_seed(0)
    assert_follows(SEGating(6, reduction=2), naive, torch.randn(5, 6))


@pytest.mark.parametrize(("reduction", "matrices"), [(8, 1_048_576), (16, 524_288)])
def test_matrices_hold_2_f_squared_over_r_weights(reduction, matrices):
    with torch.device("meta"):
        layer = SEGating(2048, reduction=reduction)
    assert layer.squeeze.numel() + layer.excite.numel() == matrices
    assert sum(p.numel() for p in layer.parameters()) == matrices + 2 * 2048 // reduction


def test_a_width_that_the_reduction_does_not_divide_is_named():
    with pytest.raises(ValueError, match="width 10 is not a multiple of reduction=8"):
        SEGating(10)
