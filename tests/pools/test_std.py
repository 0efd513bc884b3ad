from __future__ import annotations

import pytest
import torch

from tagreel.pools.std import Std


def _naive(pool, videos):
    rows = []
    for video in videos:
        mean = sum(video) / len(video)
        variance = sum((frame - mean) ** 2 for frame in video) / len(video)
        rows.append(torch.sqrt(variance + 1e-6))
    return torch.stack(rows)


def test_deviates_from_the_mean_of_the_real_frames(assert_follows):
    assert_follows(Std(5), _naive, 5)


def test_what_does_not_move_gives_a_small_constant_and_no_gradient():
    frames = torch.full((2, 4, 3), 7.0, requires_grad=True)
    deviation = Std(3)(frames, torch.tensor([[True] * 4, [True, False, False, False]]))
    assert deviation.flatten().tolist() == pytest.approx([1e-3] * 6)
    assert torch.equal(torch.autograd.grad(deviation.sum(), frames)[0], torch.zeros(2, 4, 3))
