from __future__ import annotations

import torch

from tagreel.layers.residual_mlp import ResidualMLP


def _linear(layer, rows):
    return torch.stack([torch.stack([(w * row).sum() for w in layer.weight]) + layer.bias for row in rows])


def test_follows_the_equations(assert_follows, naive_batch_norm):
    def naive(layer, rows):
        h = naive_batch_norm(layer.enter_norm, _linear(layer.enter, rows))
        for block in layer.blocks:
            inner = naive_batch_norm(block.norm, _linear(block.inner, h)).clamp_min(0)
            h = h + _linear(block.outer, inner)
        return naive_batch_norm(layer.exit_norm, h).clamp_min(0)

    torch.manual_seed(0)
    assert_follows(ResidualMLP(3, width=5, blocks=2, dropout=0.0), naive, torch.randn(7, 3))


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    layer, x = ResidualMLP(3, width=5), torch.randn(7, 3)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
