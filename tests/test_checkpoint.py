from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import tagreel
from tagreel import checkpoint
from tagreel.errors import DataError, RecipeError, TagreelError
from tagreel.tagger import Tagger, build


@pytest.fixture
def model(tiny, planted) -> Tagger:
    torch.manual_seed(0)
    return build(tiny, label_names=planted.label_names)


@pytest.fixture
def saved(model, tmp_path) -> Path:
    """A run's folder with two checkpoints."""
    for step in (3, 12):
        checkpoint.save(tmp_path / "run", step, model, model.state_dict(), facts={"step": step})
    return tmp_path / "run"


FRAMES = {"rgb": np.full((5, 12), 7, np.uint8), "audio": np.full((5, 6), 200, np.uint8)}


def test_a_loaded_tagger_predicts_as_the_saved_one(saved, model, planted):
    loaded = tagreel.load(saved)
    assert not loaded.training
    assert loaded.features == {"rgb": 12, "audio": 6}
    assert loaded.predict(FRAMES) == model.predict(FRAMES)
    assert {tag.name for tag in loaded.predict(FRAMES, top_k=200)} == set(planted.label_names)
    assert checkpoint.facts(checkpoint.find(saved, "last")) == {"step": 12}


@pytest.mark.parametrize(
    ("which", "step"),
    [("last", 12), ("best", 12), ("step-3", 3), ("step-00000003", 3), ("12", 12)],
)
def test_checkpoints_are_found_by_name(saved, which, step):
    assert checkpoint.find(saved, which).name == f"step-{step:08d}"


def test_the_best_is_the_one_that_was_noted(saved):
    checkpoint.note_best(saved, {"step": 3, "gap@20": 0.5})
    assert checkpoint.find(saved).name == "step-00000003"
    assert checkpoint.find(saved, "last").name == "step-00000012"


def test_a_checkpoints_own_folder_is_taken_as_it_is(saved):
    folder = saved / "checkpoints" / "step-00000003"
    assert checkpoint.find(folder) == folder
    assert checkpoint.load(folder).classes == 120


@pytest.mark.parametrize("which", ["step-4", "", "newest", "step-"])
def test_an_unknown_checkpoint_is_an_error_that_lists_them(saved, which):
    with pytest.raises(DataError, match="it has: step-00000003, step-00000012"):
        checkpoint.find(saved, which)


@pytest.mark.parametrize("content", ["[]", "{}", '"best"', '{"checkpoint": "step-00000099"}'])
def test_a_best_that_is_gone_is_an_error_that_lists_the_others(saved, content):
    (saved / "best.json").write_text(content)
    with pytest.raises(DataError, match="it has: step-00000003, step-00000012"):
        checkpoint.find(saved)


def test_an_empty_or_missing_folder_is_one_line(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="holds no checkpoint; expected the folder that `tagreel train`"):
            tagreel.load(folder)


# ---------------------------------------------------------------------- writing


class KilledError(Exception):
    """Stands for a kill at one call of the operating system."""


@pytest.mark.parametrize("survived", range(6))
def test_a_checkpoint_cut_off_anywhere_is_ignored(survived, saved, model, monkeypatch):
    """Killed at the first, second, ... rename or flush of a save, the one before it is still the last."""
    calls = 0
    real_replace = os.replace

    def dying(real):
        def call(*arguments):
            nonlocal calls
            if calls == survived:
                raise KilledError
            calls += 1
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying(real_replace))
        patch.setattr(os, "fsync", dying(lambda descriptor: None))
        arguments = {"facts": {}, "training": {"x": torch.ones(3)}, "position": {"step": 13}}
        with pytest.raises(KilledError):
            checkpoint.save(saved, 13, model, model.state_dict(), **arguments)
    assert [folder.name for folder in checkpoint.checkpoints(saved)] == ["step-00000003", "step-00000012"]
    checkpoint.load(saved, checkpoint="last")
    checkpoint.save(saved, 13, model, model.state_dict(), **arguments)
    names = {path.name for path in checkpoint.checkpoints(saved)[-1].iterdir()}
    assert names == {"model.json", "model.safetensors", "training.json", "training.safetensors"}


def test_saving_a_step_again_replaces_it_whole(saved, model):
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    folder = checkpoint.save(saved, 12, model, zeros, facts={})
    assert not any(t.any() for t in load_file(folder / "model.safetensors").values())
    assert len(list((saved / "checkpoints").iterdir())) == 2


def test_weights_that_share_memory_are_saved(tmp_path, model):
    weights = model.state_dict()
    shared = {**weights, "view": next(iter(weights.values()))}
    folder = checkpoint.save(tmp_path, 1, model, shared, facts={})
    assert "view" in load_file(folder / "model.safetensors")


def test_a_full_disk_is_one_line(tmp_path, model, monkeypatch):
    def full(tensors, path, **_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        checkpoint.save(tmp_path, 1, model, model.state_dict(), facts={})
    assert not checkpoint.checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("best", "left"),
    [(None, [4, 5]), ("step-00000001", [1, 4, 5]), ("step-00000005", [4, 5]), ("step-00000009", [4, 5])],
)
def test_pruning_keeps_the_last_and_the_best(best, left, tmp_path, model):
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, model, {"x": torch.zeros(1)}, facts={})
    (tmp_path / "checkpoints" / "step-00000002.partial").mkdir()
    (tmp_path / "checkpoints" / "notes").mkdir()
    checkpoint.prune(tmp_path, keep=2, best=best)
    assert [int(folder.name[5:]) for folder in checkpoint.checkpoints(tmp_path)] == left
    others = {path.name for path in (tmp_path / "checkpoints").iterdir() if not path.name[5:].isdigit()}
    assert others == {"notes"}


def test_a_removal_cut_off_in_the_middle_leaves_no_half_checkpoint(tmp_path, model, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, model, {"x": torch.zeros(1)}, facts={})

    def dying(folder, **options):
        if Path(folder).exists():
            (Path(folder) / "model.json").unlink()
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dying)
        with pytest.raises(KilledError):
            checkpoint.prune(tmp_path, keep=1, best=None)
    assert [folder.name for folder in checkpoint.checkpoints(tmp_path)] == ["step-00000002"]


def test_json_is_written_whole_and_in_utf8(tmp_path):
    path = tmp_path / "x.json"
    checkpoint.write_json(path, {"name": "Ünïcode, 犬"})
    assert "犬".encode() in path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoint.write_json(path, {"x": float("nan")})
    assert checkpoint.read_json(path) == {"name": "Ünïcode, 犬"}


# ---------------------------------------------------------------------- damage


def one_line(folder: Path, name: str) -> str:
    with pytest.raises(TagreelError) as caught:
        checkpoint.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    return message


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, -1])
def test_a_file_cut_short_is_one_line(saved, name, size):
    path = checkpoint.find(saved) / name
    data = path.read_bytes()
    path.write_bytes(data[:size] if size >= 0 else data[: len(data) // 2])
    one_line(saved, name)


def test_a_missing_file_is_one_line(saved):
    (checkpoint.find(saved) / "model.safetensors").unlink()
    assert "No such file" in one_line(saved, "model.safetensors")


@pytest.mark.parametrize("place", [0.2, 0.5, 0.99])
def test_a_flipped_bit_in_the_weights_is_noticed(saved, place):
    path = checkpoint.find(saved) / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(damaged[:8], "little")
    damaged[header + int(place * (len(damaged) - header))] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"model\.safetensors: is damaged: its checksum is"):
        checkpoint.load(saved)


@pytest.mark.parametrize("offset", [0, 3, 8, 20, 60])
def test_a_damaged_header_of_the_weights_is_one_line(saved, offset):
    path = checkpoint.find(saved) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x80
    path.write_bytes(data)
    one_line(saved, "model.safetensors")


@pytest.mark.parametrize(
    "content", ["[]", "3", "null", "{}", '{"format": 2}', '{"format": 1}', '{"format": 1, "recipe": []}']
)
def test_json_that_is_not_a_model_is_one_line(saved, content):
    (checkpoint.find(saved) / "model.json").write_text(content)
    one_line(saved, "model.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("features", None),
        ("features", {"rgb": "wide"}),
        ("features", ["rgb"]),
        ("classes", "many"),
        ("label_names", ["one"]),
        ("label_names", 5),
        ("recipe", {}),
        ("recipe", {"streams": 3}),
    ],
)
def test_a_value_of_another_type_is_one_line(saved, key, value):
    path = checkpoint.find(saved) / "model.json"
    description = json.loads(path.read_text())
    description["recipe"] |= {"classes": None, "features": {"rgb": None, "audio": None}}
    description[key] = value
    path.write_text(json.dumps(description))
    with pytest.raises(TagreelError) as caught:
        checkpoint.load(saved)
    assert "\n" not in str(caught.value)


def test_an_unchanged_description_loads(saved):
    """What the test above changes is what it fails for."""
    path = checkpoint.find(saved) / "model.json"
    description = json.loads(path.read_text())
    description["recipe"] |= {"classes": None, "features": {"rgb": None, "audio": None}}
    path.write_text(json.dumps(description))
    assert checkpoint.load(saved).classes == 120


def change_weights(folder: Path, change) -> Path:
    path = checkpoint.find(folder) / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    return path


def test_weights_of_another_model_are_told_apart(saved):
    def rename(weights):
        weights["other"] = weights.pop("head.linear.weight", None)

    name = next(name for name in load_file(checkpoint.find(saved) / "model.safetensors") if "weight" in name)
    change_weights(saved, lambda weights: weights.update({name: torch.zeros(2, 2)}))
    assert f"tensor {name!r} is (2, 2), the recipe says (120, 18)" in one_line(saved, "model.safetensors")
    change_weights(saved, lambda weights: weights.pop(name))
    assert f"no tensor {name!r}" in one_line(saved, "model.safetensors")
    change_weights(saved, lambda weights: weights.update({name: torch.zeros(120, 18), "x": torch.ones(1)}))
    assert "tensor 'x' is not in the recipe's model" in one_line(saved, "model.safetensors")


@pytest.mark.parametrize(
    "foreign",
    ["os.system", "subprocess.Popen", "tagreel.checkpoint.shutil.rmtree", "builtins.eval", "tagreel"],
)
def test_loading_refuses_classes_that_are_not_of_the_package(saved, foreign):
    path = checkpoint.find(saved) / "model.json"
    description = json.loads(path.read_text())
    description["recipe"]["head"] = {"class": foreign, "options": {}}
    path.write_text(json.dumps(description))
    with pytest.raises(RecipeError, match=r"trusted package|there is no"):
        tagreel.load(saved)


def test_no_file_of_a_run_is_a_pickle(run):
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors"}
    for path in files:
        assert path.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04")


# ---------------------------------------------------------------------- the same recipe


def test_the_same_recipe_may_differ_in_length_alone(tiny, tmp_path):
    from dataclasses import replace

    from tagreel.recipe import About, to_json

    checkpoint.write_json(tmp_path / "recipe.json", to_json(tiny))
    longer = replace(
        tiny, training=replace(tiny.training, epochs=9, steps=4), about=About(summary="other words")
    )
    checkpoint.check_same_recipe(tmp_path, longer)
    for other, reason in [
        (replace(tiny, classes=3), "classes = 120, now it is 3"),
        (replace(tiny, head=partial(tiny.head.func)), None),
        (replace(tiny, training=replace(tiny.training, ema=0.5)), "training.ema = 0.0, now it is 0.5"),
        (replace(tiny, optional=("audio",)), r'optional = \[\], now it is \["audio"\]'),
    ]:
        if reason is None:
            checkpoint.check_same_recipe(tmp_path, other)
        else:
            with pytest.raises(RecipeError, match=reason):
                checkpoint.check_same_recipe(tmp_path, other)
