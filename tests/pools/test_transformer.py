from __future__ import annotations

import copy
import math

import pytest
import torch

from tagreel.pools.transformer import Transformer


def _layer_norm(norm, row):
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    scaled = [(value - mean) / torch.sqrt(variance + norm.eps) for value in row]
    return torch.stack([value * w + b for value, w, b in zip(scaled, norm.weight, norm.bias, strict=True)])


def _linear(layer, row):
    out = [sum(w * value for w, value in zip(weights, row, strict=True)) for weights in layer.weight]
    return torch.stack(out) if layer.bias is None else torch.stack(out) + layer.bias


def _gelu(row):
    return row * (1 + torch.erf(row / math.sqrt(2))) / 2


def _position(t, width):
    wave = [t / 10_000 ** ((d - d % 2) / width) for d in range(width)]
    return torch.tensor(
        [math.cos(angle) if d % 2 else math.sin(angle) for d, angle in enumerate(wave)], dtype=torch.float64
    )


def _naive(pool, videos):
    """The equations, one frame, head and pair of frames at a time."""
    D, H = pool.out_dim, pool.heads
    rows = []
    for video in videos:
        read = [_layer_norm(pool.attention_norm, frame) for frame in video]
        if pool.ordered:
            read = [frame + _position(t, D) for t, frame in enumerate(read)]
        projected = [_linear(pool.attention_in, frame).view(3, H, D // H) for frame in read]
        total = torch.zeros(D, dtype=torch.float64)
        for t, frame in enumerate(video):
            heads = []
            for h in range(H):
                raised = [
                    torch.exp((projected[t][0, h] * other[1, h]).sum() / math.sqrt(D // H))
                    for other in projected
                ]
                heads.append(
                    sum(
                        share / sum(raised) * other[2, h]
                        for share, other in zip(raised, projected, strict=True)
                    )
                )
            hidden = frame + _linear(pool.attention_out, torch.cat(heads))
            inner = _gelu(_linear(pool.inner, _layer_norm(pool.inner_norm, hidden)))
            total = total + _layer_norm(pool.norm, hidden + _linear(pool.outer, inner))
        rows.append(total / max(len(video), 1))
    return torch.stack(rows)


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("dim", [6, 9])
def test_follows_the_equations(assert_follows, positions, dim):
    torch.manual_seed(0)
    pool = Transformer(dim, heads=3, expansion=2, positions=positions)
    assert_follows(pool, _naive, dim, lengths=(4, 0, 1, 3))


def test_is_pytorchs_own_encoder_layer():
    torch.manual_seed(0)
    pool = Transformer(8, heads=2, expansion=2)
    layer = torch.nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs = {
        "self_attn.in_proj_weight": pool.attention_in.weight,
        "self_attn.in_proj_bias": torch.zeros(24),
        "self_attn.out_proj.weight": pool.attention_out.weight,
        "self_attn.out_proj.bias": pool.attention_out.bias,
        "linear1.weight": pool.inner.weight,
        "linear1.bias": pool.inner.bias,
        "linear2.weight": pool.outer.weight,
        "linear2.bias": pool.outer.bias,
        "norm1.weight": pool.attention_norm.weight,
        "norm1.bias": pool.attention_norm.bias,
        "norm2.weight": pool.inner_norm.weight,
        "norm2.bias": pool.inner_norm.bias,
    }
    layer.load_state_dict(theirs)
    frames = torch.randn(2, 4, 8)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    out = pool.norm(layer(frames, src_key_padding_mask=~mask))
    torch.testing.assert_close(pool(frames, mask), torch.stack([out[0].mean(0), out[1, :2].mean(0)]))


def test_with_positions_the_order_of_the_frames_matters_and_it_says_so():
    torch.manual_seed(0)
    frames = torch.randn(2, 5, 8)
    for positions in (False, True):
        pool = Transformer(8, heads=2, positions=positions)
        assert pool.ordered is positions
        assert torch.allclose(pool(frames), pool(frames.flip(1)), atol=1e-5) is not positions


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_with_positions_padding_changes_nothing_either(training):
    torch.manual_seed(0)
    pool = Transformer(8, heads=2, positions=True).train(training)
    frames, mask = torch.randn(2, 6, 8), torch.arange(6) < torch.tensor([[4], [2]])
    expected = torch.cat([pool(frames[:1, :4]), pool(frames[1:, :2])])
    torch.testing.assert_close(pool(torch.where(mask[..., None], frames, 1e3), mask), expected)


def test_with_positions_it_exports_for_any_number_of_frames():
    torch.manual_seed(0)
    pool = Transformer(8, heads=2, positions=True).eval()
    dims = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    example = torch.randn(2, 4, 8), torch.ones(2, 4, dtype=torch.bool)
    program = torch.export.export(pool, example, dynamic_shapes=(dims, dims)).module()
    frames, mask = torch.randn(3, 9, 8), torch.arange(9) < torch.tensor([[9], [0], [5]])
    torch.testing.assert_close(program(frames, mask), pool(frames, mask))


def test_positions_of_distant_frames_are_exact_in_half_precision():
    torch.manual_seed(0)
    pool = Transformer(8, heads=2, positions=True)
    frames = torch.randn(1, 600, 8)
    found = copy.deepcopy(pool).bfloat16()(frames.bfloat16()).float()
    expected = pool(frames)
    assert ((found - expected).norm() / expected.norm()).item() < 0.05


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    pool, frames = Transformer(8, heads=2, dropout=0.5), torch.randn(2, 4, 8)
    assert not torch.equal(pool(frames), pool(frames))
    pool.eval()
    assert torch.equal(pool(frames), pool(frames))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads=3, expansion=4; expected 1 or more, and width 8 a multiple of heads"),
        ({"heads": 0}, "heads=0"),
        ({"expansion": 0}, "expansion=0"),
        ({"dropout": 1.0}, r"dropout=1.0; expected 0 to less than 1"),
    ],
)
def test_options_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Transformer(8, **options)
