from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tagreel.pools.deep_bag_of_frames import DeepBagOfFrames


def _naive(pool, videos):
    """The equations, one number at a time."""
    K = pool.weight.shape[1]
    norm, scores = pool.norm, torch.cat(videos) @ pool.weight
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    scores = F.batch_norm(scores, mean, var, norm.weight, norm.bias, norm.training, eps=1e-3)
    rows = []
    for video in scores.split([len(video) for video in videos]):
        codes = [[x * 0 if x < 0 else x * 0 + 6 if x > 6 else x for x in row] for row in video]
        mean = torch.stack([sum(code[k] for code in codes) / len(codes) for k in range(K)])
        largest = torch.stack([max(code[k] for code in codes) for k in range(K)])
        both = torch.cat([half / torch.sqrt((half**2).sum()) for half in (mean, largest)])
        rows.append({"max": largest, "mean": mean, "both": both}[pool.pooling])
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", ["max", "mean", "both"])
def test_follows_the_equations(assert_follows, pooling):
    torch.manual_seed(0)
    assert_follows(DeepBagOfFrames(5, clusters=6, pooling=pooling), _naive, 5)


def test_codes_lie_between_zero_and_six():
    torch.manual_seed(0)
    pool, frames = DeepBagOfFrames(5, clusters=6).eval(), 5 * torch.randn(4, 3, 5)
    expected = (frames @ pool.weight / 1.001**0.5).clamp(0, 6).amax(1)
    assert {0.0, 6.0} <= set(expected.flatten().tolist())
    torch.testing.assert_close(pool(frames), expected)


@pytest.mark.parametrize("pooling", ["max", "mean", "both"])
def test_a_video_without_frames_gives_zeros(pooling):
    pool = DeepBagOfFrames(5, clusters=6, pooling=pooling).eval()
    codes = pool(torch.ones(2, 3, 5), torch.tensor([[True] * 3, [False] * 3]))
    assert codes.shape == (2, pool.out_dim)
    assert codes[0].any()
    assert not codes[1].any()


def test_weights_start_as_in_the_starter_code():
    torch.manual_seed(0)
    assert DeepBagOfFrames(256, clusters=64).weight.std().item() == pytest.approx(1 / 16, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 0}, "DeepBagOfFrames: clusters=0; expected at least 1"),
        ({"pooling": "min"}, "DeepBagOfFrames: pooling='min'; choose one of: max, mean, both"),
    ],
)
def test_options_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DeepBagOfFrames(5, **options)
