from __future__ import annotations

import math

import pytest
import torch

from tagreel.layers.l2_norm import L2Norm, joint_l2_norm


def test_follows_the_formula(assert_follows):
    def naive(layer, rows):
        return torch.stack([row / math.sqrt(max(sum(v.item() ** 2 for v in row), 1e-12)) for row in rows])

    torch.manual_seed(0)
    x = torch.randn(6, 4)
    torch.testing.assert_close(L2Norm(4)(x).double(), naive(None, x.double()))

    def naive_with_gradient(layer, rows):
        return torch.stack([row / torch.sqrt(sum(v**2 for v in row)) for row in rows])

    assert_follows(L2Norm(4), naive_with_gradient, x)


def test_zeros_stay_zeros_with_a_finite_gradient():
    x = torch.zeros(2, 3, 4, requires_grad=True)
    out = L2Norm(4)(x)
    assert not out.any()
    assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("audio_frames", [1, 3, 5])
def test_joint_norm_divides_by_the_length_of_the_frames_numbers_side_by_side(audio_frames):
    torch.manual_seed(0)
    streams = {"rgb": torch.randn(2, 5, 3), "audio": torch.randn(2, audio_frames, 2)}
    streams["rgb"][1, 2:] = 0.0
    streams["audio"][1, 2:] = 0.0
    normed = joint_l2_norm(streams)
    for b in range(2):
        for t in range(5):
            frame = {name: x[b, t].double() for name, x in streams.items() if t < x.shape[1]}
            length = math.sqrt(max(sum(v.item() ** 2 for x in frame.values() for v in x), 1e-12))
            for name, x in frame.items():
                torch.testing.assert_close(normed[name][b, t].double(), x / length, rtol=1e-5, atol=1e-6)
    assert {name: x.shape for name, x in normed.items()} == {name: x.shape for name, x in streams.items()}


def test_joint_norm_of_one_stream_is_the_plain_norm():
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(joint_l2_norm({"rgb": x})["rgb"], L2Norm(4)(x))
