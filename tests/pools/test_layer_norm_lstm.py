from __future__ import annotations

import pytest
import torch

from tagreel.pools.layer_norm_lstm import LayerNormLSTM


def normalized(values, weight, bias):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return (values - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def read(cell, frames):
    """The h of each frame, and the last c."""
    H = cell.units
    c = h = torch.zeros(H, dtype=torch.float64)
    outputs = []
    for x in frames:
        gates = []
        for gate in range(4):
            rows = cell.kernel[gate * H : (gate + 1) * H] @ torch.cat([x, h])
            gates.append(normalized(rows, cell.gate_weight[gate], cell.gate_bias[gate]))
        i, f, j, o = gates
        c = c / (1 + torch.exp(-f)) + torch.tanh(j) / (1 + torch.exp(-i))
        c = normalized(c, cell.memory_weight, cell.memory_bias)
        h = torch.tanh(c) / (1 + torch.exp(-o))
        outputs.append(h)
    return outputs, c


def _naive(pool, videos):
    rows = []
    for video in videos:
        frames = list(video)
        for layer in pool.layers:
            forwards, c = read(layer.cells[0], frames)
            backwards, last_c = read(layer.cells[1], frames[::-1])
            states = [c, last_c, forwards[-1], backwards[-1]]
            frames = [torch.cat(pair) for pair in zip(forwards, backwards[::-1], strict=True)]
        rows.append(torch.cat(states))
    return torch.stack(rows)


def test_follows_the_equations(assert_follows):
    torch.manual_seed(0)
    pool = LayerNormLSTM(5, units=(4,), bidirectional=True, readout="states")
    with torch.no_grad():
        for cell in pool.layers[0].cells:
            cell.gate_weight.uniform_(0.5, 2.0)
            cell.memory_weight.uniform_(0.5, 2.0)
    assert_follows(pool, _naive, 5)


def test_layers_lie_on_top_of_each_other(assert_follows):
    torch.manual_seed(0)
    pool = LayerNormLSTM(5, units=(3, 4), bidirectional=True)
    assert_follows(pool, lambda pool, videos: _naive(pool, videos)[:, 8:], 5)


@pytest.mark.parametrize(
    ("units", "bidirectional"), [((1024, 768), True), ((1024, 1024), False)], ids=["paper", "one way"]
)
def test_parameters_are_those_of_tensorflow(units, bidirectional):
    with torch.device("meta"):
        pool = LayerNormLSTM(1152, units=units, bidirectional=bidirectional)
    formula, dim = 0, 1152
    for h in units:
        formula += (1 + bidirectional) * (4 * h * (dim + h) + 10 * h)
        dim = (1 + bidirectional) * h
    assert sum(p.numel() for p in pool.parameters()) == formula


def test_the_forget_gate_starts_open():
    pool = LayerNormLSTM(5, units=(3,))
    i, f, j, o = pool.layers[0].cells[0].gate_bias
    assert (f == 1).all()
    assert not torch.cat([i, j, o]).any()
