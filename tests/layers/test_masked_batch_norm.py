from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tagreel.layers.masked_batch_norm import MaskedBatchNorm


def _frames(lengths=(5, 1, 3), length=6, dim=4, padding=1e3):
    torch.manual_seed(0)
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    frames = torch.randn(len(lengths), length, dim) * 2 + 3
    return torch.where(mask[..., None], frames, padding), mask


def test_follows_the_equation(assert_follows, naive_batch_norm):
    norm = MaskedBatchNorm(3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.running_var.uniform_(0.5, 2.0)
    assert_follows(norm, naive_batch_norm, torch.randn(7, 3))


def test_normalises_the_real_rows_and_zeroes_the_others():
    frames, mask = _frames()
    out = MaskedBatchNorm(4)(frames, mask)
    assert not out[~mask].any()
    torch.testing.assert_close(out[mask].mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[mask].var(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)


def test_trains_as_torch_does_on_the_real_rows_alone():
    frames, mask = _frames()
    ours, theirs = MaskedBatchNorm(4), nn.BatchNorm1d(4, eps=1e-3, momentum=None)
    for step in range(4):
        batch = frames * (step + 1) - step
        torch.testing.assert_close(ours(batch, mask)[mask], theirs(batch[mask]))
    # While it averages evenly it does what torch calls a cumulative average.
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(frames, mask)[mask], theirs(frames[mask]))


def test_after_the_first_batches_the_momentum_holds():
    frames, mask = _frames()
    norm = MaskedBatchNorm(4, momentum=0.25)
    mean, expected = frames[mask].mean(0), torch.zeros(4)
    for step, share in enumerate([1, 1 / 2, 1 / 3, 1 / 4, 1 / 4, 1 / 4]):
        norm(frames * (step + 1), mask)
        expected = expected + share * (mean * (step + 1) - expected)
    torch.testing.assert_close(norm.running_mean, expected)
    assert norm.batches.item() == 6


def test_a_batch_of_one_row_uses_the_running_statistics_and_leaves_them():
    frames, mask = _frames()
    norm = MaskedBatchNorm(4)
    norm(frames, mask)
    before = copy.deepcopy(norm.state_dict())
    alone, one = _frames(lengths=(0, 1, 0))
    out = norm(alone, one)
    torch.testing.assert_close(out[one], copy.deepcopy(norm).eval()(alone[one]))
    for name, tensor in norm.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_evaluation_leaves_the_statistics():
    frames, mask = _frames()
    norm = MaskedBatchNorm(4)
    norm(frames, mask)
    before = copy.deepcopy(norm.state_dict())
    norm.eval()(frames, mask)
    for name, tensor in norm.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_no_mask_is_as_if_every_row_were_real():
    frames, _ = _frames(lengths=(6, 6, 6))
    first, second = MaskedBatchNorm(4), MaskedBatchNorm(4)
    whole = first(frames)
    torch.testing.assert_close(whole, second(frames, torch.ones(3, 6, dtype=torch.bool)))
    torch.testing.assert_close(first.running_var, second.running_var)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_statistics_move_in_any_precision(dtype):
    frames, mask = _frames(padding=0.0)
    norm, exact = MaskedBatchNorm(4).to(dtype), MaskedBatchNorm(4)
    for _ in range(3):
        out, expected = norm(frames.to(dtype), mask), exact(frames, mask)
    assert out.dtype == norm.running_mean.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)
    torch.testing.assert_close(norm.running_mean.float(), exact.running_mean, atol=0.05, rtol=0.05)


def test_autocast_keeps_the_statistics_in_float32():
    frames, mask = _frames(padding=0.0)
    norm = MaskedBatchNorm(4)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(frames.bfloat16(), mask)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(norm.running_mean, frames.bfloat16().float()[mask].mean(0))
