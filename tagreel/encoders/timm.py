"""Image models of timm, by their name on the Hugging Face hub or from a folder."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagreel.decoding import Pictures
from tagreel.encoders._identity import identity
from tagreel.encoders._inputs import check, normalised, size_of
from tagreel.encoders._needs import need
from tagreel.encoders._rows import rows
from tagreel.encoders._weights import hash_of_tensors
from tagreel.errors import DataError
from tagreel.runtime import pick_device

_FILES = ["config.json", "model.safetensors"]


class Timm:
    """Pictures (n, H, W, 3) to what the model gives its classifier, (n, D).

    `timm:resnet50.a1_in1k` is timm's own model of that name, `timm:OWNER/NAME` anybody's on the hub, with
    `@REVISION` that branch, tag or commit of it, and `timm:FOLDER` one that lies here: config.json and
    model.safetensors, as on the hub. Pictures are resized, cropped and normalised as the model's config says.
    """

    kind = "timm"
    expects = "a model of timm or a folder, timm:vit_small_patch14_dinov2.lvd142m"

    def __init__(self, what: str, *, device: str = "auto") -> None:
        self.what, self.stream, self.device = what, "rgb", pick_device(device)
        timm = need("timm", extra=self.kind)
        try:
            folder = what if os.path.isdir(what) else _downloaded(what)
            # timm itself falls back to pickles where a model has no safetensors.
            if not os.path.exists(os.path.join(folder, "model.safetensors")):
                raise DataError("has no model.safetensors", path=what)
            network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
        except DataError:
            raise
        except Exception as error:  # of timm, the hub, safetensors or torch, whatever is wrong there
            raise DataError(f"cannot be loaded: {' '.join(str(error).split())}", path=what) from error
        self.weights = hash_of_tensors(network.state_dict())
        self.network = network.eval().to(self.device)
        config = timm.data.resolve_model_data_config(network)
        _, height, width = config["input_size"]
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        if height == width and config["crop_mode"] != "squash":
            self.wants = Pictures(resize=math.floor(height / config["crop_pct"]), crop=height)
        else:
            self.wants = Pictures(resize=(height, width), crop=None)
        with torch.inference_mode():
            self.out_dim = self._encode(torch.zeros(1, *size_of(self.wants), 3, device=self.device)).shape[1]

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Encode pictures; raises `ValueError` for any other input."""
        check(inputs, self.wants)
        return rows(self._encode, inputs, self.out_dim, device=self.device)

    def identity(self) -> dict[str, Any]:
        """What determines the features."""
        return identity(
            self.kind,
            self.what,
            wants=self.wants,
            out_dim=self.out_dim,
            options={},
            weights=self.weights,
            preparation={"mean": self.mean, "std": self.std},
            packages=("timm", "torch"),
        )

    def _encode(self, pictures: Tensor) -> Tensor:
        values = normalised(pictures, self.mean, self.std, scale=1 / 255)
        found: Tensor = self.network(values).flatten(1)
        return found


def _downloaded(what: str) -> str:
    hub = need("huggingface_hub", extra="timm")
    name, _, revision = (what if "/" in what else f"timm/{what}").partition("@")
    return str(hub.snapshot_download(name, revision=revision or None, allow_patterns=_FILES))
