"""What every pool promises; a new file in tagreel/pools is found and held to it.

A pool whose result depends on the order of the frames says so with a class attribute, `ordered = True`; one
that takes packed frames with `packs = True`, and one that takes scaled ones with `takes_scaled = True`.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil

import pytest
import torch

import tagreel.pools
from tagreel.layers.product import Scaled
from tagreel.layers.ragged import Ragged

DIM = 12
LENGTHS = (5, 3, 1, 4)


def _pools():
    for module in pkgutil.iter_modules(tagreel.pools.__path__):
        if not module.name.startswith("_"):
            found = importlib.import_module(f"tagreel.pools.{module.name}")
            for name, value in vars(found).items():
                if inspect.isclass(value) and value.__module__ == found.__name__ and not name.startswith("_"):
                    yield pytest.param(value, id=name)


every_pool = pytest.mark.parametrize("pool_class", list(_pools()))
both_modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def _made(pool_class, *, training=False):
    """A pool with statistics and biases that are not the neutral first ones."""
    torch.manual_seed(0)
    pool = pool_class(DIM)
    with torch.no_grad():
        for name, tensor in [*pool.named_parameters(), *pool.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                tensor.normal_(std=0.3)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
    return pool.train(training)


def _batch(lengths=LENGTHS, *, padded_to=None, padding=0.0):
    """Videos of these lengths, the same ones whatever they are padded with and to."""
    torch.manual_seed(1)
    width = padded_to or max(lengths)
    frames = padding * torch.randn(len(lengths), width, DIM)
    for b, length in enumerate(lengths):
        torch.manual_seed(100 + b)
        frames[b, :length] = torch.randn(length, DIM)
    return frames, torch.arange(width) < torch.tensor(lengths)[:, None]


def _everything(pool, frames, mask):
    """What a step of training sees of a pool: output, gradients of frames and parameters, statistics."""
    pool = copy.deepcopy(pool)
    frames = frames.clone().requires_grad_()
    torch.manual_seed(2)
    out = pool(frames, mask)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    (out * weights).sum().backward()
    return {
        "output": out.detach(),
        "frames": frames.grad[mask] if isinstance(mask, torch.Tensor) else frames.grad,
        "padding": frames.grad[~mask] if isinstance(mask, torch.Tensor) else frames.grad[:0],
        **{f"gradient of {name}": parameter.grad for name, parameter in pool.named_parameters()},
        **dict(pool.named_buffers()),
    }


def _assert_same(found, expected, *, apart=()):
    assert found.keys() == expected.keys()
    for name in found.keys() - set(apart):
        size = max(1.0, expected[name].abs().max().item()) if expected[name].numel() else 1.0
        torch.testing.assert_close(
            found[name] / size,
            expected[name] / size,
            rtol=1e-4,
            atol=1e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_the_walk_finds_the_pools():
    assert {"Mean", "NetVLAD", "NeXtVLAD"} <= {param.id for param in _pools()}


@every_pool
def test_is_made_of_a_width_alone_and_all_options_are_keywords(pool_class):
    dim, *options = inspect.signature(pool_class).parameters.values()
    assert dim.name == "dim"
    for option in options:
        assert option.kind is option.KEYWORD_ONLY
        assert option.default is not option.empty
    assert [*inspect.signature(pool_class.forward).parameters][1:] == ["frames", "mask"]


@every_pool
@both_modes
@pytest.mark.parametrize(("videos", "length"), [(1, 1), (1, 7), (4, 1), (3, 5)])
def test_output_is_as_wide_as_promised(pool_class, training, videos, length):
    pool = _made(pool_class, training=training)
    out = pool(torch.randn(videos, length, DIM), torch.ones(videos, length, dtype=torch.bool))
    assert out.shape == (videos, pool.out_dim)
    assert out.isfinite().all()


@every_pool
@both_modes
@pytest.mark.parametrize("padding", [0.0, 1e3])
def test_padding_changes_nothing(pool_class, training, padding):
    pool = _made(pool_class, training=training)
    expected = _everything(pool, *_batch())
    found = _everything(pool, *_batch(padded_to=9, padding=padding))
    _assert_same(found, expected, apart=["padding"])
    assert not found["padding"].any()


@every_pool
@both_modes
@pytest.mark.parametrize("lengths", [LENGTHS, (0, 4, 2), (3, 3), (1,)], ids=str)
def test_packed_frames_are_pooled_as_padded_ones(pool_class, training, lengths):
    if not getattr(pool_class, "packs", False):
        pytest.skip("takes padded frames alone")
    pool = _made(pool_class, training=training)
    frames, mask = _batch(lengths, padding=1e3)
    expected = _everything(pool, frames, mask)
    packed = Ragged(list(lengths), frames.device)
    found = _everything(pool, frames[mask], packed)
    _assert_same(found, expected, apart=["padding"])


@every_pool
@both_modes
@pytest.mark.parametrize("packed", [True, False])
def test_scaled_frames_are_pooled_as_what_they_stand_for(pool_class, training, packed):
    if not getattr(pool_class, "takes_scaled", False):
        pytest.skip("takes plain frames alone")
    pool = _made(pool_class, training=training)
    frames, mask = _batch()
    scale, shift = torch.rand(DIM) + 0.5, torch.randn(DIM)
    expected = pool(torch.where(mask[..., None], frames * scale + shift, 0.0), mask)
    x, where = (frames[mask], Ragged(list(LENGTHS), frames.device)) if packed else (frames, mask)
    torch.testing.assert_close(pool(Scaled(x, scale, shift), where), expected, rtol=1e-4, atol=1e-5)


@every_pool
@both_modes
def test_padded_videos_are_as_trimmed_ones_without_a_mask(pool_class, training):
    pool = _made(pool_class, training=training)
    padded, mask = _batch((3, 3, 3), padded_to=8, padding=1e3)
    found = _everything(pool, padded, mask)
    pool_without_mask = copy.deepcopy(pool)
    torch.manual_seed(2)
    torch.testing.assert_close(pool_without_mask(padded[:, :3]), found["output"], rtol=1e-4, atol=1e-5)
    for name, buffer in pool_without_mask.named_buffers():
        torch.testing.assert_close(buffer, found[name], rtol=1e-4, atol=1e-5)


@every_pool
def test_each_video_is_pooled_by_itself_in_evaluation(pool_class):
    pool = _made(pool_class)
    frames, mask = _batch(padding=1e3)
    together = pool(frames, mask)
    for b, length in enumerate(LENGTHS):
        alone = pool(frames[b : b + 1, :length], mask[b : b + 1, :length])
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-4, atol=1e-5)


@every_pool
@both_modes
def test_the_order_of_the_frames_does_not_matter(pool_class, training):
    if getattr(pool_class, "ordered", False):
        pytest.skip("reads the frames in order")
    pool = _made(pool_class, training=training)
    frames, mask = _batch(padding=1e3)
    mixed = torch.stack([torch.randperm(mask.shape[1]) for _ in frames])
    mixed_frames = frames.gather(1, mixed[..., None].expand_as(frames))
    expected, found = _everything(pool, frames, mask), _everything(pool, mixed_frames, mask.gather(1, mixed))
    _assert_same(found, expected, apart=["frames"])


@every_pool
@both_modes
def test_gradients_reach_every_parameter_and_every_real_frame(pool_class, training):
    found = _everything(_made(pool_class, training=training), *_batch())
    for name, value in found.items():
        assert value.isfinite().all(), name
        if name.startswith("gradient of"):
            assert value.any(), name
    # A lone real frame has no deviation to move, so one frame in all may go without.
    reached = found["frames"].any(dim=1)
    assert reached.sum() >= len(reached) - 1


@every_pool
@both_modes
@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (0, 4, 2), (0,), (0, 0, 0)], ids=str)
def test_videos_of_one_frame_or_none_are_finite(pool_class, training, lengths):
    found = _everything(
        _made(pool_class, training=training), *_batch(lengths, padded_to=max(*lengths, 1) + 2, padding=1e3)
    )
    for name, value in found.items():
        assert value.isfinite().all(), name
    assert not found["padding"].any()


@every_pool
def test_a_video_without_frames_leaves_the_others_alone(pool_class):
    pool = _made(pool_class)
    frames, mask = _batch((4, 0, 3))
    expected = pool(*_batch((4, 4, 3)))
    torch.testing.assert_close(pool(frames, mask)[[0, 2]], expected[[0, 2]])


@every_pool
@both_modes
def test_the_input_is_left_as_it_was(pool_class, training):
    frames, mask = _batch(padding=1e3)
    before = frames.clone(), mask.clone()
    _made(pool_class, training=training)(frames, mask)
    assert torch.equal(frames, before[0])
    assert torch.equal(mask, before[1])


@every_pool
@both_modes
def test_the_same_seed_gives_the_same_numbers(pool_class, training):
    pool, (frames, mask) = _made(pool_class, training=training), _batch()
    first, second = _everything(pool, frames, mask), _everything(pool, frames, mask)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@every_pool
def test_weights_and_statistics_travel_as_a_state_dict(pool_class):
    pool, (frames, mask) = _made(pool_class), _batch()
    torch.manual_seed(9)
    other = pool_class(DIM).eval()
    other.load_state_dict(pool.state_dict())
    assert torch.equal(other(frames, mask), pool(frames, mask))


@every_pool
@both_modes
def test_bfloat16_is_close_to_float32(pool_class, training):
    frames, mask = _batch((9, 6, 8, 7, 9, 5, 8, 9))
    exact = _made(pool_class, training=training)
    half, mixed = copy.deepcopy(exact).to(torch.bfloat16), copy.deepcopy(exact)
    torch.manual_seed(2)
    expected = exact(frames, mask)
    torch.manual_seed(2)
    out = half(frames.bfloat16(), mask)
    assert out.dtype == torch.bfloat16
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        out_mixed = mixed(frames, mask)
    for found in (out.float(), out_mixed.float()):
        assert ((found - expected).norm() / expected.norm()).item() < 0.05
    for parameter in mixed.parameters():
        [gradient] = torch.autograd.grad(out_mixed.float().sum(), parameter, retain_graph=True)
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()


@every_pool
def test_exported_it_gives_the_same_for_any_number_of_videos_and_frames(pool_class):
    pool = _made(pool_class)
    dims = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    program = torch.export.export(pool, _batch(), dynamic_shapes=(dims, dims)).module()
    for lengths in ((2, 7), (3, 1, 6, 0, 2), (2,)):
        frames, mask = _batch(lengths, padded_to=max(lengths) + 1, padding=1e3)
        torch.testing.assert_close(program(frames, mask), pool(frames, mask))


@every_pool
@both_modes
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(pool_class, training):
    pool, (frames, mask) = _made(pool_class, training=training), _batch(padding=1e3)
    found = _everything(pool.cuda(), frames.cuda(), mask.cuda())
    expected = _everything(pool.cpu(), frames, mask)
    _assert_same({name: value.cpu() for name, value in found.items()}, expected)
