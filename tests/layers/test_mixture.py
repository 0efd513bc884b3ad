from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from tagreel.heads.chained_experts import ChainedExperts
from tagreel.layers.mixture import Mixture
from tagreel.loader import Loader
from tagreel.tagger import build, count_parameters


def _inputs(branches=3):
    torch.manual_seed(1)
    return torch.randn(4, 6), [torch.randn(4, 5, requires_grad=True) for _ in range(branches)]


def test_the_gate_weighs_the_branches():
    torch.manual_seed(0)
    mixture = Mixture(6).eval()
    mean, logits = _inputs()
    with torch.no_grad():
        mixture.norm.running_mean.normal_()
        mixture.gate.bias.normal_()
    found = mixture(mean, logits)
    for b in range(4):
        normed = (mean[b] - mixture.norm.running_mean) / torch.sqrt(mixture.norm.running_var + 1e-3)
        scores = [mixture.gate.weight[m] @ normed + mixture.gate.bias[m] for m in range(3)]
        total = sum(torch.exp(score) for score in scores)
        expected = sum(torch.exp(scores[m]) / total * logits[m][b] for m in range(3))
        torch.testing.assert_close(found[b], expected)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_the_loss_is_that_of_the_equations(temperature):
    torch.manual_seed(0)
    mixture = Mixture(6, temperature=temperature).train()
    mean, logits = _inputs()
    mixed = mixture(mean, logits)

    def loss_of(z):
        return z.square().sum() / len(z)

    expected = loss_of(mixed)
    for branch in logits:
        expected = expected + loss_of(branch)
        if temperature:
            for b in range(4):
                p = torch.exp(mixed[b] / temperature) / torch.exp(mixed[b] / temperature).sum()
                q = torch.exp(branch[b] / temperature) / torch.exp(branch[b] / temperature).sum()
                expected = expected + temperature**2 * (p * torch.log(p / q)).sum() / 4
    found = mixture.total_loss(loss_of(mixed), [loss_of] * 3)
    torch.testing.assert_close(found, expected)
    sources = [*logits, mixture.gate.weight]  # no gradient is stopped, the gate learns from the teacher too
    ours = torch.autograd.grad(found, sources, retain_graph=True)
    for mine, theirs in zip(ours, torch.autograd.grad(expected, sources), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_tagger_of_branches_is_the_gated_sum_of_its_networks(tiny, training_data):
    torch.manual_seed(0)
    model = build(replace(tiny, mixture=partial(Mixture, branches=2))).eval()
    alone = build(tiny).eval()
    batch = Loader(training_data, features=model.features, classes=120, batch_size=4).batch(0, 0)
    logits = []
    for branch in model.branches:
        alone.load_state_dict(branch.state_dict())
        logits.append(alone.logits(batch))
    frames = {name: x.float() * 4 / 255 + 4 / 512 - 2 for name, x in batch.streams.items()}
    means = [
        torch.stack([x[b, :n].mean(0) for b, n in enumerate(batch.num_frames[name])])
        for name, x in frames.items()
    ]
    expected = model.mixture(torch.cat(means, dim=1), logits)
    torch.testing.assert_close(model.logits(batch), expected, rtol=1e-4, atol=1e-5)


def test_parameters_are_those_of_the_branches_and_the_gate(tiny):
    one = count_parameters(tiny)
    assert count_parameters(replace(tiny, mixture=partial(Mixture))) == 3 * one + 2 * 18 + 18 * 3 + 3


def test_a_branch_brings_the_losses_of_its_own_head(tiny, training_data):
    """Each branch's loss is what it would be alone, its supports included; the mixture's own has none."""
    torch.manual_seed(0)
    recipe = replace(tiny, head=partial(ChainedExperts, links=2, width=4, support=0.3))
    model = build(replace(recipe, mixture=partial(Mixture, branches=2, temperature=0.0)))
    alone = build(recipe)
    batch = Loader(training_data, features=model.features, classes=120, batch_size=4).batch(0, 0)
    expected, loss_of = torch.zeros(()), torch.Tensor.square
    logits = model.logits(batch)
    found = model.with_further_losses(loss_of(logits).sum(), lambda z: loss_of(z).sum())
    for branch in model.branches:
        alone.load_state_dict(branch.state_dict())
        own = alone.logits(batch)
        supports = list(alone.head._supports)
        assert len(supports) == 2
        expected = expected + 0.7 * loss_of(own).sum() + 0.3 * sum(loss_of(z).sum() for z in supports)
    torch.testing.assert_close(found, expected + loss_of(logits).sum())


@pytest.mark.parametrize("gate", ["frames", "padded", "features"])
def test_the_gate_reads_what_it_is_told_to(gate, tiny, training_data):
    torch.manual_seed(0)
    model = build(replace(tiny, mixture=partial(Mixture, branches=2, gate=gate)))
    batch = Loader(training_data, features=model.features, classes=120, batch_size=4).batch(0, 0)
    lengths = batch.num_frames["rgb"].tolist()
    assert len(set(lengths)) > 1
    rows = []
    for b, n in enumerate(lengths):
        frames = [
            [float(q) * 4 / 255 + 4 / 512 - 2 for name in ("rgb", "audio") for q in batch.streams[name][b, t]]
            for t in range(n)
        ]
        if gate == "features":
            rows.append([sum(frame) / 18 for frame in frames] + [0.0] * (300 - n))
        else:
            divisor = n if gate == "frames" else 300
            rows.append([sum(column) / divisor for column in zip(*frames, strict=True)])
    seen = torch.tensor(rows)
    assert seen.shape == (4, model.mixture.gate.in_features)
    model.eval()
    model.mixture.norm.running_mean.normal_()
    frames = model.frames(batch.streams, batch.masks())
    logits = [network.classify(network.pool(frames, batch.masks())) for network in model.networks]
    normed = (seen - model.mixture.norm.running_mean) / (1 + 1e-3) ** 0.5
    share = (normed @ model.mixture.gate.weight.T).softmax(-1)
    expected = share[:, :1] * logits[0] + share[:, 1:] * logits[1]
    torch.testing.assert_close(model.logits(batch), expected, rtol=1e-4, atol=1e-5)


def test_a_longer_video_is_cut_where_the_authors_cut_it(tiny):
    frames = {"rgb": torch.arange(310.0)[None, :, None].expand(1, 310, 2)}
    masks = {"rgb": torch.ones(1, 310, dtype=torch.bool)}
    assert torch.equal(Mixture(2, gate="features").look(frames, masks)[0], torch.arange(300.0))
    assert torch.equal(Mixture(2, gate="padded").look(frames, masks)[0], torch.full((2,), 149.5))
    assert torch.equal(Mixture(2).look(frames, masks)[0], torch.full((2,), 154.5))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"branches": 1}, "2 or more branches"),
        ({"temperature": -1.0}, "2 or more branches"),
        ({"gate": "rows"}, "frames, padded or features"),
    ],
)
def test_what_cannot_be_is_refused(options, expected):
    with pytest.raises(ValueError, match=f"expected {expected}"):
        Mixture(6, **options)
