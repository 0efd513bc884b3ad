"""VGGish, the audio network behind AudioSet's and YouTube-8M's 128 numbers a second.

    log mel (96, 64) → conv 64, pool → conv 128, pool → 2 conv 256, pool → 2 conv 512, pool
                     → 4096 → 4096 → 128

Hershey et al., CNN Architectures for Large-Scale Audio Classification, 2017, arXiv:1609.09430, as released
in github.com/tensorflow/models/tree/master/research/audioset/vggish. The embedding has no activation: the
published PCA was made so (its mean is negative in places), and older copies of the code that end in a
rectifier do not fit it. `Projection.load("vggish_pca_params.npz")` and the quantiser make of it what AudioSet
and YouTube-8M published, up to how they cut the seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from tagreel.decoding import Sound
from tagreel.encoders._identity import identity
from tagreel.encoders._inputs import check
from tagreel.encoders._log_mel import RATE, log_mel
from tagreel.encoders._rows import rows
from tagreel.encoders._weights import hash_of_files, read
from tagreel.errors import DataError
from tagreel.runtime import pick_device


class VGGish:
    """(n, 15600) at 16 kHz, 0.975 s that make 96 frames, to (n, 128), before the PCA.

    The weights are a safetensors file with the names of the PyTorch port torchvggish: `features.I.weight`
    (out, in, 3, 3) and `.bias` for I = 0, 3, 6, 8, 11, 13, and `embeddings.I.weight` (out, in) and `.bias`
    for I = 0, 2, 4. From TensorFlow's checkpoint, its variables saved in an .npz by their names:

        layers = ["conv1", "conv2", "conv3/conv3_1", "conv3/conv3_2", "conv4/conv4_1", "conv4/conv4_2",
                  "fc1/fc1_1", "fc1/fc1_2", "fc2"]
        names = [f"features.{i}" for i in (0, 3, 6, 8, 11, 13)] + [f"embeddings.{i}" for i in (0, 2, 4)]
        tensors = {}
        for layer, name in zip(layers, names):
            weights = npz[f"vggish/{layer}/weights"]
            weights = weights.transpose(3, 2, 0, 1) if weights.ndim == 4 else weights.T
            tensors[f"{name}.weight"] = np.ascontiguousarray(weights)
            tensors[f"{name}.bias"] = npz[f"vggish/{layer}/biases"]
        safetensors.numpy.save_file(tensors, "vggish.safetensors")
    """

    kind = "vggish"
    expects = "a safetensors file with its weights, vggish:vggish.safetensors"

    def __init__(self, what: str, *, device: str = "auto") -> None:
        self.what = what
        self.stream = "audio"
        self.wants = Sound(rate=RATE, seconds=0.975)
        self.out_dim = 128
        self.device = pick_device(device)
        content = read(what)
        self.weights = hash_of_files(content)
        self.network = _loaded(content, path=what).to(self.device)

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Encode windows of sound; raises `ValueError` for any other input."""
        check(inputs, self.wants)
        return rows(self.network, inputs, self.out_dim, device=self.device)

    def identity(self) -> dict[str, Any]:
        """What determines the features."""
        return identity(
            self.kind,
            self.what,
            wants=self.wants,
            out_dim=self.out_dim,
            options={},
            weights=self.weights,
            packages=("torch",),
        )


class Network(nn.Module):
    """Sound (n, 15600) to embeddings (n, 128)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for widths in ((64,), (128,), (256, 256), (512, 512)):
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(6 * 4 * 512, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)
        )

    def forward(self, sound: Tensor) -> Tensor:
        """The embeddings."""
        maps = self.features(log_mel(sound)[:, None])  # (n, 512, 6, 4)
        # Channels last, as TensorFlow flattened them when the weights were learned.
        embeddings: Tensor = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))
        return embeddings


def _loaded(content: bytes, *, path: str) -> Network:
    try:
        tensors: Mapping[str, Tensor] = safetensors.torch.load(content)
    except SafetensorError as error:
        raise DataError(f"is not a whole safetensors file: {error}", path=path) from error
    with torch.device("meta"):
        network = Network()
    for name, expected in network.state_dict().items():
        if name not in tensors:
            raise DataError(f"has no tensor {name!r}, which VGGish needs", path=path)
        if tensors[name].shape != expected.shape:
            raise DataError(
                f"{name!r} is {tuple(tensors[name].shape)}; VGGish's is {tuple(expected.shape)}", path=path
            )
    mine = {name: tensors[name].float() for name in network.state_dict()}
    network.load_state_dict(mine, assign=True)
    return network.eval()
