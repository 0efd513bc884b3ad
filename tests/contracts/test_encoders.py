"""What every encoder promises; a new file in tagreel/encoders is found and held to it.

Its own test file, tests/encoders/test_KIND.py, has a function `example(folder, seed)`: it puts small weights
drawn from a seed into a folder, and returns slot, name and settings of the encoder that reads them.
"""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tagreel.encoders._inputs import dtype_of, shape_of
from tagreel.encoding import encoders, find, from_identity
from tagreel.errors import DataError, RecipeError

every_encoder = pytest.mark.parametrize("kind", list(encoders()))
with_weights = pytest.mark.parametrize("kind", [kind for kind, made in encoders().items() if made.expects])


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Slot, name and settings of an encoder with weights out of a seed, and the encoder; each made once."""
    made = {}

    def example(kind, seed=0):
        if (kind, seed) not in made:
            name = f"tests.encoders.test_{kind}"
            if not hasattr(sys.modules.get(name), "example"):
                sys.modules.pop(name, None)  # half of it, where it was skipped when it was collected
            write = importlib.import_module(name).example
            slot, name, settings = write(tmp_path_factory.mktemp(kind), seed)
            made[kind, seed] = (slot, name, settings), find(name, settings, slot=slot)
        return made[kind, seed]

    return example


@pytest.fixture
def encoder(examples, kind):
    return examples(kind)[1]


def inputs(encoder, count=5):
    rng = np.random.default_rng(0)
    shape = (count, *shape_of(encoder.wants))
    if encoder.stream == "rgb":
        return rng.integers(0, 256, shape, np.uint8)
    return rng.uniform(-0.5, 0.5, shape).astype(np.float32)


def weights_of(name):
    """The file that holds an encoder's weights."""
    path = Path(name.partition(":")[2])
    return path / "model.safetensors" if path.is_dir() else path


def raised(kinds, call, *arguments, **options):
    """The one line that a user reads."""
    with pytest.raises(kinds) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_walk_finds_the_encoders():
    assert {"layout", "mel", "vggish", "onnx", "tflite", "timm", "transformers"} <= set(encoders())


@every_encoder
def test_a_kind_is_called_as_its_file_and_every_option_has_a_default(kind):
    assert encoders()[kind].__module__ == f"tagreel.encoders.{kind}"
    parameters = list(inspect.signature(encoders()[kind]).parameters.values())
    named = [parameter for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    assert [parameter.name for parameter in named] == (["what"] if encoders()[kind].expects else [])
    assert all(p.default is not p.empty for p in parameters if p not in named)


@every_encoder
def test_one_row_of_float32_for_each_second(encoder):
    found = encoder(inputs(encoder))
    assert found.shape == (5, encoder.out_dim)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert encoder(inputs(encoder, 0)).shape == (0, encoder.out_dim)


@every_encoder
def test_other_seconds_give_other_rows_and_the_same_the_same(encoder):
    values = inputs(encoder)
    kept = values.copy()
    found = encoder(values)
    assert len({row.tobytes() for row in found}) == 5
    np.testing.assert_array_equal(encoder(values), found)
    np.testing.assert_array_equal(values, kept)


@every_encoder
def test_a_row_is_the_same_to_the_last_bit_whatever_else_is_in_the_call(encoder):
    values = inputs(encoder, 17)
    found = encoder(values)
    for index in (0, 7, 16):
        np.testing.assert_array_equal(encoder(values[index : index + 1])[0], found[index])
    np.testing.assert_array_equal(encoder(values[::-1])[::-1], found)
    np.testing.assert_array_equal(encoder(values[3:8]), found[3:8])


@every_encoder
def test_a_silent_black_second_is_one_as_well(encoder):
    found = encoder(np.zeros((1, *shape_of(encoder.wants)), dtype_of(encoder.wants)))
    assert np.isfinite(found).all()


@every_encoder
def test_its_identity_is_json_and_makes_it_again(encoder, kind):
    identity = encoder.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert list(identity) == ["kind", "what", "weights", "out_dim", "preparation", "options", "versions"]
    assert (identity["kind"], identity["out_dim"]) == (kind, encoder.out_dim)
    # Where it runs does not say what it computes.
    options = set(inspect.signature(encoders()[kind]).parameters) - {"what", "device"}
    assert set(identity["options"]) == options
    again = from_identity(identity, slot=encoder.stream)
    assert again.identity() == identity
    np.testing.assert_array_equal(again(inputs(encoder, 2)), encoder(inputs(encoder, 2)))


@with_weights
def test_other_weights_have_another_identity(examples, kind):
    encoder, other = examples(kind)[1], examples(kind, 1)[1]
    assert len(encoder.identity()["weights"]) == 64
    assert encoder.identity()["weights"] != other.identity()["weights"]
    assert (encoder(inputs(encoder)) != other(inputs(encoder))).any()
    line = raised(DataError, from_identity, encoder.identity(), slot=encoder.stream, what=other.what)
    assert "its weights" in line


@with_weights
def test_weights_that_were_moved_are_the_same(examples, kind, tmp_path):
    (slot, name, _), encoder = examples(kind)
    path, moved = name.partition(":")[2], str(tmp_path / Path(name).name)
    (shutil.copytree if Path(path).is_dir() else shutil.copy)(path, moved)
    identity = from_identity(encoder.identity(), slot=slot, what=moved).identity()
    assert identity == {**encoder.identity(), "what": moved}


@every_encoder
def test_what_is_not_its_input_is_told_in_one_line(encoder):
    values = inputs(encoder, 2)
    assert "expected" in raised(ValueError, encoder, values.astype(np.float64))
    assert f"found {values[:, 1:].shape}" in raised(ValueError, encoder, values[:, 1:])
    raised(ValueError, encoder, values[0])


@with_weights
def test_a_missing_or_damaged_file_is_told_in_one_line(examples, kind, tmp_path):
    (slot, name, settings), _ = examples(kind)
    assert "none/there" in raised(DataError, find, f"{kind}:{tmp_path}/none/there", settings, slot=slot)
    path, moved = name.partition(":")[2], tmp_path / Path(name).name
    (shutil.copytree if Path(path).is_dir() else shutil.copy)(path, moved)
    damaged = weights_of(f"{kind}:{moved}")
    whole = damaged.read_bytes()
    for content in (whole[: len(whole) // 2], b"not what it should be", b""):
        damaged.write_bytes(content)
        assert str(moved) in raised(DataError, find, f"{kind}:{moved}", settings, slot=slot)


@every_encoder
def test_wrong_options_and_the_wrong_slot_are_told_in_one_line(examples, kind):
    (slot, name, settings), _ = examples(kind)
    assert "has no option 'nonsense'" in raised(RecipeError, find, name, [f"{slot}.nonsense=1"], slot=slot)
    other = "audio" if slot == "rgb" else "rgb"
    settings = [setting.replace(f"{slot}.", f"{other}.", 1) for setting in settings]
    assert f"it goes to {slot}" in raised(RecipeError, find, name, settings, slot=other)
