from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tagreel.pools.netrvlad import NetRVLAD
from tagreel.pools.netvlad import NetVLAD


def _shares(assignment, videos):
    """Soft assignments (F, K) of every video; all real frames share the statistics."""
    norm, logits = assignment.norm, torch.cat(videos) @ assignment.weight
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    logits = F.batch_norm(logits, mean, var, norm.weight, norm.bias, norm.training, eps=1e-3)
    raised = torch.exp(logits)
    return (raised / raised.sum(1, keepdim=True)).split([len(video) for video in videos])


def _naive(pool, videos):
    """The equation and the two normalisations, one number at a time."""
    D, K = pool.assignment.weight.shape
    rows = []
    for video, shares in zip(videos, _shares(pool.assignment, videos), strict=True):
        V = [[torch.zeros((), dtype=torch.float64) for _ in range(K)] for _ in range(D)]
        for frame, assigned in zip(video, shares, strict=True):
            for d in range(D):
                for k in range(K):
                    V[d][k] = V[d][k] + assigned[k] * frame[d]
        lengths = [torch.sqrt(sum(V[d][k] ** 2 for d in range(D))) for k in range(K)]
        flat = torch.stack([V[d][k] / lengths[k] for d in range(D) for k in range(K)])
        rows.append(flat / torch.sqrt((flat**2).sum()))
    return torch.stack(rows)


def test_follows_the_equation(assert_follows):
    torch.manual_seed(0)
    assert_follows(NetRVLAD(5, clusters=3), _naive, 5)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_is_netvlad_with_centres_at_zero(batch_norm):
    torch.manual_seed(0)
    pool, vlad = (kind(5, clusters=3, batch_norm=batch_norm) for kind in (NetRVLAD, NetVLAD))
    with torch.no_grad():
        vlad.assignment.load_state_dict(pool.assignment.state_dict())
        vlad.centres.zero_()
    frames, mask = torch.randn(4, 6, 5), torch.arange(6) < torch.tensor([6, 3, 1, 4])[:, None]
    torch.testing.assert_close(pool(frames, mask), vlad(frames, mask))


def test_every_cluster_weighs_the_same_in_a_descriptor_of_length_one():
    torch.manual_seed(0)
    descriptor = NetRVLAD(5, clusters=3)(torch.randn(4, 9, 5)).view(4, 5, 3)
    torch.testing.assert_close(descriptor.norm(dim=1), torch.full((4, 3), 1 / math.sqrt(3)))
