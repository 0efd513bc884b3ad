from __future__ import annotations

import sys

import pytest

from tagreel.encoding import encoders, find, from_identity
from tagreel.errors import DataError, RecipeError


def test_options_are_set_by_the_slots_name():
    assert find("layout", slot="rgb").out_dim == 224
    assert find("layout", ["rgb.grid=5", "rgb.grid=2"], slot="rgb").out_dim == 56


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "tfite:a.tflite",
            r"rgb: there is no encoder 'tfite'; did you mean tflite\? \(it has: layout, mel, .*\)",
        ),
        (
            "models/a.tflite",
            r"rgb: there is no encoder 'models/a.tflite'; did you mean tflite:models/a.tflite\?",
        ),
        ("a.ONNX", r"rgb: there is no encoder 'a.ONNX'; did you mean onnx:a.ONNX\?"),
        ("", r"rgb: there is no encoder ''"),
        ("tflite", r"rgb: tflite needs to be told what: a TensorFlow Lite file, tflite:mobilenet.tflite"),
        ("transformers:", r"rgb: transformers needs to be told what: .*google/siglip2-base-patch16-224"),
        ("layout:a", r"rgb: layout is all of this encoder's name; found layout:a"),
        ("mel", r"rgb: mel takes sound; it goes to audio"),
    ],
)
def test_names_that_there_are_not_are_told(name, reason):
    with pytest.raises(RecipeError, match=reason):
        find(name, slot="rgb")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("grid=2", r"--set grid=2: expected rgb.OPTION=VALUE"),
        ("audio.grid=2", r"--set audio.grid=2: expected rgb.OPTION=VALUE"),
        ("rgb.grid", r"--set grid: expected OPTION=VALUE"),
        ("rgb.gird=2", r"rgb: Layout has no option 'gird'; did you mean grid\?"),
        ("rgb.grid=two", r"rgb.grid: expected int, found 'two'"),
        ("rgb.grid=-1", r"rgb: layout: grid=-1: expected 1 cell or more"),
    ],
)
def test_settings_that_there_are_not_are_told(setting, reason):
    with pytest.raises(RecipeError, match=reason):
        find("layout", [setting], slot="rgb")


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [
        ("timm", "timm", "timm"),
        ("transformers", "transformers", "encoders"),
        ("onnx", "onnx", "onnx"),
        ("tflite", "ai_edge_litert.interpreter", "tflite"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, kind, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "model").mkdir() if kind == "transformers" else (tmp_path / "model").write_bytes(b"")
    with pytest.raises(
        RecipeError, match=rf'rgb: {kind}: .* is not installed: pip install "tagreel\[{extra}\]"$'
    ):
        find(f"{kind}:{tmp_path / 'model'}", slot="rgb")


def test_a_package_that_is_broken_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist\\nmore')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(
        RecipeError, match=r"timm is installed, but cannot be imported: operator torchvision::nms"
    ):
        find("timm:resnet18", slot="rgb")


def test_every_kind_says_what_it_expects_by_an_example_of_its_own():
    for kind, made in encoders().items():
        assert made.expects is None or f", {kind}:" in made.expects or f": {kind}:" in made.expects


def test_what_a_model_remembers_makes_the_encoder_again():
    identity = find("layout", ["rgb.grid=2"], slot="rgb").identity()
    assert from_identity(identity, slot="rgb").identity() == identity
    with pytest.raises(
        RecipeError, match=r"audio: layout takes pictures; it goes to rgb|layout takes pictures"
    ):
        from_identity(identity, slot="audio")


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"kind": "hologram"}, RecipeError, r"rgb: this version of tagreel has no encoder 'hologram'"),
        ({"options": {"grid": 2, "depth": 3}}, RecipeError, r"rgb: Layout has no option 'depth'"),
        ({"options": {"grid": "2"}}, RecipeError, r"rgb.grid: expected int, found '2'"),
        (
            {"out_dim": 57},
            DataError,
            r"layout: makes other features than 'rgb' was made of: its out_dim 56, expected 57",
        ),
        (
            {"preparation": {"resize": 9}},
            DataError,
            r'its preparation \{"resize": \[32, 32\].*, expected \{"resize": 9\}',
        ),
    ],
)
def test_what_this_version_cannot_make_again_is_told(change, error, reason):
    identity = find("layout", ["rgb.grid=2"], slot="rgb").identity()
    with pytest.raises(error, match=reason):
        from_identity({**identity, **change}, slot="rgb")
