from __future__ import annotations

import json
import os
from functools import partial

# Before huggingface_hub is imported: it asks the hub five times, and waits.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import safetensors.torch
import torch

transformers = pytest.importorskip("transformers", reason='needs pip install "tagreel[encoders]"')

from tagreel.decoding import Pictures, Sound  # noqa: E402
from tagreel.encoding import find  # noqa: E402
from tagreel.errors import DataError, RecipeError  # noqa: E402

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 100,
}
SQUARE = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
CROPPED = {
    **SQUARE,
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
}


def clip():
    config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=16)
    return transformers.CLIPModel(config)


def siglip():
    return transformers.SiglipModel(transformers.SiglipConfig(vision_config=VISION, text_config=TEXT))


def dinov2():
    return transformers.Dinov2Model(transformers.Dinov2Config(**VISION))


def dinov3():
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**VISION))


def ast():
    config = {name: VISION[name] for name in VISION if name not in ("image_size", "patch_size")}
    return transformers.ASTModel(transformers.ASTConfig(**config, max_length=64, num_mel_bins=64))


def clap(**fusion):
    audio = {
        **fusion,
        "hidden_size": 32,
        "spec_size": 128,
        "num_mel_bins": 64,
        "patch_embeds_hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "window_size": 4,
    }
    return transformers.ClapModel(
        transformers.ClapConfig(audio_config=audio, text_config=TEXT, projection_dim=16)
    )


def wav2vec2():
    config = {name: VISION[name] for name in VISION if name not in ("image_size", "patch_size")}
    layers = {
        "conv_dim": (8, 8),
        "conv_stride": (10, 8),
        "conv_kernel": (10, 8),
        "num_feat_extract_layers": 2,
    }
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    return transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**config, **layers, **positions))


def save(folder, model, settings, seed=0):
    """A folder as the hub has it, with weights out of a seed."""
    torch.manual_seed(seed)
    network = model()
    with torch.no_grad():
        for parameter in network.parameters():  # biases and scales too, which start as zeros and ones
            parameter += 0.02 * torch.randn_like(parameter)
    network.save_pretrained(folder)
    if isinstance(settings, dict):
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    else:
        settings.save_pretrained(folder)
    return network.eval()


def example(folder, seed):
    save(folder / "model", siglip, SQUARE, seed)
    return "rgb", f"transformers:{folder / 'model'}", []


def open_(folder, *settings, slot="rgb"):
    return find(f"transformers:{folder}", [f"{slot}.{setting}" for setting in settings], slot=slot)


def pictures(count=3):
    return np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), np.uint8)


def normalised(values):
    return torch.tensor(((values / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]).transpose(0, 3, 1, 2)).float()


def sound(rate, seconds, count=3):
    return np.random.default_rng(1).uniform(-0.5, 0.5, (count, round(rate * seconds))).astype(np.float32)


def same(found, expected):
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("model", "embed"),
    [
        (clip, lambda m, x: m.visual_projection(m.vision_model(x).pooler_output)),
        (siglip, lambda m, x: m.vision_model(x).pooler_output),
        (dinov2, lambda m, x: m(x).last_hidden_state[:, 0]),
        (dinov3, lambda m, x: m(x).last_hidden_state[:, 0]),
    ],
)
def test_pictures_get_the_models_own_embedding(tmp_path, model, embed):
    network = save(tmp_path, model, SQUARE)
    encoder = open_(tmp_path)
    assert encoder.wants == Pictures(resize=(32, 32), crop=None)
    same(encoder(pictures()), embed(network, normalised(pictures())))


@pytest.mark.parametrize("name", ["SiglipImageProcessorPil", "CLIPImageProcessorPil"])
def test_pictures_are_normalised_as_by_the_processor(tmp_path, name):
    pytest.importorskip("PIL", reason="the processors that need no torchvision need pillow")
    processor = getattr(transformers, name)(size={"height": 32, "width": 32}, do_center_crop=False)
    network = save(tmp_path, dinov2, processor)
    expected = network(processor(list(pictures()), return_tensors="pt")["pixel_values"]).pooler_output
    same(open_(tmp_path)(pictures()), expected)


@pytest.mark.parametrize(
    ("settings", "wants"),
    [
        (CROPPED, Pictures(resize=40, crop=32)),
        ({**CROPPED, "size": 40, "crop_size": 32}, Pictures(resize=40, crop=32)),
        ({**SQUARE, "size": 32}, Pictures(resize=(32, 32), crop=None)),
        ({**SQUARE, "crop_size": None}, Pictures(resize=(32, 32), crop=None)),
        ({**CROPPED, "do_center_crop": False, "size": {"shortest_edge": 32}}, Pictures(resize=32, crop=32)),
        ({**CROPPED, "size": {"height": 40, "width": 50}}, Pictures(resize=(40, 50), crop=32)),
    ],
)
def test_pictures_are_cut_as_the_file_says(tmp_path, settings, wants):
    save(tmp_path, dinov2, settings)
    assert open_(tmp_path).wants == wants


def test_numbers_may_stay_bytes_and_unscaled(tmp_path):
    network = save(tmp_path, dinov2, {"size": 32, "do_normalize": False, "rescale_factor": 0.01})
    same(
        open_(tmp_path)(pictures()),
        network(torch.tensor(pictures()).permute(0, 3, 1, 2) * 0.01).pooler_output,
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({**SQUARE, "size": {"longest_edge": 32}}, "asks for no single size"),
        ({**SQUARE, "size": None, "max_num_patches": 256}, "asks for no single size"),
        ({**CROPPED, "crop_pct": 0.9}, "asks for no single size"),
        ({**CROPPED, "crop_size": {"height": 32, "width": 16}}, "asks for no single size"),
        ({"size": 32}, "has no image_mean and image_std"),
    ],
)
def test_pictures_that_cannot_be_made_are_refused(tmp_path, settings, reason):
    save(tmp_path, dinov2, settings)
    with pytest.raises(DataError, match=reason):
        open_(tmp_path)


def test_pooling_without_trained_weights_is_left_out(tmp_path):
    """ViT's pooler is drawn at random where the file is a classifier's, and otherwise each time."""
    classifier = save(
        tmp_path, lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**VISION)), SQUARE
    )
    found = open_(tmp_path)(pictures())
    same(found, classifier.vit(normalised(pictures())).last_hidden_state.mean(1))
    assert open_(tmp_path).identity() == open_(tmp_path).identity()


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path):
    save(tmp_path, dinov2, SQUARE)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del tensors["encoder.layer.1.attention.attention.query.weight"]
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 of the model's tensors, such as encoder.layer.1"):
        open_(tmp_path)


def test_pickled_weights_are_not_read(tmp_path):
    network = save(tmp_path, dinov2, SQUARE)
    (tmp_path / "model.safetensors").unlink()
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"cannot be loaded: .*model.safetensors"):
        open_(tmp_path)


def test_sound_goes_through_ast(tmp_path):
    extractor = transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=64)
    network = save(tmp_path, ast, extractor)
    encoder = open_(tmp_path, slot="audio")
    assert encoder.wants == Sound(rate=16000, seconds=0.64)
    heard = sound(16000, 0.64)
    expected = network(**extractor(list(heard), sampling_rate=16000, return_tensors="pt")).pooler_output
    same(encoder(heard), expected)
    assert open_(tmp_path, "seconds=0.5", slot="audio").wants == Sound(rate=16000, seconds=0.5)
    with pytest.raises(
        RecipeError, match=r"seconds=0.7: expected at most 0.64, which is all that the model takes"
    ):
        open_(tmp_path, "seconds=0.7", slot="audio")


@pytest.mark.parametrize(
    ("truncation", "fusion"),
    [("rand_trunc", {}), ("fusion", {"enable_fusion": True, "fusion_type": "aff_2d"})],
)
def test_sound_goes_through_clap(tmp_path, truncation, fusion):
    extractor = transformers.ClapFeatureExtractor(max_length_s=1, truncation=truncation)
    network = save(tmp_path, partial(clap, **fusion), extractor)
    encoder = open_(tmp_path, slot="audio")
    assert encoder.wants == Sound(rate=48000, seconds=1.0)
    heard = sound(48000, 1.0)
    rows = []
    for window in heard:  # each as if alone: where none is longer, fusion treats one at random as if it were
        inputs = extractor(window, sampling_rate=48000, return_tensors="pt")
        rows.append(network.audio_projection(network.audio_model(**inputs).pooler_output))
    same(encoder(heard), torch.nn.functional.normalize(torch.cat(rows), dim=-1))
    assert encoder.out_dim == 16
    np.testing.assert_array_equal(encoder(heard), encoder(heard[::-1])[::-1])
    same(encoder._encode(torch.from_numpy(heard)).detach(), torch.from_numpy(encoder(heard)))  # as on a GPU


def test_sound_of_any_length_goes_through_wav2vec2(tmp_path):
    extractor = transformers.Wav2Vec2FeatureExtractor()
    network = save(tmp_path, wav2vec2, extractor)
    encoder = open_(tmp_path, slot="audio")
    assert encoder.wants == Sound(rate=16000, seconds=1.0)
    heard = sound(16000, 1.0)
    expected = network(**extractor(list(heard), sampling_rate=16000, return_tensors="pt")).last_hidden_state
    same(encoder(heard), expected.mean(1))
    assert open_(tmp_path, "seconds=2", slot="audio").wants == Sound(rate=16000, seconds=2.0)


def test_seconds_are_for_sound(tmp_path):
    save(tmp_path, dinov2, SQUARE)
    with pytest.raises(RecipeError, match=r"seconds=1: the model takes pictures"):
        open_(tmp_path, "seconds=1")


def test_a_folder_without_settings_or_a_model_is_told(tmp_path):
    save(tmp_path, dinov2, SQUARE)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(DataError, match=r"cannot be loaded: .*preprocessor_config.json"):
        open_(tmp_path)


def test_what_the_hub_does_not_give_is_told(tmp_path):
    with pytest.raises(DataError, match=r"nobody/nothing@v1: cannot be loaded"):
        open_("nobody/nothing@v1")


def test_loading_says_nothing(tmp_path, capfd):
    save(tmp_path, dinov2, SQUARE)
    capfd.readouterr()
    open_(tmp_path)
    assert capfd.readouterr() == ("", "")
