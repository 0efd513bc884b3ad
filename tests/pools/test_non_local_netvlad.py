from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tagreel.pools.non_local_netvlad import NonLocalNetVLAD


def _naive(pool, videos):
    """Clusters of each video one number at a time, then pairs of clusters, then the two normalisations."""
    D, K = pool.centres.shape
    norm, block = pool.assignment.norm, pool.non_local
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    logits = torch.cat(videos) @ pool.assignment.weight
    logits = F.batch_norm(logits, mean, var, norm.weight, norm.bias, norm.training, eps=1e-3)
    rows, at = [], 0
    for video in videos:
        V = [torch.zeros(D, dtype=torch.float64) for _ in range(K)]
        for frame in video:
            raised = [torch.exp(logit) for logit in logits[at]]
            at += 1
            for k in range(K):
                V[k] = V[k] + raised[k] / sum(raised) * (frame - pool.centres[:, k])
        looked = []
        for k in range(K):
            raised = [
                torch.exp(block.scale * ((V[k] @ block.theta) * (V[j] @ block.phi)).sum()) for j in range(K)
            ]
            y = sum(raised[j] / sum(raised) * (V[j] @ block.g) for j in range(K))
            looked.append(V[k] + y @ block.out)
        lengths = [torch.sqrt((v**2).sum()) for v in looked]
        flat = torch.stack([looked[k][d] / lengths[k] for d in range(D) for k in range(K)])
        rows.append(flat / torch.sqrt((flat**2).sum()))
    return torch.stack(rows)


def test_follows_the_equation(assert_follows):
    torch.manual_seed(0)
    assert_follows(NonLocalNetVLAD(5, clusters=3, inner=4), _naive, 5)


def test_the_scale_of_the_attention_is_passed_on(assert_follows):
    torch.manual_seed(0)
    assert_follows(NonLocalNetVLAD(5, clusters=3, inner=2, scale=1.0), _naive, 5)


def test_every_cluster_weighs_the_same_in_a_descriptor_of_length_one():
    torch.manual_seed(0)
    descriptor = NonLocalNetVLAD(5, clusters=3)(torch.randn(4, 9, 5)).view(4, 5, 3)
    torch.testing.assert_close(descriptor.norm(dim=1), torch.full((4, 3), 1 / math.sqrt(3)))


def test_a_video_without_frames_gives_zeros():
    pooled = NonLocalNetVLAD(5, clusters=3).eval()(torch.randn(1, 2, 5), torch.zeros(1, 2, dtype=torch.bool))
    assert torch.equal(pooled, torch.zeros(1, 15))


def test_parameters_of_the_first_submodel():
    with torch.device("meta"):
        pool = NonLocalNetVLAD(1024, clusters=64, inner=64)
    # assignment, its batch norm, centres; θ, φ, g and W
    assert sum(p.numel() for p in pool.parameters()) == 1024 * 64 + 2 * 64 + 1024 * 64 + 4 * 1024 * 64
