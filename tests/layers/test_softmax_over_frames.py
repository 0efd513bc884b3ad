from __future__ import annotations

import math

import pytest
import torch

from tagreel.layers.softmax_over_frames import softmax_over_frames


def test_weights_of_the_real_frames_sum_to_one_and_padding_has_none():
    torch.manual_seed(0)
    scores, lengths = 3 * torch.randn(3, 5, 2), (5, 3, 1)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    weights = softmax_over_frames(scores, mask)
    for b, length in enumerate(lengths):
        for h in range(2):
            raised = [math.exp(scores[b, t, h]) for t in range(length)]
            expected = [value / sum(raised) for value in raised] + [0.0] * (5 - length)
            assert weights[b, :, h].tolist() == pytest.approx(expected, abs=1e-6)


def test_without_a_mask_all_frames_are_real():
    torch.manual_seed(0)
    scores = torch.randn(2, 4, 3)
    assert torch.equal(
        softmax_over_frames(scores), softmax_over_frames(scores, torch.ones(2, 4, dtype=torch.bool))
    )


def test_a_video_without_frames_weighs_nothing_and_moves_nothing():
    scores = torch.randn(1, 3, 2, requires_grad=True)
    with torch.autograd.set_detect_anomaly(True):  # which a NaN on the way would stop
        weights = softmax_over_frames(scores, torch.zeros(1, 3, dtype=torch.bool))
        assert not weights.any()
        assert not torch.autograd.grad(weights.sum(), scores)[0].any()
