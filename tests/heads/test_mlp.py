from __future__ import annotations

import pytest
import torch

from tagreel.heads.mlp import MLP


def test_follows_the_equation(assert_follows, naive):
    def reference(head, rows):
        return naive.linear(head.linear, naive.linear(head.hidden, rows).clamp(0, 6))

    torch.manual_seed(0)
    x = 4 * torch.randn(7, 4)
    head = MLP(4, 3, hidden=9)
    assert (head.hidden(x) > 6).any()
    assert_follows(head, reference, x)


def test_parameters_are_those_of_two_layers():
    with torch.device("meta"):
        head = MLP(1152, 4716)
    assert sum(p.numel() for p in head.parameters()) == 1152 * 1024 + 1024 + 1024 * 4716 + 4716


def test_no_hidden_unit_is_too_few():
    with pytest.raises(ValueError, match="hidden=0; expected at least 1"):
        MLP(4, 3, hidden=0)
