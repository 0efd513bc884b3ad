"""What every recipe promises; a new one in tagreel/recipes is found and held to it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tagreel.heads.separated_tasks import SeparatedTasks
from tagreel.layers.reverse_whitening import ReverseWhitening
from tagreel.log import read_log
from tagreel.recipe import About, Recipe, from_json, names, to_json
from tagreel.source import Source
from tagreel.tagger import count_parameters
from tagreel.train import train

RECIPES = names()
CLIPS = Path(__file__).parents[2].parent / "shared" / "data" / "audioset" / "small_shards"

every_recipe = pytest.mark.parametrize("name", RECIPES)

# Sizes that make a published model a small one of the same structure.
SMALL = {"clusters": 8, "width": 16, "hidden": 16, "concepts": 8, "experts": 2, "inner": 8, "rank": 4}


def _smaller(node):
    """The same parts with small sizes; what is tied to the width of a feature goes."""
    if isinstance(node, partial):
        options = {name: _smaller(value) for name, value in node.keywords.items()}
        for name, size in SMALL.items():
            if isinstance(options.get(name), int):
                options[name] = min(options[name], size)
        if "units" in options:
            options["units"] = (8,) * len(options["units"])
        if "parts" in options:
            options["parts"] = ()
        return partial(node.func, **options)
    if isinstance(node, tuple):
        return tuple(
            _smaller(part)
            for part in node
            if not (isinstance(part, partial) and part.func is ReverseWhitening)
        )
    return node


def _on_audioset(recipe: Recipe) -> Recipe:
    """The recipe made small, each of its streams reading AudioSet's frames."""
    frames = ("audio_embedding",)
    streams = {
        name: replace(
            stream, inputs=frames, pool=_smaller(stream.pool), transforms=_smaller(stream.transforms)
        )
        for name, stream in recipe.streams.items()
    }
    head, classes = _smaller(recipe.head), 527
    if recipe.head.func is SeparatedTasks:  # whose sizes have to add up
        head, classes = recipe.head, recipe.classes
        streams = {name: replace(streams[name], pool=recipe.streams[name].pool) for name in streams}
    return replace(
        recipe,
        features={"audio_embedding": 128},
        classes=classes,
        streams=streams,
        head=head,
        optional=(),
        **{name: _smaller(getattr(recipe, name)) for name in ("join", "body", "output", "late")},
        training=replace(
            recipe.training, steps=2, batch_size=8, late_epochs=min(recipe.training.late_epochs, 0.1)
        ),
    )


def test_the_walk_finds_the_recipes():
    assert {"smoke", "willow-gated-netvlad-256", "cmu-more8", "thu-bilstm-moe"} <= set(RECIPES)


@every_recipe
def test_the_size_it_states_is_the_size_it_has(name):
    about, found = RECIPES[name].about, count_parameters(RECIPES[name])
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
