from __future__ import annotations

import pytest
import torch

from tagreel.layers.rectifier import Rectifier


@pytest.mark.parametrize("ceiling", [6.0, 0.5, None])
def test_follows_its_definition(assert_follows, ceiling):
    def naive(layer, rows):
        clipped = [
            [x * 0 if x < 0 else x * 0 + ceiling if ceiling is not None and x > ceiling else x for x in row]
            for row in rows
        ]
        return torch.stack([torch.stack(row) for row in clipped])

    torch.manual_seed(0)
    assert_follows(Rectifier(4, ceiling=ceiling), naive, 5 * torch.randn(6, 4))


def test_padded_frames_stay_zeros():
    frames, mask = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)
    assert torch.equal(Rectifier(4)(frames, mask), frames)


@pytest.mark.parametrize("ceiling", [0.0, -1.0, float("nan")])
def test_a_ceiling_that_leaves_nothing_is_named(ceiling):
    with pytest.raises(ValueError, match=f"Rectifier: ceiling={ceiling}; expected more than 0, or None"):
        Rectifier(4, ceiling=ceiling)
