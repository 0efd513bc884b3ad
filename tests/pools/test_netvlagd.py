from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tagreel.pools.netvlagd import NetVLAGD


def _shares(assignment, videos):
    """Soft assignments (F, K) of every video; all real frames share the statistics."""
    norm, logits = assignment.norm, torch.cat(videos) @ assignment.weight
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    logits = F.batch_norm(logits, mean, var, norm.weight, norm.bias, norm.training, eps=1e-3)
    raised = torch.exp(logits)
    return (raised / raised.sum(1, keepdim=True)).split([len(video) for video in videos])


def _naive(pool, videos):
    """The equation and the two normalisations, one number at a time."""
    D, K = pool.gates.shape
    rows = []
    for video, shares in zip(videos, _shares(pool.assignment, videos), strict=True):
        V = [[torch.zeros((), dtype=torch.float64) for _ in range(K)] for _ in range(D)]
        for frame, assigned in zip(video, shares, strict=True):
            for d in range(D):
                for k in range(K):
                    V[d][k] = V[d][k] + assigned[k] * frame[d] / (1 + torch.exp(-pool.gates[d, k]))
        lengths = [torch.sqrt(sum(V[d][k] ** 2 for d in range(D))) for k in range(K)]
        flat = torch.stack([V[d][k] / lengths[k] for d in range(D) for k in range(K)])
        rows.append(flat / torch.sqrt((flat**2).sum()))
    return torch.stack(rows)


def test_follows_the_equation(assert_follows):
    torch.manual_seed(0)
    assert_follows(NetVLAGD(5, clusters=3), _naive, 5)


def test_gates_start_as_in_the_authors_code():
    torch.manual_seed(0)
    assert NetVLAGD(256, clusters=64).gates.std().item() == pytest.approx(1 / 16, rel=0.05)
