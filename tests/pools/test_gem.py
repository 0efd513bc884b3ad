from __future__ import annotations

import pytest
import torch

from tagreel.pools.gem import GeM


def _exponents(pool):
    return [1 + torch.log(1 + torch.exp(exponent)) for exponent in pool.exponent]


def _naive(pool, videos):
    """The equation as printed, without logarithms, on the positive and then the negative parts."""
    p = _exponents(pool)
    rows = []
    for video in videos:
        row = []
        for sign in (1, -1):
            for d in range(pool.out_dim // 2):
                power = p[len(row)]
                total = torch.zeros((), dtype=torch.float64)
                for frame in video:
                    total = total + torch.clamp(sign * frame[d], min=1e-6) ** power
                row.append((total / len(video)) ** (1 / power) if len(video) else total)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_follows_the_equation(assert_follows):
    assert_follows(GeM(5), _naive, 5)
    assert_follows(GeM(5, p=1.5), _naive, 5, lengths=(2, 3))


def test_every_feature_has_exponents_of_its_own_that_start_alike_and_move_apart(assert_follows):
    pool = GeM(3, p=4.0)
    assert [p.item() for p in _exponents(pool)] == pytest.approx([4.0] * 6)
    with torch.no_grad():
        pool.exponent.uniform_(-2, 3)
    assert_follows(pool, _naive, 3)


def test_small_powers_give_the_mean_and_large_ones_the_largest():
    frames = torch.tensor([[[1.0], [2.0], [6.0]]])
    assert GeM(1, p=1.0001)(frames)[0, 0].item() == pytest.approx(3.0, rel=1e-3)
    assert GeM(1, p=99)(frames)[0, 0].item() == pytest.approx(6.0, rel=0.02)


def test_positive_and_negative_frames_do_not_cancel():
    frames = torch.tensor([[[3.0], [-3.0]]])
    assert GeM(1, p=3.0)(frames)[0].tolist() == pytest.approx([3 * 0.5 ** (1 / 3)] * 2)


def test_twice_the_frames_give_twice_the_mean():
    torch.manual_seed(0)
    pool, frames = GeM(5), torch.randn(2, 6, 5)
    torch.testing.assert_close(pool(2 * frames), 2 * pool(frames), rtol=1e-4, atol=1e-5)


def test_large_powers_of_small_and_large_frames_stay_finite():
    pool = GeM(2, p=90.0)
    frames = torch.tensor([[[1e-5, 1e4], [2e-5, -2e4]]], requires_grad=True)
    pooled = pool(frames)
    [gradient] = torch.autograd.grad(pooled.sum(), frames)
    assert pooled.isfinite().all()
    assert gradient.isfinite().all()
    assert pooled[0, 0].item() == pytest.approx(2e-5, rel=0.02)


def test_a_video_without_frames_gives_zeros():
    pooled = GeM(2)(torch.full((1, 3, 2), 7.0), torch.zeros(1, 3, dtype=torch.bool))
    assert torch.equal(pooled, torch.zeros(1, 4))


@pytest.mark.parametrize("p", [1.0, 0.0, 100.0, float("nan")])
def test_a_power_out_of_range_is_refused(p):
    with pytest.raises(ValueError, match="expected more than 1 and less than 100"):
        GeM(5, p=p)
