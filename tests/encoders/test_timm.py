from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tagreel.decoding import Pictures
from tagreel.encoding import find
from tagreel.errors import DataError

try:
    import timm
except (ImportError, OSError, RuntimeError) as error:  # a torchvision of another build than torch
    pytest.skip(f'needs pip install "tagreel[timm]": {error}', allow_module_level=True)

CONFIG = {"input_size": [3, 32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "crop_pct": 0.8}


def save(folder, seed=0, **config):
    torch.manual_seed(seed)
    config = {**CONFIG, **config}
    network = timm.create_model("resnet18", num_classes=7, pretrained_cfg_overlay=config).eval()
    timm.models.save_for_hf(network, folder, safe_serialization=True)
    return network


def example(folder, seed):
    save(folder / "model", seed)
    return "rgb", f"timm:{folder / 'model'}", []


def pictures(size=32):
    return np.random.default_rng(1).integers(0, 256, (3, size, size, 3), np.uint8)


def test_pictures_get_what_the_classifier_gets(tmp_path):
    network = save(tmp_path)
    encoder = find(f"timm:{tmp_path}", slot="rgb")
    assert encoder.wants == Pictures(resize=40, crop=32)
    values = torch.tensor(((pictures() / 255 - CONFIG["mean"]) / CONFIG["std"]).transpose(0, 3, 1, 2)).float()
    expected = network.forward_head(network.forward_features(values), pre_logits=True)
    np.testing.assert_allclose(encoder(pictures()), expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_pictures_are_stretched_where_the_model_wants_that(tmp_path):
    save(tmp_path, crop_mode="squash")
    assert find(f"timm:{tmp_path}", slot="rgb").wants == Pictures(resize=(32, 32), crop=None)


def test_pickled_weights_are_not_read(tmp_path):
    network = save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"has no model.safetensors"):
        find(f"timm:{tmp_path}", slot="rgb")


def test_a_model_that_timm_does_not_know_is_told(tmp_path):
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "nonsense"}))
    with pytest.raises(DataError, match=r"cannot be loaded: .*nonsense"):
        find(f"timm:{tmp_path}", slot="rgb")
