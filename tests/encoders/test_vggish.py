from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch

from tagreel.encoders._log_mel import log_mel
from tagreel.encoders.vggish import Network, VGGish
from tagreel.errors import DataError

# Where TensorFlow's checkpoint has each layer, as in the class's docstring.
LAYERS = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3/conv3_1": "features.6",
    "conv3/conv3_2": "features.8",
    "conv4/conv4_1": "features.11",
    "conv4/conv4_2": "features.13",
    "fc1/fc1_1": "embeddings.0",
    "fc1/fc1_2": "embeddings.2",
    "fc2": "embeddings.4",
}


def example(folder, seed):
    """Weights of the true size, which there is no other of, in 16 bits: half the disk."""
    torch.manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Network().state_dict().items()}
    tensors = {
        name: (
            torch.randn(shape) * (2 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else torch.randn(shape) / 10
        ).bfloat16()
        for name, shape in shapes.items()
    }
    safetensors.torch.save_file(tensors, folder / "vggish.safetensors")
    return "audio", f"vggish:{folder / 'vggish.safetensors'}", []


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vggish")
    example(folder, 0)
    return folder / "vggish.safetensors"


def log_mel_by_hand(sound):
    """96 frames of 64 bands, by the description of the release, a frame and a band at a time, in float64."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)

    def mel(hertz):
        return 2595 * np.log10(1 + hertz / 700)

    edges = 700 * (10 ** (np.linspace(mel(125), mel(7500), 66) / 2595) - 1)
    bins = np.arange(257) * 16000 / 512
    frames = []
    for start in range(0, len(sound) - 399, 160):
        spectrum = np.abs(np.fft.fft(sound[start : start + 400].astype(np.float64) * window, 512))[:257]
        bands = []
        for left, centre, right in zip(edges, edges[1:], edges[2:], strict=False):
            rising = (mel(bins) - mel(left)) / (mel(centre) - mel(left))
            falling = (mel(right) - mel(bins)) / (mel(right) - mel(centre))
            triangle = np.maximum(0, np.minimum(rising, falling))
            triangle[0] = 0
            bands.append(np.log(spectrum @ triangle + 0.01))
        frames.append(bands)
    return np.array(frames)


def network_by_hand(patch, weights):
    """As in TensorFlow: height, width, channels in that order, kernels (3, 3, in, out), zeros around."""

    def convolved(maps, kernel, bias):
        padded = np.pad(maps, ((1, 1), (1, 1), (0, 0)))
        height, width, _ = maps.shape
        total = sum(padded[y : y + height, x : x + width] @ kernel[y, x] for y in range(3) for x in range(3))
        return np.maximum(total + bias, 0)

    def halved(maps):
        height, width, channels = maps.shape
        return maps.reshape(height // 2, 2, width // 2, 2, channels).max((1, 3))

    maps = patch[:, :, None]
    for group in (
        ["conv1"],
        ["conv2"],
        ["conv3/conv3_1", "conv3/conv3_2"],
        ["conv4/conv4_1", "conv4/conv4_2"],
    ):
        for layer in group:
            maps = convolved(maps, *weights[layer])
        maps = halved(maps)
    values = maps.reshape(-1)
    for layer in ("fc1/fc1_1", "fc1/fc1_2"):
        values = np.maximum(values @ weights[layer][0] + weights[layer][1], 0)
    return values @ weights["fc2"][0] + weights["fc2"][1]


@pytest.mark.parametrize("loudness", [1.0, 1e-3, 0.0])
def test_the_log_mel_is_the_description_in_loops(loudness):
    sound = loudness * np.random.default_rng(0).uniform(-1, 1, 15600).astype(np.float32)
    found = log_mel(torch.from_numpy(sound)[None])
    assert found.shape == (1, 96, 64)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0], log_mel_by_hand(sound), rtol=0, atol=1e-6)


def test_it_has_as_many_weights_as_the_release():
    with torch.device("meta"):
        network = Network()
    layers = [(1 * 9, 64), (64 * 9, 128), (128 * 9, 256), (256 * 9, 256), (256 * 9, 512), (512 * 9, 512)]
    layers += [(6 * 4 * 512, 4096), (4096, 4096), (4096, 128)]
    assert sum(p.numel() for p in network.parameters()) == sum((i + 1) * o for i, o in layers) == 72_141_184


def test_it_is_the_network_of_the_release(weights):
    encoder = VGGish(str(weights), device="cpu")
    tensors = {name: tensor.double().numpy() for name, tensor in safetensors.torch.load_file(weights).items()}
    released = {}
    for layer, name in LAYERS.items():
        weight = tensors[f"{name}.weight"]
        weight = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        released[layer] = weight, tensors[f"{name}.bias"]
    sound = np.random.default_rng(0).uniform(-1, 1, (1, 15600)).astype(np.float32)
    expected = network_by_hand(log_mel_by_hand(sound[0]), released)
    assert (expected < 0).any(), "or a rectifier at the end would not show"
    np.testing.assert_allclose(encoder(sound)[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.pop("embeddings.4.bias"), r"has no tensor 'embeddings.4.bias'"),
        (
            lambda tensors: tensors.update({"features.0.bias": torch.zeros(3)}),
            r"is \(3,\); VGGish's is \(64,\)",
        ),
    ],
)
def test_other_networks_are_refused(weights, tmp_path, change, reason):
    tensors = safetensors.torch.load_file(weights)
    change(tensors)
    safetensors.torch.save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=reason):
        VGGish(str(tmp_path / "other.safetensors"))
