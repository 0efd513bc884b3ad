from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tagreel.pools.non_local_netrvlad import NonLocalNetRVLAD


def _naive(pool, videos):
    """Clusters of each video one number at a time, then pairs of clusters, then the two normalisations."""
    block, norm = pool.non_local, pool.assignment.norm
    D, K = pool.assignment.weight.shape
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    logits = torch.cat(videos) @ pool.assignment.weight
    logits = F.batch_norm(logits, mean, var, norm.weight, norm.bias, norm.training, eps=1e-3)
    values = block.phi + 0 * block.g if block.reuse_phi else block.g
    rows, at = [], 0
    for video in videos:
        V = [torch.zeros(D, dtype=torch.float64) for _ in range(K)]
        for frame in video:
            raised = [torch.exp(logit) for logit in logits[at]]
            at += 1
            for k in range(K):
                V[k] = V[k] + raised[k] / sum(raised) * frame
        looked = []
        for k in range(K):
            raised = [
                torch.exp(block.scale * ((V[k] @ block.theta) * (V[j] @ block.phi)).sum()) for j in range(K)
            ]
            y = sum(raised[j] / sum(raised) * (V[j] @ values) for j in range(K))
            looked.append(V[k] + y @ block.out)
        lengths = [torch.sqrt((v**2).sum()) for v in looked]
        flat = torch.stack([looked[k][d] / lengths[k] for d in range(D) for k in range(K)])
        rows.append(flat / torch.sqrt((flat**2).sum()))
    return torch.stack(rows)


def test_follows_the_equation(assert_follows):
    torch.manual_seed(0)
    assert_follows(NonLocalNetRVLAD(5, clusters=3, inner=4), _naive, 5)


@pytest.mark.parametrize("scale", [None, 1.0])
def test_with_phi_in_the_place_of_g_it_is_the_authors_code(scale):
    torch.manual_seed(0)
    pool = NonLocalNetRVLAD(5, clusters=3, inner=2, scale=scale, reuse_phi=True).double()
    frames = torch.randn(2, 6, 5, dtype=torch.float64)
    expected = _naive(pool, list(frames))
    torch.testing.assert_close(pool(frames), expected)
    pool.non_local.reuse_phi = False
    assert not torch.allclose(pool(frames), expected)


def test_parameters_of_the_second_submodel():
    with torch.device("meta"):
        pool = NonLocalNetRVLAD(1024, clusters=64, inner=512, reuse_phi=True)
    # assignment and its batch norm; θ, φ, the unused g, and W
    assert sum(p.numel() for p in pool.parameters()) == 1024 * 64 + 2 * 64 + 4 * 1024 * 512
