"""How the papers trained: optimizer, rate, decay, batch, clipping and loss of every published recipe."""

from __future__ import annotations

import pytest

from tagreel.recipe import names

# (optimizer, rate, factor, every, batch, clip norm, head L2, epsilon) by the longest fitting start of a name.
SETTINGS = {
    "cmu-": ("Adagrad", 2e-4, 0.8, 8_000_000, 256, 0.8, 0.0, None),
    "cmu-m": ("Adagrad", 2e-4, 0.8, 8_000_000, 1024, 0.8, 0.0, None),
    "cmu-deepmoe": ("Adagrad", 2e-4, 0.8, 8_000_000, 1024, 0.8, 0.0, None),
    "nextvlad-": ("Adam", 2e-4, 0.8, 2_000_000, 160, 1.0, 1e-5, 1e-8),
    "nextvlad-single": ("Adam", 2e-4, 0.8, 2_500_000, 160, 1.0, 1e-5, 1e-8),
    "nextvlad-mix3-t3": ("Adam", 2e-4, 0.8, 2_500_000, 160, 1.0, 1e-5, 1e-8),
    "nextvlad-mix3-t3-120k": ("Adam", 2e-4, 0.8, 2_000_000, 160, 1.0, 1e-5, 1e-8),
    "nlvlad-l": ("Adam", 2e-4, 0.8, 4_000_000, 80, 1.0, 1e-8, 1e-5),
    "nlvlad-e": ("Adam", 2e-4, 0.8, 4_000_000, 80, 1.0, 1e-8, 1e-5),
    "nlvlad-softbof": ("Adam", 2e-4, 0.9, 4_000_000, 80, 1.0, 1e-8, 1e-5),
    "nlvlad-gru": ("Adam", 2e-4, 0.9, 4_000_000, 128, 1.0, 1e-8, 1e-5),
    "willow-gated-net": ("Adam", 2e-4, 0.8, 4_000_000, 80, 1.0, 1e-6, 1e-5),
    "willow-net": ("Adam", 2e-4, 0.8, 4_000_000, 80, 1.0, 1e-6, 1e-5),
    "willow-gated-bow": ("Adam", 2e-4, 0.9, 4_000_000, 80, 1.0, 1e-6, 1e-5),
    "willow-gru": ("Adam", 2e-4, 0.9, 4_000_000, 128, 1.0, 1e-6, 1e-5),
    "willow-lstm": ("Adam", 2e-4, 0.9, 4_000_000, 128, 1.0, 1e-8, 1e-5),
    "willow-rel-soft": ("Adam", 2e-4, 0.9, 4_000_000, 80, 1.0, 1e-8, 1e-5),
    "starter-": ("Adam", 0.01, 0.95, 4_000_000, 1024, 1.0, 1e-8, 1e-5),
    "starter-lstm": ("Adam", 1e-3, 0.95, 4_000_000, 1024, 1.0, 1e-8, 1e-5),
    "thu-lstm": ("Adam", 1e-3, 0.95, 4_000_000, 128, 10.0, 1e-8, 1e-5),
    "thu-bilstm": ("Adam", 1e-3, 0.95, 4_000_000, 128, 10.0, 1e-8, 1e-5),
    "thu-prototype": ("Adam", 1e-3, 0.95, 4_000_000, 128, 10.0, 1e-8, 1e-5),
}

# Those of the final ensemble that pool frames; its others are video-level models, as the "cmu-m" of table 1.
FRAME_MEMBERS = (1, 2, 3, 8, 12, 15, 21, 22, 24, 25, 26, 28, 30, 32, 33, 34)
SETTINGS |= {f"cmu-m{number:02}": SETTINGS["cmu-"] for number in FRAME_MEMBERS}


def _settings(name):
    fitting = [prefix for prefix in SETTINGS if name.startswith(prefix)]
    return SETTINGS[max(fitting, key=len)] if fitting else None


@pytest.mark.parametrize("name", [name for name in names() if _settings(name)])
def test_a_published_recipe_trains_as_it_was_trained(name):
    recipe = names()[name]
    training, loss = recipe.training, recipe.loss.keywords
    assert (
        training.optimizer.func.__name__,
        training.optimizer.keywords["lr"],
        training.schedule.keywords["factor"],
        training.schedule.keywords["every"],
        training.batch_size,
        training.clip_norm,
        training.head_l2,
        loss.get("epsilon"),
    ) == _settings(name)
    assert training.clip == "tensor"


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("cmu-")])
def test_adagrad_begins_as_in_tensorflow(name):
    assert names()[name].training.optimizer.keywords["initial_accumulator_value"] == 0.1


@pytest.mark.parametrize(
    "name", [name for name in names() if name.startswith(("willow", "nlvlad", "nextvlad", "cmu", "starter"))]
)
def test_batch_norm_averages_as_slowly_as_tf_slim(name):
    assert names()[name].batch_norm_momentum == 0.001
