from __future__ import annotations

import pytest
import torch

from tagreel.layers.latent_concepts import LatentConcepts


def _linear(linear, rows):
    B, J, D = len(rows), *linear.weight.shape
    out = [sum(linear.weight[j, d] * rows[b, d] for d in range(D)) for b in range(B) for j in range(J)]
    return torch.stack(out).view(B, J) + linear.bias


@pytest.mark.parametrize("output", ["full", "classwise"])
@pytest.mark.parametrize("aggregate", ["add", "max", "append"])
def test_follows_the_equations(assert_follows, naive_batch_norm, aggregate, output):
    def naive(layer, logits):
        y = 1 / (1 + torch.exp(-logits))
        concepts = naive_batch_norm(layer.mine_norm, _linear(layer.mine, y)).clamp_min(0)
        u = naive_batch_norm(layer.spread_norm, _linear(layer.spread, concepts))
        kept = y if output == "full" else logits
        if aggregate == "append":
            met = torch.cat([u, kept], dim=1)
        else:
            met = torch.stack(
                [
                    torch.stack(
                        [one + other if aggregate == "add" else max(one, other) for one, other in pair]
                    )
                    for pair in map(zip, u, kept)
                ]
            )
        if output == "full":
            return _linear(layer.output, met)
        C, weight = logits.shape[1], layer.output.weight
        parts = [met[:, part * C : (part + 1) * C] * weight[part] for part in range(len(weight))]
        return sum(parts) + layer.output.bias

    torch.manual_seed(0)
    layer = LatentConcepts(4, concepts=6, aggregate=aggregate, output=output, dropout=0.0)
    if output == "classwise":
        torch.nn.init.uniform_(layer.output.weight, 0.2, 0.8)
        torch.nn.init.uniform_(layer.spread_norm.weight, 0.5, 1.5)
    assert_follows(layer, naive, 2 * torch.randn(7, 4))


@pytest.mark.parametrize("aggregate", ["add", "append"])
def test_classwise_it_begins_as_what_was_there_before(aggregate):
    logits = 3 * torch.randn(7, 4)
    assert torch.equal(LatentConcepts(4, aggregate=aggregate, output="classwise")(logits), logits)


def test_the_input_is_dropped_in_training_alone():
    torch.manual_seed(0)
    layer, y = LatentConcepts(500, concepts=3, dropout=0.5), torch.randn(4, 500)
    seen = []
    layer.mine.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer(y)
    layer.eval()(y)
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(seen[1], y.sigmoid())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 60_905_280),
        ({"aggregate": "max"}, 60_905_280),
        ({"aggregate": "append"}, 60_905_280 + 4716**2),
        ({"output": "classwise"}, 60_905_280 - 4716**2 + 4716),
    ],
)
def test_parameters_at_4716_classes(options, expected):
    with torch.device("meta"):
        layer = LatentConcepts(4716, **options)
    assert sum(p.numel() for p in layer.parameters()) == expected


def test_halves_and_very_sure_logits_are_welcome():
    torch.manual_seed(0)
    layer, logits = LatentConcepts(5, concepts=6), 1e4 * torch.randn(8, 5)
    assert layer(logits).isfinite().all()
    assert layer.to(torch.bfloat16)(logits).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(logits).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregate": "mean"}, "aggregate='mean'; expected add, max or append"),
        ({"output": "none"}, "output='none'; expected full or classwise"),
        ({"concepts": 0}, "concepts=0, dropout"),
        ({"dropout": 1.0}, r"dropout=1\.0; expected"),
    ],
)
def test_what_it_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        LatentConcepts(4, **options)
