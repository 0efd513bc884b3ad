from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tagreel.layers.product import product
from tagreel.layers.projection import Projection
from tagreel.pools import nextvlad
from tagreel.pools.nextvlad import NeXtVLAD


def _naive(pool, videos):
    """Equations 4 to 8, one frame, group, cluster and feature at a time."""
    G, K, J = pool.groups, pool.clusters, pool.expand.out_features // pool.groups
    real = torch.cat(videos) @ pool.expand.weight.T + pool.expand.bias
    mean, var = pool.norm.running_mean.clone(), pool.norm.running_var.clone()
    logits = F.batch_norm(
        real @ pool.assignment, mean, var, pool.norm.weight, pool.norm.bias, pool.training, eps=1e-3
    )
    rows, at = [], 0
    for video in videos:
        V = [[torch.zeros((), dtype=torch.float64) for _ in range(K)] for _ in range(J)]
        for _ in video:
            expanded, scores = real[at], logits[at]
            at += 1
            for g in range(G):
                score = sum(pool.attention.weight[g, i] * expanded[i] for i in range(G * J))
                attention = 1 / (1 + torch.exp(-(score + pool.attention.bias[g])))
                raised = [torch.exp(scores[g * K + k]) for k in range(K)]
                for k in range(K):
                    assigned = attention * raised[k] / sum(raised)
                    for j in range(J):
                        V[j][k] = V[j][k] + assigned * (expanded[g * J + j] - pool.centres[j, k])
        lengths = [torch.sqrt(sum(V[j][k] ** 2 for j in range(J))) for k in range(K)]
        rows.append(torch.stack([V[j][k] / lengths[k] for j in range(J) for k in range(K)]))
    norm = pool.out_norm
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    return F.batch_norm(torch.stack(rows), mean, var, norm.weight, norm.bias, pool.training, eps=1e-3)


def test_follows_the_equations(assert_follows):
    torch.manual_seed(0)
    assert_follows(NeXtVLAD(6, clusters=5, groups=4, expansion=2), _naive, 6)


def test_an_expansion_of_three_and_odd_groups(assert_follows):
    torch.manual_seed(0)
    assert_follows(NeXtVLAD(5, clusters=2, groups=3, expansion=3), _naive, 5)


@pytest.mark.parametrize(
    ("dim", "clusters", "groups", "expected"),
    [(1024, 128, 8, 4_313_096), (128, 64, 4, 112_388)],
)
def test_parameters_are_those_of_the_authors_code(dim, clusters, groups, expected):
    with torch.device("meta"):
        pool = NeXtVLAD(dim, clusters=clusters, groups=groups)
    e = 2 * dim
    d = e // groups
    formula = (
        dim * e + e + e * groups + groups  # expansion and attention, each with its bias
        + e * groups * clusters + 2 * groups * clusters  # cluster logits and their batch norm
        + d * clusters + 2 * d * clusters  # centres, and the batch norm of the descriptor
    )  # fmt: skip
    assert sum(p.numel() for p in pool.parameters()) == formula == expected


@pytest.mark.parametrize(("groups", "expected"), [(8, 71_352_320), (16, 39_895_040), (32, 27_336_704)])
def test_weights_with_the_projection_are_those_of_equation_9(groups, expected):
    # λN(N + G + K(G + (H + 1)/G)), which counts neither biases nor batch norm.
    with torch.device("meta"):
        pool = NeXtVLAD(1024, clusters=128, groups=groups)
        projection = Projection(pool.out_dim, width=2048, bias=False)
    weights = (pool.expand.weight, pool.attention.weight, pool.assignment, pool.centres)
    assert sum(w.numel() for w in (*weights, projection.linear.weight)) == expected


def test_weights_start_as_in_the_authors_code():
    torch.manual_seed(0)
    pool = NeXtVLAD(128, clusters=32, groups=4)
    for weight, fan_in in (
        (pool.expand.weight, 128),
        (pool.attention.weight, 256),
        (pool.assignment, 256),
        (pool.centres, 64),
    ):
        assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert weight.abs().max().item() <= 2 * (2.6 / fan_in) ** 0.5 * 1.0001
    assert not pool.expand.bias.any()
    assert not pool.attention.bias.any()


def test_a_width_that_the_groups_do_not_divide_is_named():
    with pytest.raises(ValueError, match=r"expansion · dim = 10 is not a multiple of groups=4"):
        NeXtVLAD(5, groups=4)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_with_many_frames_the_weights_are_multiplied_first_and_nothing_changes(monkeypatch, training):
    torch.manual_seed(0)
    pool = NeXtVLAD(8, clusters=5, groups=2, expansion=3).train(training)
    pool.expand.bias.data.normal_()
    pool.norm.running_mean.normal_()
    frames = torch.randn(3, 20, 8)

    def run():
        pool.zero_grad()
        out = pool(frames)
        (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
        return [out.detach(), *(parameter.grad for parameter in pool.parameters())]

    products = []

    def seen(x, weight, bias=None):
        products.append((len(x.flatten(0, -2)), *weight.shape))
        return product(x, weight, bias)

    monkeypatch.setattr(nextvlad, "product", seen)
    folded = run()
    assert (60, 8, 10) in products  # frames by folded weights
    assert (60, 24, 10) not in products  # expanded frames by the weights themselves
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    plain = run()
    assert (60, 24, 10) in products
    for ours, theirs in zip(folded, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
