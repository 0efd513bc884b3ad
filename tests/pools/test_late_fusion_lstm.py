from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from tagreel.pools.late_fusion_lstm import LateFusionLSTM
from tagreel.pools.layer_norm_lstm import LayerNormLSTM


def _naive(pool, videos):
    """Each video by itself, the modalities cut out by hand, cell after cell."""
    rows = []
    for video in videos:
        outputs, at = [], 0
        for part, layer in zip(pool.parts, pool.layers, strict=True):
            frames, at = video[:, at : at + part], at + part
            forwards, backwards = (
                torch.stack(_read(cell, x))
                for cell, x in zip(layer.cells, (frames, frames.flip(0)), strict=True)
            )
            outputs += [forwards, backwards.flip(0)]
        rows.append(_read(pool.fuse.cells[0], torch.cat(outputs, dim=1))[-1])
    return torch.stack(rows)


def _read(cell, frames):
    """The h of each frame, by the equations of a cell that has its own test."""
    state = tuple(torch.zeros(1, cell.units, dtype=frames.dtype) for _ in range(2))
    outputs = []
    for x in frames:
        recall = [partial(F.linear, weight=matrix) for matrix in cell.matrices()]
        state = cell.step(state, cell.inputs(x[None]), recall, cell.weights())
        outputs.append(state[1][0])
    return outputs


def test_reads_each_modality_by_itself_and_then_all(assert_follows):
    torch.manual_seed(0)
    assert_follows(LateFusionLSTM(7, parts=(4, 3), units=(3, 2), fused_units=5), _naive, 7)


def test_one_modality_is_a_stack_of_two(assert_follows):
    torch.manual_seed(0)
    pool = LateFusionLSTM(6, units=(3, 2), fused_units=5)
    below, above = LayerNormLSTM(6, units=(3,), bidirectional=True), LayerNormLSTM(6, units=(5,))
    below.layers[0].load_state_dict(pool.layers[0].state_dict())
    above.layers[0].load_state_dict(pool.fuse.state_dict())
    frames, mask = torch.randn(3, 4, 6), torch.arange(4) < torch.tensor([[4], [1], [3]])
    outputs, _ = below.layers[0](frames, mask)
    torch.testing.assert_close(pool(frames, mask), above(outputs, mask))


def test_parameters_are_those_of_the_authors_code():
    with torch.device("meta"):
        pool = LateFusionLSTM(1152, parts=(1024, 128))
    picture = 2 * (4 * 512 * (1024 + 512) + 10 * 512)
    sound = 2 * (4 * 150 * (128 + 150) + 10 * 150)
    fused = 4 * 1200 * (1324 + 1200) + 10 * 1200
    logistic = 1200 * 4716 + 4716
    counted = sum(p.numel() for p in pool.parameters())
    assert counted == picture + sound + fused
    assert counted + logistic == 24_429_412


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"parts": (4, 4)}, r"parts=\(4, 4\); expected widths that add up to 7"),
        ({"parts": (3, 3, 1)}, r"units=\(512, 150\), .* a width for each of 3 parts"),
        ({"units": (0, 3)}, r"units=\(0, 3\), fused_units=1200"),
    ],
)
def test_parts_that_do_not_fit_are_named(options, expected):
    with pytest.raises(ValueError, match=expected):
        LateFusionLSTM(7, **options)
