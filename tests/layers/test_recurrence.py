from __future__ import annotations

from functools import partial

import pytest
import torch

from tagreel.layers.gru_cell import GRULayer
from tagreel.layers.layer_norm_lstm_cell import LayerNormLSTMLayer
from tagreel.layers.lstm_cell import LSTMLayer
from tagreel.layers.ragged import Ragged
from tagreel.layers.recurrence import Stack, _in_one_chunk, fused, last_real

LENGTHS = (6, 0, 1, 4)

every_readout = pytest.mark.parametrize("readout", ["last", "states", "thirds", "attention"])
every_layer = pytest.mark.parametrize("layer_class", [LSTMLayer, GRULayer])


def _stack(layer_class, readout):
    torch.manual_seed(0)
    return Stack(5, units=(3, 4), layer=partial(layer_class, bidirectional=True), readout=readout)


def _videos(lengths=LENGTHS, *, padded=2, padding=1e3):
    generator = torch.Generator().manual_seed(1)
    frames = torch.full((len(lengths), max(lengths) + padded, 5), padding)
    for video, length in zip(frames, lengths, strict=True):
        video[:length] = torch.randn(length, 5, generator=generator)
    return frames, torch.arange(frames.shape[1]) < torch.tensor(lengths)[:, None]


@every_layer
@every_readout
def test_readouts_take_from_the_layers_what_they_say(layer_class, readout):
    stack = _stack(layer_class, readout)
    frames, mask = _videos()
    found = stack(frames, mask)
    for b, length in enumerate(LENGTHS):
        if not length:
            assert not found[b].any()
            continue
        below, states = stack.layers[0](frames[b : b + 1, :length], None)
        top, top_states = stack.layers[1](below, None)
        top = top[0]
        if readout == "last":
            expected = torch.cat([top[-1, :4], top[0, 4:]])
        elif readout == "states":
            expected = torch.cat([*states, *top_states], dim=1)[0]
        elif readout == "thirds":
            taps = {6: (1, 3, 5), 1: (0, 0, 0), 4: (1, 2, 3)}[length]
            expected = sum(top[tap] for tap in taps) / 3
        else:
            raised = [torch.exp(h @ stack.attention.weight[0]) for h in top]
            expected = sum(share * h for share, h in zip(raised, top, strict=True)) / sum(raised)
        torch.testing.assert_close(found[b], expected)


def test_thirds_of_a_crop_are_those_of_the_paper():
    outputs = torch.arange(45.0)[None, :, None]
    for mask in (None, torch.ones(1, 45, dtype=torch.bool)):
        taps = [last_real(outputs, mask, numerator=n, denominator=3).item() for n in (1, 2, 3)]
        assert taps == [14, 29, 44]


@pytest.mark.parametrize("layer_class", [LSTMLayer, GRULayer, LayerNormLSTMLayer])
@every_readout
def test_packed_frames_give_what_padded_ones_give(layer_class, readout):
    stack, (frames, mask) = _stack(layer_class, readout), _videos()
    weights = torch.randn(len(LENGTHS), stack.out_dim)
    results = []
    for x, real in ((frames, mask), (frames[mask], Ragged(LENGTHS, frames.device))):
        x = x.clone().requires_grad_()
        gradient, *gradients = torch.autograd.grad((stack(x, real) * weights).sum(), [x, *stack.parameters()])
        gradient = gradient[mask] if real is mask else gradient
        results.append([stack(x, real), stack.outputs(x, real), gradient, *gradients])
    padded, packed = results
    assert not padded[1][~mask].any()
    padded[1] = padded[1][mask]
    for one, other in zip(padded, packed, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("layer_class", "kernel"), [(LSTMLayer, torch.lstm), (GRULayer, torch.gru)])
def test_the_kernel_of_gpus_gives_the_same(layer_class, kernel, bidirectional):
    torch.manual_seed(0)
    layer, (frames, mask) = layer_class(5, 3, bidirectional=bidirectional), _videos()
    ragged = Ragged(LENGTHS, frames.device)
    results = []
    for read in (layer, partial(fused, kernel, list(layer.cells))):
        x = frames[mask].requires_grad_()
        outputs, states = read(x, ragged)
        weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2))
        loss = (outputs * weights).sum() + sum((state * n).sum() for n, state in enumerate(states, 2))
        results.append([outputs, *states, *torch.autograd.grad(loss, [x, *layer.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer_class", [LSTMLayer, GRULayer, partial(GRULayer, reset_before=True)])
def test_gradients_are_those_of_differences(layer_class):
    torch.manual_seed(0)
    layer, (frames, mask) = layer_class(5, 3, bidirectional=True).double(), _videos((3, 0, 2))
    names = [name for name, _ in layer.named_parameters()]

    def read(x, *parameters):
        values = dict(zip(names, parameters, strict=True))
        outputs, states = torch.func.functional_call(layer, values, (x, Ragged((3, 0, 2), x.device)))
        return outputs, *states

    x = frames[mask].double().requires_grad_()
    assert torch.autograd.gradcheck(read, (x, *layer.parameters()))


@every_layer
@every_readout
@pytest.mark.parametrize("strict", [False, True])
def test_exported_it_reads_any_number_of_videos_and_frames(layer_class, readout, strict):
    stack = _stack(layer_class, readout).eval()
    dims = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    program = torch.export.export(stack, _videos(), dynamic_shapes=(dims, dims), strict=strict).module()
    for lengths in ((2, 7), (3, 1, 6, 0, 2), (2,), (0,)):
        videos = _videos(lengths, padded=1)
        torch.testing.assert_close(program(*videos), stack(*videos))


@every_layer
def test_a_frozen_frame_is_frozen_exactly(layer_class):
    layer = layer_class(5, 3, bidirectional=True)
    frames, mask = _videos()
    _, states = layer(frames, mask)
    _, longer = layer(
        torch.cat([frames, torch.randn(4, 90, 5)], 1), torch.cat([mask, torch.zeros(4, 90) > 0], 1)
    )
    for state, later in zip(states, longer, strict=True):
        assert torch.equal(state, later)


def test_weights_in_one_chunk_are_the_same_with_matrices_before_biases():
    weights = [torch.randn(8, 5), torch.randn(8, 2), torch.randn(8), torch.zeros(8)] * 2
    placed = _in_one_chunk(weights)
    for one, other in zip(placed, weights, strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous()
    assert len({one.untyped_storage().data_ptr() for one in placed}) == 1
    offsets = [one.storage_offset() for one in placed]
    assert offsets == [0, 40, 112, 120, 56, 96, 128, 136]


def test_an_unknown_readout_is_named():
    with pytest.raises(ValueError, match=r"readout='mean'; expected last, states, thirds or attention"):
        Stack(5, units=(3,), layer=LSTMLayer, readout="mean")
