from __future__ import annotations

import copy

import pytest
import torch

from tagreel.pools.lstm import LSTM


def _gate(cell, x, h, gate):
    """W [x, h] + b, the rows of one of the gates i, f, j, o."""
    H, at = cell.units, "ifjo".index(gate) * cell.units
    return cell.kernel[at : at + H] @ torch.cat([x, h]) + cell.bias[at : at + H]


def _read(cell, frames):
    """The h of each frame, and the last c."""
    c = h = torch.zeros(cell.units, dtype=torch.float64)
    outputs = []
    for x in frames:
        i, f, j, o = (_gate(cell, x, h, gate) for gate in "ifjo")
        c = c / (1 + torch.exp(-f)) + torch.tanh(j) / (1 + torch.exp(-i))
        h = torch.tanh(c) / (1 + torch.exp(-o))
        outputs.append(h)
    return outputs, c


def _naive(pool, videos):
    rows = []
    for video in videos:
        frames, states = list(video), []
        for layer in pool.layers:
            outputs, c = _read(layer.cells[0], frames)
            c, h = [c], [outputs[-1]]
            if len(layer.cells) == 2:
                backwards, last_c = _read(layer.cells[1], frames[::-1])
                c, h = [*c, last_c], [*h, backwards[-1]]
                pairs = zip(outputs, backwards[::-1], strict=True)
                outputs = [torch.cat(pair) for pair in pairs]
            states += [*c, *h]
            frames = outputs
        if pool.readout == "states":
            rows.append(torch.cat(states))
        elif pool.readout == "last":
            rows.append(torch.cat(h))
        else:
            taps = [-(-len(frames) * third // 3) - 1 for third in (1, 2, 3)]
            rows.append(sum(frames[tap] for tap in taps) / 3)
    return torch.stack(rows)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("readout", ["last", "states", "thirds"])
def test_follows_the_equations(assert_follows, bidirectional, readout):
    torch.manual_seed(0)
    pool = LSTM(5, units=(3, 4), bidirectional=bidirectional, readout=readout)
    assert_follows(pool, _naive, 5)


@pytest.mark.parametrize(
    ("dim", "units", "bidirectional", "expected"),
    [
        (1152, (1024, 1024), False, 17_309_696),
        (1152, (1024, 768), True, 35_141_632),
        (1152, (1024, 1024), True, 43_008_000),
    ],
)
def test_parameters_are_those_of_tensorflow(dim, units, bidirectional, expected):
    with torch.device("meta"):
        pool = LSTM(dim, units=units, bidirectional=bidirectional)
    formula = 0
    for h in units:
        formula += (1 + bidirectional) * 4 * h * (dim + h + 1)
        dim = (1 + bidirectional) * h
    assert sum(p.numel() for p in pool.parameters()) == formula == expected


def test_descriptors_are_as_wide_as_in_the_references():
    with torch.device("meta"):
        assert LSTM(1152).out_dim == 1024
        assert LSTM(1152, readout="states").out_dim == 4096
        assert LSTM(1152, units=(1024, 768), bidirectional=True).out_dim == 1536


def test_starts_as_in_tensorflow():
    torch.manual_seed(0)
    [cell] = LSTM(96, units=(64,)).layers[0].cells
    i, f, j, o = cell.bias.view(4, 64)
    assert (f == 1).all()
    assert not torch.cat([i, j, o]).any()
    bound = (6 / (96 + 64 + 4 * 64)) ** 0.5
    assert 0.99 * bound < cell.kernel.abs().max() <= bound
    assert cell.kernel.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_there_is_nothing_to_keep_but_the_parameters():
    pool = LSTM(5, units=(3,))
    assert set(pool.state_dict()) == {name for name, _ in pool.named_parameters()}
    moved = copy.deepcopy(pool).to(torch.float64)
    frames, mask = torch.randn(2, 4, 5), torch.tensor([[True] * 4, [True, False, False, False]])
    torch.testing.assert_close(moved(frames.double(), mask).float(), pool(frames, mask))


@pytest.mark.parametrize("units", [(), (4, 0)])
def test_layers_without_a_width_are_named(units):
    with pytest.raises(ValueError, match=r"LSTM: units=\(.*\); expected the width of each layer"):
        LSTM(5, units=units)
