from __future__ import annotations

import pytest
import torch

from tagreel.layers.sparse_code import SparseCode


def test_follows_the_equation(assert_follows, naive_batch_norm):
    def naive(layer, rows):
        logits = [
            [sum(layer.weight[i, j] * row[i] for i in range(4)) for j in range(layer.out_dim)] for row in rows
        ]
        coded = naive_batch_norm(layer.norm, torch.stack([torch.stack(row) for row in logits]))
        return torch.where(coded > 0, coded, torch.zeros_like(coded))

    torch.manual_seed(0)
    assert_follows(SparseCode(4, width=6), naive, torch.randn(7, 4))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_padded_frames_are_in_no_statistics_and_get_no_gradient(training):
    torch.manual_seed(0)
    layer = SparseCode(4, width=6).train(training)
    frames = torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    real = frames[mask]
    padded = torch.where(mask[..., None], frames, 1e3).requires_grad_()
    found = layer(padded, mask)[mask]
    [gradient] = torch.autograd.grad((found * torch.randn_like(found)).sum(), padded)
    assert gradient[mask].any()
    assert not gradient[~mask].any()
    statistics = layer.norm.running_mean.clone(), layer.norm.running_var.clone()
    torch.manual_seed(0)
    alone = SparseCode(4, width=6).train(training)
    torch.testing.assert_close(found, alone(real))
    for one, other in zip(statistics, (alone.norm.running_mean, alone.norm.running_var), strict=True):
        torch.testing.assert_close(one, other)


def test_about_half_of_a_code_is_zero():
    torch.manual_seed(0)
    coded = SparseCode(16, width=64)(torch.randn(20, 10, 16), torch.ones(20, 10, dtype=torch.bool))
    assert coded.shape == (20, 10, 64)
    assert 0.4 < (coded == 0).float().mean() < 0.6


def test_a_code_of_nothing_is_refused():
    with pytest.raises(ValueError, match="width=0; expected at least 1"):
        SparseCode(4, width=0)
