from __future__ import annotations

import pytest
import torch

from tagreel.heads.mixture_of_residual_experts import MixtureOfResidualExperts


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("shortcut", ["hidden", "input"])
def test_experts_read_features_with_a_shortcut_and_gates_the_descriptor(
    assert_follows, naive, shortcut, blocks
):
    def reference(head, rows):
        h = rows
        if shortcut == "hidden":
            (layer,) = head.enter.layers
            h = naive.perceptron(layer, rows)
        for block in head.blocks:
            inner = h
            for layer in block.layers:
                inner = naive.perceptron(layer, inner)
            h = h + inner
        return naive.mixed(head.mixture, rows, h)

    torch.manual_seed(0)
    head = MixtureOfResidualExperts(4, 3, experts=2, hidden=6, blocks=blocks, shortcut=shortcut, dropout=0.0)
    assert [len(block.layers) for block in head.blocks] == [1 if shortcut == "hidden" else 2] * blocks
    assert_follows(head, reference, torch.randn(7, 4))


@pytest.mark.parametrize(
    ("experts", "expected"),
    [(8, 219_554_656), (16, 417_588_928), (24, 615_623_200), (28, 714_640_336), (30, 764_148_904)],
)
def test_parameters_of_the_papers_models(experts, expected):
    with torch.device("meta"):
        head = MixtureOfResidualExperts(1152, 4716, experts=experts)
    assert sum(p.numel() for p in head.parameters()) == expected


@pytest.mark.parametrize("experts", [1, 8])
def test_parameters_of_the_other_reading(experts):
    D, C, H = 1152, 4716, 4096
    with torch.device("meta"):
        head = MixtureOfResidualExperts(D, C, experts=experts, shortcut="input")
    trunk = D * H + H + 2 * H + H * D + D + 2 * D
    assert sum(p.numel() for p in head.parameters()) == trunk + (2 * D + 1) * C * experts


@pytest.mark.parametrize("options", [{"blocks": 0}, {"shortcut": "both"}])
def test_what_it_cannot_be_is_named(options):
    with pytest.raises(ValueError, match=r"blocks=\d, shortcut='\w+'; expected at least 1, hidden or input"):
        MixtureOfResidualExperts(4, 3, **options)
