from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tagreel.pools.gated_bag_of_words import GatedBagOfWords


def _shares(assignment, videos):
    """Soft assignments (F, K) of every video; all real frames share the statistics."""
    norm, logits = assignment.norm, torch.cat(videos) @ assignment.weight
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    logits = F.batch_norm(logits, mean, var, norm.weight, norm.bias, norm.training, eps=1e-3)
    raised = torch.exp(logits)
    return (raised / raised.sum(1, keepdim=True)).split([len(video) for video in videos])


def _naive(pool, videos):
    """The equations, one number at a time."""
    K, D = pool.squeeze.shape
    sums, gates = [], []
    for shares in _shares(pool.assignment, videos):
        sums.append([sum(assigned[k] for assigned in shares) for k in range(K)])
        strongest = [max(assigned[k] for assigned in shares) for k in range(K)]
        length = torch.sqrt(sum(share**2 for share in strongest))
        squeezed = [sum(strongest[k] / length * pool.squeeze[k, d] for k in range(K)) for d in range(D)]
        gates.append(torch.stack([sum(squeezed[d] * pool.excite[d, k] for d in range(D)) for k in range(K)]))
    norm = pool.gate_norm
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    gates = F.batch_norm(torch.stack(gates), mean, var, norm.weight, norm.bias, norm.training, eps=1e-3)
    rows = []
    for b in range(len(videos)):
        words = torch.stack([sums[b][k] / (1 + torch.exp(-gates[b, k])) for k in range(K)])
        rows.append(words / torch.sqrt((words**2).sum()))
    return torch.stack(rows)


def test_follows_the_equations(assert_follows):
    torch.manual_seed(0)
    assert_follows(GatedBagOfWords(5, clusters=4), _naive, 5)


def test_weights_start_as_in_the_authors_code():
    torch.manual_seed(0)
    pool = GatedBagOfWords(256, clusters=64)
    for weight in (pool.assignment.weight, pool.squeeze, pool.excite):
        assert weight.std().item() == pytest.approx(1 / 16, rel=0.05)
