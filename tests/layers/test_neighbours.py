from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tagreel.layers import neighbours as module
from tagreel.layers.neighbours import Neighbours

N, D, C = 23, 6, 5
LABELS = [[0], [1, 4], [], [2, 3, 4], [0, 2]]


def memory(videos: int = N, **options) -> tuple[Neighbours, torch.Tensor, list[list[int]]]:
    """A filled memory, what it was filled with, and the labels of each video."""
    torch.manual_seed(0)
    hidden = torch.randn(videos, D) + 3.0
    labels = [LABELS[i % len(LABELS)] for i in range(videos)]
    layer = Neighbours(D, C, videos=videos, labels=sum(map(len, labels)), **options)
    flat = torch.tensor([label for row in labels for label in row], dtype=torch.int64)
    layer.remember(hidden, flat, torch.tensor(list(map(len, labels))))
    return layer, hidden, labels


def naive_votes(query, keys, mean, labels, *, neighbours, sharpness):
    """Of one video, from the equation; `query` and `mean` (D,), `keys` (N, D) as stored."""
    q = [float(a) - float(m) for a, m in zip(query, mean, strict=True)]
    length = math.sqrt(sum(a * a for a in q))
    cosines = [sum(a / length * float(b) for a, b in zip(q, key, strict=True)) for key in keys]
    nearest = sorted(range(len(keys)), key=lambda i: -cosines[i])[:neighbours]
    weights = [math.exp(sharpness * cosines[i]) for i in nearest]
    votes = [0.0] * C
    for i, weight in zip(nearest, weights, strict=True):
        for label in labels[i]:
            votes[label] += weight / sum(weights)
    return votes


@pytest.mark.parametrize("at_once", [1, 4, 100])
@pytest.mark.parametrize("options", [{}, {"neighbours": 3}, {"sharpness": 2.0, "share": 0.2}])
def test_follows_the_equations(at_once, options, monkeypatch):
    monkeypatch.setattr(module, "_KEYS_AT_ONCE", at_once)
    layer, _, labels = memory(**options)
    x, z = torch.randn(7, D) + 3.0, 3 * torch.randn(7, C)
    votes, mixed = layer.votes(x), torch.sigmoid(layer(x, z))
    for b in range(7):
        settings = {"neighbours": layer.neighbours, "sharpness": layer.sharpness}
        v = naive_votes(x[b], layer.keys.double(), layer.mean, labels, **settings)
        for c in range(C):
            p = 1 / (1 + math.exp(-z[b, c]))
            expected = p ** (1 - layer.share) * ((v[c] + 1e-4) / (1 + 1e-4)) ** layer.share
            assert votes[b, c].item() == pytest.approx(v[c], rel=1e-5, abs=1e-6)
            assert mixed[b, c].item() == pytest.approx(expected, rel=1e-5)


def test_keys_are_directions_from_the_mean_to_eight_bits():
    layer, hidden, _ = memory()
    torch.testing.assert_close(layer.mean, hidden.mean(0))
    exact = F.normalize(hidden - hidden.mean(0))
    assert layer.keys.dtype == torch.bfloat16
    torch.testing.assert_close(layer.keys.float(), exact, rtol=2**-8, atol=1e-6)
    cosines = F.normalize(torch.randn(50, D)) @ (layer.keys.float() - exact).T
    assert 0 < cosines.abs().max() < 2**-8


def test_a_video_finds_itself_and_its_labels():
    layer, hidden, labels = memory(neighbours=1)
    for row, own in zip(layer.votes(hidden), labels, strict=True):
        assert row.nonzero().flatten().tolist() == own
        assert all(row[own] == 1)


def test_with_no_share_or_no_videos_the_logits_stay():
    x, z = torch.randn(7, D), 3 * torch.randn(7, C)
    assert torch.equal(Neighbours(D, C)(x, z), z)
    torch.testing.assert_close(memory(share=0.0)[0](x, z), z)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("extreme", [0.0, 80.0, 1e4, 1e38, -80.0, -1e4, -1e38])
def test_logits_are_finite_however_sure_the_classifier_is(share, extreme):
    layer, hidden, _ = memory(neighbours=1, share=share)  # votes of 0 and of 1
    x = torch.cat([hidden, layer.mean[None], hidden[:1] * 1e30])
    z = torch.full((len(x), C), extreme)
    found = layer(x, z)
    assert found.isfinite().all()
    if not share and abs(extreme) <= 80:
        torch.testing.assert_close(found, z)


def test_logits_of_half_the_bits_are_mixed_in_float32():
    layer, hidden, _ = memory()
    half = (8 * torch.randn(N, C)).half()
    assert torch.equal(layer(hidden, half), layer(hidden, half.float()))


def test_the_gradient_reaches_what_the_classifier_reads():
    layer, _, _ = memory()
    x, z = torch.randn(4, D, requires_grad=True), torch.randn(4, C, requires_grad=True)
    layer(x, z).sum().backward()
    for grad in (x.grad, z.grad):
        assert grad.isfinite().all()
        assert (grad != 0).any(1).all()


def test_a_memory_is_restored_by_its_sizes_and_its_tensors():
    layer, _, labels = memory()
    again = Neighbours(D, C, videos=N, labels=sum(map(len, labels)))
    again.load_state_dict(layer.state_dict())
    x, z = torch.randn(7, D), torch.randn(7, C)
    assert torch.equal(again(x, z), layer(x, z))
    assert not list(layer.parameters())


@pytest.mark.parametrize(
    "options",
    [{"neighbours": 0}, {"sharpness": 0.0}, {"sharpness": math.inf}, {"share": -0.1}, {"share": 1.1}],
)
def test_refuses_what_is_out_of_range(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Neighbours(D, C, **options)
