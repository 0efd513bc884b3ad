from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tagreel.layers.projection import Projection
from tagreel.pools.netvlad import NetVLAD


def _naive(pool, videos):
    """Equation 4 and the two normalisations, one number at a time."""
    D, K = pool.centres.shape
    logits = torch.cat(videos) @ pool.assignment.weight
    norm = pool.assignment.norm
    if norm is not None:
        mean, var = norm.running_mean.clone(), norm.running_var.clone()
        logits = F.batch_norm(logits, mean, var, norm.weight, norm.bias, pool.training, eps=1e-3)
    else:
        logits = logits + pool.assignment.bias
    rows, at = [], 0
    for video in videos:
        V = [[torch.zeros((), dtype=torch.float64) for _ in range(K)] for _ in range(D)]
        for frame in video:
            raised = [torch.exp(logit) for logit in logits[at]]
            at += 1
            for k in range(K):
                assigned = raised[k] / sum(raised)
                for d in range(D):
                    V[d][k] = V[d][k] + assigned * (frame[d] - pool.centres[d, k])
        lengths = [torch.sqrt(sum(V[d][k] ** 2 for d in range(D))) for k in range(K)]
        flat = torch.stack([V[d][k] / lengths[k] for d in range(D) for k in range(K)])
        rows.append(flat / torch.sqrt((flat**2).sum()))
    return torch.stack(rows)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_follows_the_equation(assert_follows, batch_norm):
    torch.manual_seed(0)
    assert_follows(NetVLAD(5, clusters=3, batch_norm=batch_norm), _naive, 5)


def test_every_cluster_weighs_the_same_in_a_descriptor_of_length_one():
    torch.manual_seed(0)
    descriptor = NetVLAD(5, clusters=3)(torch.randn(4, 9, 5)).view(4, 5, 3)
    torch.testing.assert_close(descriptor.norm(dim=1), torch.full((4, 3), 1 / math.sqrt(3)))


def test_a_video_shown_twice_has_the_same_descriptor():
    torch.manual_seed(0)
    pool, frames = NetVLAD(5, clusters=3).eval(), torch.randn(2, 4, 5)
    torch.testing.assert_close(pool(frames), pool(torch.cat([frames, frames], dim=1)))


def test_weights_and_centres_start_as_in_the_authors_code():
    torch.manual_seed(0)
    pool = NetVLAD(256, clusters=64, batch_norm=False)
    for parameter in (pool.assignment.weight, pool.centres):
        assert parameter.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert pool.assignment.bias.std().item() == pytest.approx(1 / 16, rel=0.3)


def test_parameters_with_the_projection_are_those_of_the_nextvlad_papers_table():
    # N · K · (H + 2), arXiv 1811.05014, section 3.1; the paper counts no bias.
    with torch.device("meta"):
        pool = NetVLAD(1024, clusters=128, batch_norm=False)
        projection = Projection(pool.out_dim, width=2048, bias=False)
    counted = sum(p.numel() for part in (pool, projection) for p in part.parameters())
    assert counted - 128 == 268_697_600
