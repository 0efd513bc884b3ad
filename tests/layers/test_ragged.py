from __future__ import annotations

import pytest
import torch

from tagreel.layers.product import Scaled
from tagreel.layers.ragged import (
    Ragged,
    alike,
    count,
    largest,
    masked,
    outer,
    pack,
    pad,
    padded,
    spread,
    total,
)

SIZES = [5, 0, 3, 1, 40]
DIM, K = 64, 96
CPU = torch.device("cpu")


def _videos(sizes=SIZES, dim=DIM, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(size, dim) for size in sizes]


def _padded(videos):
    return torch.nn.utils.rnn.pad_sequence(videos, batch_first=True)


def test_packing_lays_the_real_frames_end_to_end_and_padding_puts_them_back():
    videos, ragged = _videos(), Ragged(SIZES, CPU)
    frames = _padded(videos)
    dirty = frames.masked_fill(~ragged.mask[..., None], 7.0)
    assert torch.equal(pack(dirty, ragged), torch.cat(videos))
    assert torch.equal(pad(torch.cat(videos), ragged), frames)
    assert ragged.counts.tolist() == SIZES
    assert ragged.videos.tolist() == [b for b, size in enumerate(SIZES) for _ in range(size)]
    assert ragged.times(3).sizes == [3 * size for size in SIZES]
    assert len(ragged) == len(SIZES)


@pytest.mark.parametrize("sizes", [[], [0, 0], [4, 4]], ids=["no video", "no frame", "equal lengths"])
def test_it_packs_what_is_hardly_ragged(sizes):
    ragged = Ragged(sizes, CPU)
    frames = torch.randn(len(sizes), max(sizes, default=0), DIM)
    assert torch.equal(pad(pack(frames, ragged), ragged), frames)
    assert total(pack(frames, ragged), ragged).shape == (len(sizes), DIM)
    assert outer(pack(frames, ragged), pack(frames, ragged), ragged).shape == (len(sizes), DIM, DIM)


def test_what_looks_at_all_frames_of_a_video_gives_the_same_packed_and_padded():
    videos, ragged = _videos(), Ragged(SIZES, CPU)
    rows, frames, mask = torch.cat(videos), _padded(videos), ragged.mask
    torch.testing.assert_close(total(rows, ragged), torch.stack([video.sum(0) for video in videos]))
    torch.testing.assert_close(total(rows, ragged), total(frames, mask))
    assert torch.equal(count(rows, ragged), count(frames, mask))
    assert count(frames, None).tolist() == [[40]] * 5
    assert torch.equal(largest(rows, ragged, default=-9.0), largest(frames, mask, default=-9.0))
    assert largest(rows, ragged, default=-9.0)[1].tolist() == [-9.0] * DIM
    of_videos = torch.randn(len(SIZES), DIM)
    assert torch.equal(spread(of_videos, ragged), pack(spread(of_videos, mask).expand_as(frames), ragged))
    assert masked(rows, ragged) is rows
    assert torch.equal(masked(frames + 1, mask)[~mask], torch.zeros_like(frames[~mask]))


@pytest.mark.parametrize("size", [40, 900], ids=["small", "large"])
def test_outer_products_follow_the_equation_with_their_gradients(size):
    sizes = [5, 0, 3, 1, size]
    videos, others = _videos(sizes), _videos(sizes, K, seed=1)
    ragged = Ragged(sizes, CPU)
    x, y = torch.cat(videos).requires_grad_(), torch.cat(others).requires_grad_()
    found = outer(x, y, ragged)
    expected = torch.stack([a.T @ b for a, b in zip(x.split(sizes), y.split(sizes), strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, outer(_padded(videos), _padded(others), None), rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (x, y), upstream),
        torch.autograd.grad(expected, (x, y), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_outer_products_of_what_needs_no_gradient_leave_it_out():
    ragged = Ragged(SIZES, CPU)
    x, y = torch.cat(_videos()), torch.cat(_videos(SIZES, K)).requires_grad_()
    outer(x, y, ragged).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(y.grad, x.sum(1, keepdim=True).expand_as(y))


@pytest.mark.parametrize("packed", [True, False])
def test_outer_products_of_what_is_scaled_are_those_of_what_it_stands_for(packed):
    videos, others, ragged = _videos(), _videos(SIZES, K, seed=1), Ragged(SIZES, CPU)
    scale, shift = torch.randn(DIM), torch.randn(DIM)
    x, y = (torch.cat(some) if packed else _padded(some) for some in (videos, others))
    mask = ragged if packed else ragged.mask
    expected = outer(torch.cat(videos) * scale + shift, torch.cat(others), ragged)
    torch.testing.assert_close(outer(Scaled(x, scale, shift), y, mask), expected, rtol=1e-4, atol=1e-4)


def test_in_half_precision_the_products_are_of_halves():
    ragged = Ragged(SIZES, CPU)
    x, y = torch.cat(_videos()), torch.cat(_videos(SIZES, K)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = outer(x, y, ragged)
    found.float().sum().backward()
    assert found.dtype == torch.bfloat16
    assert y.grad.dtype == torch.float32
    torch.testing.assert_close(found.float(), outer(x, y, ragged), rtol=0.05, atol=0.5)


def test_packed_features_are_alike_where_every_video_has_as_many_frames_of_each():
    one, same, other = Ragged([2, 3], CPU), Ragged([2, 3], CPU), Ragged([2, 0], CPU)
    assert alike([one, same])
    assert not alike([one, other])
    assert not alike([one, one.mask])
    assert not alike([None])
    streams = {"a": torch.randn(5, 3), "b": torch.randn(2, 3, 4)}
    whole, masks = padded(streams, {"a": one, "b": one.mask})
    assert whole["a"].shape == (2, 3, 3)
    assert whole["b"] is streams["b"]
    assert torch.equal(masks["a"], masks["b"])
