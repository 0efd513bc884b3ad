from __future__ import annotations

import pytest
import torch

from tagreel.losses.hinge import Hinge


@pytest.mark.parametrize("margin", [0.5, 1.0, 3.0])
def test_follows_the_equation(margin, follows_the_equation):
    def term(y, z, p):
        return torch.clamp(margin - (2 * y - 1) * z, min=0)

    follows_the_equation(Hinge(margin=margin), term)


def test_beyond_the_margin_a_class_costs_nothing():
    labels = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert Hinge()(torch.tensor([[1.0, -1.0, 5.0, -9.0]]), labels).item() == 0
    assert Hinge()(torch.tensor([[0.5, -1.0, 5.0, 2.0]]), labels).item() == 0.5 + 3


def test_a_margin_of_nothing_is_refused():
    with pytest.raises(ValueError, match="margin=0; expected more than 0"):
        Hinge(margin=0)
