"""What every pool promises that has `accumulate` and `finish`; one that gets them is found and held to it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import reduce
from itertools import pairwise
from operator import add

import pytest
import torch

import tagreel.pools
from tagreel.layers.sums import Sums

DIM = 12
LENGTHS = (23, 9, 1, 14, 0)

# The pools whose documentation says that they can be streamed, with the options that keep no maximum.
ADDITIVE = {
    "Attention",
    "GeM",
    "Mean",
    "MultiHeadAttention",
    "NeXtVLAD",
    "NetFV",
    "NetRVLAD",
    "NetVLAD",
    "NetVLAGD",
    "NonLocalNetRVLAD",
    "NonLocalNetVLAD",
    "SoftBagOfWords",
    "Std",
}
# Those that keep one: stretches join, and none can be taken away.
WITH_MAXIMA = {"DeepBagOfFrames", "GatedBagOfWords", "Max"}
OPTIONS = {
    "DeepBagOfFrames": [{"pooling": "mean"}, {"pooling": "both"}],
    "SoftBagOfWords": [{"max_pool": True}, {"batch_norm": False}],
    "NetFV": [{"couple_weights": True, "intra_norm_second_order": False}],
}


def _classes():
    for module in pkgutil.iter_modules(tagreel.pools.__path__):
        found = importlib.import_module(f"tagreel.pools.{module.name}")
        for name, value in vars(found).items():
            if inspect.isclass(value) and value.__module__ == found.__name__ and not name.startswith("_"):
                yield value


def _pools():
    for pool_class in _classes():
        if hasattr(pool_class, "accumulate"):
            for options in ({}, *OPTIONS.get(pool_class.__name__, [])):
                label = "-".join([pool_class.__name__, *(f"{key}={value}" for key, value in options.items())])
                yield pytest.param(pool_class, options, id=label)


every_pool = pytest.mark.parametrize(("pool_class", "options"), list(_pools()))


def _made(pool_class, options):
    """A pool in evaluation whose statistics and biases are not the neutral first ones."""
    torch.manual_seed(0)
    pool = pool_class(DIM, **options).eval()
    with torch.no_grad():
        for name, tensor in [*pool.named_parameters(), *pool.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                tensor.normal_(std=0.3)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
    return pool


def _batch(*, scale=1.0):
    """Videos of different lengths, one of them empty, padded with noise."""
    torch.manual_seed(1)
    frames = scale * torch.randn(len(LENGTHS), max(LENGTHS) + 2, DIM)
    mask = torch.arange(frames.shape[1]) < torch.tensor(LENGTHS)[:, None]
    return torch.where(mask[..., None], frames, 1e3), mask


def _pieces(pool, frames, mask, cuts):
    edges = [0, *cuts, frames.shape[1]]
    return [pool.accumulate(frames[:, a:b], mask[:, a:b]) for a, b in pairwise(edges)]


def test_the_walk_finds_every_pool_that_is_documented_as_additive():
    found = {pool_class.__name__ for pool_class in _classes() if hasattr(pool_class, "accumulate")}
    assert found == ADDITIVE | WITH_MAXIMA
    for pool_class in _classes():
        assert hasattr(pool_class, "accumulate") == hasattr(pool_class, "finish")
        if getattr(pool_class, "ordered", False):
            assert not hasattr(pool_class, "accumulate"), pool_class


@every_pool
@pytest.mark.parametrize("scale", [1.0, 0.03, 5.0])
@torch.no_grad()
def test_sums_over_any_pieces_finish_as_the_whole(pool_class, options, scale):
    pool, (frames, mask) = _made(pool_class, options), _batch(scale=scale)
    expected = pool(frames, mask)
    for cuts in ((), (1,), (12,), (24,), (3, 4, 17), tuple(range(1, 25))):
        found = pool.finish(reduce(add, _pieces(pool, frames, mask, cuts)))
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@every_pool
@torch.no_grad()
def test_sums_in_float64_finish_alike(pool_class, options):
    pool, (frames, mask) = _made(pool_class, options), _batch()
    first, second = _pieces(pool, frames, mask, (11,))
    found = pool.finish(first.double() + second.double()).float()
    torch.testing.assert_close(found, pool(frames, mask), rtol=1e-5, atol=1e-5)


@every_pool
@torch.no_grad()
def test_a_piece_without_padding_needs_no_mask(pool_class, options):
    pool, (frames, _) = _made(pool_class, options), _batch()
    found = pool.finish(pool.accumulate(frames[:1, :7]) + pool.accumulate(frames[:1, 7:20]))
    torch.testing.assert_close(found, pool(frames[:1, :20]), rtol=1e-5, atol=1e-5)


@every_pool
@torch.no_grad()
def test_the_state_has_one_shape_whatever_the_number_of_frames(pool_class, options):
    pool, (frames, mask) = _made(pool_class, options), _batch()
    shapes = {
        tuple(tensor.shape for tensor in (*state.sums, *state.maxima))
        for state in _pieces(pool, frames, mask, (1, 9))
    }
    assert len(shapes) == 1
    assert all(shape[0] == len(LENGTHS) for shape in shapes.pop())


@every_pool
@torch.no_grad()
def test_what_is_taken_away_again_leaves_nothing_behind(pool_class, options):
    pool, (frames, mask) = _made(pool_class, options), _batch()
    first, second = _pieces(pool, frames, mask, (11,))
    if first.maxima:
        with pytest.raises(TypeError, match="maxima"):
            (first + second) - second
        return
    back = (first + second) - second
    for found, expected, taken in zip(back.sums, first.sums, second.sums, strict=True):
        size = max(1.0, expected.abs().max().item(), taken.abs().max().item())
        torch.testing.assert_close(found / size, expected / size, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, *OPTIONS["DeepBagOfFrames"], *OPTIONS["SoftBagOfWords"]], ids=str)
@torch.no_grad()
def test_maxima_are_kept_where_the_options_ask_for_them(options):
    for pool_class in _classes():
        if not hasattr(pool_class, "accumulate"):
            continue
        known = inspect.signature(pool_class).parameters
        if options.keys() <= known.keys():
            pool = _made(pool_class, options)
            state = pool.accumulate(*_batch())
            wanted = pool_class.__name__ in WITH_MAXIMA
            if "pooling" in options:
                wanted = options["pooling"] != "mean"
            assert bool(state.maxima) == (wanted or options.get("max_pool", False)), pool_class


def test_frames_that_dominate_an_attention_leave_the_others_their_share():
    """An attention's weights are exponentials, so that what is left after the largest must not be noise."""
    from tagreel.pools.attention import Attention

    pool = Attention(2).eval()
    with torch.no_grad():
        pool.score.copy_(torch.tensor([[1.0], [0.0]]))
    low, high = torch.tensor([[[0.0, 3.0]]]), torch.tensor([[[20.0, -1.0]]])
    one, other = pool.accumulate(low), pool.accumulate(high)
    torch.testing.assert_close(pool.finish((one + other) - other), low[:, 0], rtol=1e-5, atol=1e-5)
    far = torch.tensor([[[5000.0, 1.0]]])
    assert pool.finish(one + pool.accumulate(far)).isfinite().all()


@torch.no_grad()
def test_a_deviation_that_is_small_beside_the_mean_is_not_lost_in_hours():
    from tagreel.pools.std import Std

    torch.manual_seed(0)
    frames = 2 + 1e-2 * torch.randn(1, 7200, 3)
    pool = Std(3)
    found = pool.finish(reduce(add, (pool.accumulate(piece) for piece in frames.split(16, dim=1))))
    torch.testing.assert_close(found, pool(frames), rtol=1e-4, atol=1e-5)


def test_sums_join_and_part():
    a = Sums((torch.tensor([1.0, 2.0]),), (torch.tensor([5.0, 0.0]),))
    b = Sums((torch.tensor([10.0, 20.0]),), (torch.tensor([1.0, 1.0]),))
    joined = a + b
    assert joined.sums[0].tolist() == [11.0, 22.0]
    assert joined.maxima[0].tolist() == [5.0, 1.0]
    assert (Sums(b.sums) - Sums(a.sums)).sums[0].tolist() == [9.0, 18.0]
    assert joined.double().sums[0].dtype == torch.float64
    assert joined.double().maxima == joined.maxima
    with pytest.raises(ValueError, match="shorter"):
        a + Sums(b.sums)
