from __future__ import annotations

import pytest
import torch

from tagreel.pools.batch_norm_lstm import BatchNormLSTM

LENGTHS = (6, 3, 1, 4)


def _normalized(norm, rows, bias, eps):
    """Rows of as many videos, by their own statistics in training, unless there is one alone."""
    mean, variance = norm.running_mean, norm.running_var
    if norm.training and len(rows) > 1:
        mean = sum(rows) / len(rows)
        variance = sum((row - mean) ** 2 for row in rows) / len(rows)
    return [(row - mean) / torch.sqrt(variance + eps) * norm.weight + bias for row in rows]


def _naive(pool, videos, seen=None):
    """One layer, one direction: all videos step by step, each as long as it lasts."""
    [layer] = pool.layers
    [cell] = layer.cells
    H, D = cell.units, cell.dim
    flat = [cell.kernel[:, :D] @ x for video in videos for x in video]
    flat = _normalized(cell.input_norm, flat, cell.input_norm.bias, 1e-3)
    of_frames, at = [], 0
    for video in videos:
        of_frames.append(flat[at : at + len(video)])
        at += len(video)
    c = [torch.zeros(H, dtype=torch.float64) for _ in videos]
    h = list(c)
    for t in range(max(map(len, videos))):
        present = [b for b, video in enumerate(videos) if t < len(video)]
        recalled = [cell.kernel[:, D:] @ h[b] for b in present]
        if seen is not None:
            seen += recalled
        recalled = _normalized(cell.state_norm, recalled, cell.state_norm.bias, 1e-5)
        for b, row in zip(present, recalled, strict=True):
            i, f, j, o = (of_frames[b][t] + row).view(4, H)
            c[b] = c[b] / (1 + torch.exp(-f)) + torch.tanh(j) / (1 + torch.exp(-i))
            h[b] = 1 / (1 + torch.exp(-o))
        memory = _normalized(cell.memory_norm, [c[b] for b in present], cell.memory_norm.bias, 1e-5)
        for b, row in zip(present, memory, strict=True):
            h[b] = h[b] * torch.tanh(row)
    return torch.stack([torch.cat([c[b], h[b]]) for b in range(len(videos))])


def test_follows_the_equations(assert_follows):
    torch.manual_seed(0)
    assert_follows(BatchNormLSTM(5, units=(3,), readout="states"), _naive, 5, lengths=(5, 5, 3, 5))


def test_a_step_of_one_video_is_normalised_with_the_running_statistics(assert_follows):
    torch.manual_seed(0)
    assert_follows(BatchNormLSTM(5, units=(3,), readout="states"), _naive, 5, lengths=LENGTHS)


def test_running_statistics_are_those_of_all_real_steps_together():
    torch.manual_seed(0)
    pool = BatchNormLSTM(5, units=(3,)).double()
    frames = torch.randn(4, 8, 5, dtype=torch.float64)
    mask = torch.arange(8) < torch.tensor(LENGTHS)[:, None]
    [cell] = pool.layers[0].cells
    seen = []
    _naive(pool, [video[:n] for video, n in zip(frames, LENGTHS, strict=True)], seen)
    pool(frames, mask)
    rows = torch.stack(seen)
    assert len(rows) == sum(LENGTHS)
    torch.testing.assert_close(cell.state_norm.running_mean, rows.mean(0))
    torch.testing.assert_close(cell.state_norm.running_var, rows.var(0))
    assert cell.state_norm.batches == 1
    before = cell.state_norm.running_mean.clone()
    pool(2 * frames, mask)
    after = cell.state_norm.running_mean.clone()
    assert cell.state_norm.batches == 2
    assert not torch.equal(before, after)
    pool.eval()(frames, mask)
    assert torch.equal(cell.state_norm.running_mean, after)


def test_gains_start_small_and_the_forget_gate_open():
    cell = BatchNormLSTM(5, units=(3,)).layers[0].cells[0]
    for norm in (cell.input_norm, cell.state_norm, cell.memory_norm):
        assert norm.weight.tolist() == pytest.approx([0.1] * len(norm.weight))
    assert cell.input_norm.bias.tolist() == [0] * 3 + [1] * 3 + [0] * 6
    assert "state_norm.bias" not in dict(cell.named_parameters())
