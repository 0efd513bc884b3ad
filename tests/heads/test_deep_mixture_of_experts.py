from __future__ import annotations

import pytest
import torch

from tagreel.heads.deep_mixture_of_experts import DeepMixtureOfExperts


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_experts_read_the_top_layer_and_gates_the_descriptor(assert_follows, naive, depth):
    def reference(head, rows):
        hidden = rows
        for layer in head.trunk.layers:
            hidden = naive.perceptron(layer, hidden)
        return naive.mixed(head.mixture, rows, hidden)

    torch.manual_seed(0)
    head = DeepMixtureOfExperts(4, 3, experts=2, hidden=6, depth=depth, dropout=0.0)
    assert len(head.trunk.layers) == depth
    assert_follows(head, reference, torch.randn(7, 4))


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_the_activation_is_the_one_that_was_asked_for(activation):
    torch.manual_seed(0)
    x = torch.randn(7, 4)
    head = DeepMixtureOfExperts(4, 3, hidden=6, depth=1, activation=activation).eval()
    function = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh}[activation]
    (layer,) = head.trunk.layers
    expected = head.mixture(x, layer.norm(function(layer.linear(x))))
    torch.testing.assert_close(head(x), expected)


def test_a_fifth_of_the_hidden_numbers_is_dropped_in_training_and_none_later():
    torch.manual_seed(0)
    head, x = DeepMixtureOfExperts(4, 3, hidden=2000), torch.randn(8, 4)
    for hidden in head.trunk(x):
        assert (hidden == 0).float().mean().item() == pytest.approx(0.2, abs=0.02)
    head.eval()
    assert torch.equal(head(x), head(x))


def test_has_the_parameters_of_as_many_residual_experts():
    with torch.device("meta"):
        head = DeepMixtureOfExperts(1152, 4716, experts=8)
    assert sum(p.numel() for p in head.parameters()) == 219_554_656


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, r"hidden layers are \(\) wide; expected one layer or more"),
        ({"hidden": 0}, r"hidden layers are \(0, 0\) wide.*each at least 1"),
        ({"activation": "relu6"}, "activation='relu6'; expected one of relu, gelu, tanh"),
        ({"dropout": 1.0}, r"dropout=1\.0; expected 0 to less than 1"),
    ],
)
def test_what_it_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        DeepMixtureOfExperts(4, 3, **options)
