from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tagreel.pools.netfv import NetFV


def _shares(assignment, videos):
    """Soft assignments (F, K) of every video; all real frames share the statistics."""
    norm, logits = assignment.norm, torch.cat(videos) @ assignment.weight
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    logits = F.batch_norm(logits, mean, var, norm.weight, norm.bias, norm.training, eps=1e-3)
    raised = torch.exp(logits)
    return (raised / raised.sum(1, keepdim=True)).split([len(video) for video in videos])


def _naive(pool, videos):
    """Both equations as they are printed, with the normalisations, one number at a time."""
    D, K = pool.roots.shape
    c = pool.centres if pool.centres is not None else 0.01 * pool.assignment.weight
    rows = []
    for video, shares in zip(videos, _shares(pool.assignment, videos), strict=True):
        first = [[torch.zeros((), dtype=torch.float64) for _ in range(K)] for _ in range(D)]
        second = [[torch.zeros((), dtype=torch.float64) for _ in range(K)] for _ in range(D)]
        for frame, assigned in zip(video, shares, strict=True):
            for d in range(D):
                for k in range(K):
                    residual = (frame[d] - c[d, k]) / (pool.roots[d, k] ** 2 + 1e-6)
                    first[d][k] = first[d][k] + assigned[k] * residual
                    second[d][k] = second[d][k] + assigned[k] * (residual**2 - 1)
        for V, has_intra_norm in ((first, True), (second, pool.intra_norm_second_order)):
            if has_intra_norm:
                for k in range(K):
                    length = torch.sqrt(sum(V[d][k] ** 2 for d in range(D)))
                    for d in range(D):
                        V[d][k] = V[d][k] / length
            length = torch.sqrt(sum(V[d][k] ** 2 for d in range(D) for k in range(K)))
            rows.append(torch.stack([V[d][k] / length for d in range(D) for k in range(K)]))
    return torch.stack(rows).view(len(videos), 2 * D * K)


@pytest.mark.parametrize("intra_norm_second_order", [True, False])
@pytest.mark.parametrize("couple_weights", [True, False])
def test_follows_the_equations(assert_follows, couple_weights, intra_norm_second_order):
    torch.manual_seed(0)
    pool = NetFV(
        5, clusters=3, couple_weights=couple_weights, intra_norm_second_order=intra_norm_second_order
    )
    with torch.no_grad():
        pool.roots.uniform_(0.5, 1.5)  # at width 5 the first ones lie anywhere, some all but at 0
    assert_follows(pool, _naive, 5)


def test_what_the_normalisations_leave_of_the_lengths():
    torch.manual_seed(0)
    frames = torch.randn(4, 9, 5)
    even = torch.full((4, 3), 1 / math.sqrt(3))
    for intra_norm_second_order in (True, False):
        pool = NetFV(5, clusters=3, intra_norm_second_order=intra_norm_second_order)
        first, second = pool(frames).view(4, 2, 5, 3).norm(dim=2).unbind(1)
        torch.testing.assert_close(first, even)
        torch.testing.assert_close(second.norm(dim=1), torch.ones(4))
        assert torch.allclose(second, even) == intra_norm_second_order


def test_coupled_centres_are_not_parameters():
    own, coupled = (NetFV(5, clusters=3, couple_weights=couple) for couple in (False, True))
    sizes = [sum(p.numel() for p in pool.parameters()) for pool in (own, coupled)]
    assert sizes == [3 * 15 + 6, 2 * 15 + 6]


def test_weights_start_as_in_the_authors_code():
    torch.manual_seed(0)
    pool = NetFV(256, clusters=64)
    assert pool.centres.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert pool.centres.mean().item() == pytest.approx(0, abs=0.01)
    assert pool.roots.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert pool.roots.mean().item() == pytest.approx(1, abs=0.01)
