from __future__ import annotations

import pytest
import torch

from tagreel.pools.gru import GRU


def _read(cell, frames):
    """The h of each frame."""
    H, D = cell.units, cell.dim
    h = torch.zeros(H, dtype=torch.float64)
    outputs = []
    for x in frames:
        gates = cell.gate_kernel @ torch.cat([x, h]) + cell.gate_bias
        r, u = 1 / (1 + torch.exp(-gates[:H])), 1 / (1 + torch.exp(-gates[H:]))
        if cell.reset_before:
            candidate = torch.tanh(cell.kernel @ torch.cat([x, r * h]) + cell.bias)
        else:
            candidate = torch.tanh(cell.kernel[:, :D] @ x + r * (cell.kernel[:, D:] @ h) + cell.bias)
        h = u * h + (1 - u) * candidate
        outputs.append(h)
    return outputs


def _naive(pool, videos):
    rows = []
    for video in videos:
        frames, states = list(video), []
        for layer in pool.layers:
            outputs = _read(layer.cells[0], frames)
            h = [outputs[-1]]
            if len(layer.cells) == 2:
                backwards = _read(layer.cells[1], frames[::-1])
                h.append(backwards[-1])
                outputs = [torch.cat(pair) for pair in zip(outputs, backwards[::-1], strict=True)]
            states += h
            frames = outputs
        rows.append(torch.cat(states if pool.readout == "states" else h))
    return torch.stack(rows)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("readout", ["last", "states"])
@pytest.mark.parametrize("reset_before", [False, True])
def test_follows_the_equations(assert_follows, bidirectional, readout, reset_before):
    torch.manual_seed(0)
    pool = GRU(5, units=(3, 4), bidirectional=bidirectional, readout=readout, reset_before=reset_before)
    assert_follows(pool, _naive, 5)


def test_with_the_reset_gate_before_the_matrix_it_is_exported_as_well():
    pool = GRU(5, units=(3, 4), bidirectional=True, reset_before=True)
    dims = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    videos = torch.randn(3, 4, 5), torch.arange(4) < torch.tensor([[4], [0], [2]])
    program = torch.export.export(pool, videos, dynamic_shapes=(dims, dims)).module()
    longer = torch.randn(2, 7, 5), torch.arange(7) < torch.tensor([[6], [1]])
    torch.testing.assert_close(program(*longer), pool(*longer))


@pytest.mark.parametrize("reset_before", [False, True])
def test_parameters_are_those_of_tensorflow(reset_before):
    with torch.device("meta"):
        pool = GRU(1152, readout="states", reset_before=reset_before)
    assert pool.out_dim == 2400
    formula = 3 * 1200 * (1152 + 1200 + 1) + 3 * 1200 * (1200 + 1200 + 1)
    assert sum(p.numel() for p in pool.parameters()) == formula


def test_starts_as_in_tensorflow():
    torch.manual_seed(0)
    [cell] = GRU(96, units=(64,)).layers[0].cells
    assert (cell.gate_bias == 1).all()
    assert not cell.bias.any()
    for kernel, gates in ((cell.gate_kernel, 128), (cell.kernel, 64)):
        bound = (6 / (96 + 64 + gates)) ** 0.5
        assert 0.99 * bound < kernel.abs().max() <= bound


def test_layers_without_a_width_are_named():
    with pytest.raises(ValueError, match=r"GRU: units=\(\); expected the width of each layer"):
        GRU(5, units=())
