"""What every recipe promises; a new one in tagreel/recipes is found and held to it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tagreel.heads.separated_tasks import SeparatedTasks
from tagreel.log import read_log
from tagreel.recipe import About, Recipe, from_json, names, to_json
from tagreel.smaller import Facts, smaller
from tagreel.source import Source
from tagreel.tagger import count_parameters
from tagreel.train import train

RECIPES = names()
CLIPS = Path(__file__).parents[2].parent / "shared" / "data" / "audioset" / "small_shards"

every_recipe = pytest.mark.parametrize("name", RECIPES)


def _on_audioset(recipe: Recipe) -> Recipe:
    """The recipe made small, reading AudioSet's frames."""
    small = smaller(
        recipe, Facts(features={"audio_embedding": 128}, classes=527, frames=10, videos=48), by=64
    )
    if recipe.head.func is SeparatedTasks:  # whose sizes have to add up
        pools = {name: stream.pool for name, stream in recipe.streams.items()}
        streams = {name: replace(stream, pool=pools[name]) for name, stream in small.streams.items()}
        small = replace(small, head=recipe.head, classes=recipe.classes, streams=streams)
    late_epochs = min(small.training.late_epochs, 0.1)
    training = replace(small.training, steps=2, batch_size=8, late_epochs=late_epochs, subset=None)
    return replace(small, training=training)


def test_the_walk_finds_the_recipes():
    assert {"smoke", "willow-gated-netvlad-256", "cmu-more8", "thu-bilstm-moe"} <= set(RECIPES)


@every_recipe
def test_the_size_it_states_is_the_size_it_has(name):
    about, found = RECIPES[name].about, count_parameters(RECIPES[name])
    if name.partition("-")[0] == "own":  # as wide as the data, with as many classes
        assert found is about.parameters is None
        return
    assert found is not None
    assert about.parameters in (None, found)
    assert about.parameters is not None or not about.paper, "a published model states its size"


@every_recipe
def test_it_says_what_it_is_and_travels_as_json(name):
    recipe = RECIPES[name]
    assert recipe.about.summary
    assert from_json(to_json(recipe)) == recipe or to_json(from_json(to_json(recipe))) == to_json(recipe)


def _distinct():
    """Recipes by name, those that are the same when they are small once."""
    found = {}
    for name, recipe in RECIPES.items():
        small = _on_audioset(recipe)
        found.setdefault(json.dumps(to_json(replace(small, about=About()))), (name, small))
    return dict(found.values())


DISTINCT = _distinct()


@pytest.mark.parametrize("name", DISTINCT)
@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"AudioSet's small shards are not in {CLIPS}")
def test_made_small_it_trains_on_real_frames(name, tmp_path):
    data = Source(CLIPS)
    outcome = train(DISTINCT[name], data=data, out=tmp_path / "run", device="cpu", log_every=1)
    losses = [row["loss"] for row in read_log(tmp_path / "run") if row["event"] == "train"]
    assert outcome.step == len(losses) == 2
    assert all(map(math.isfinite, losses))
