"""A published recipe made small, for other data: the same structure with fewer clusters, units and weights.

What makes the rows of a paper's table differ stays: which pool, which gates, how many experts and groups, and
which of two rows has more clusters. Every row gets the same short training, so that a table can be trained on
a laptop; its figures are its own and no paper's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch.optim import Adam

from tagreel.layers.reverse_whitening import ReverseWhitening
from tagreel.recipe import Part, Recipe, Stream, Training
from tagreel.schedule import Cosine
from tagreel.source import Source

SIZES = ("clusters", "width", "hidden", "concepts", "inner", "rank")
LEAST = 8
EPOCHS = 8
RATE = 2e-3
BATCH_SIZE = 64
VIDEOS = {4716: 4_906_660, 3862: 3_888_919}
"""How many YouTube-8M has to train on, of 2017 and of 2018, by the number of classes."""
FRAMES = 300
"""How many a video of YouTube-8M has, one a second."""


@dataclass(frozen=True)
class Facts:
    """What data are like: widths of the features, classes, frames of the longest of some videos, videos."""

    features: Mapping[str, int]
    classes: int
    frames: int
    videos: int


def facts_of(data: Source, classes: int, *, look_at: int = 64) -> Facts:
    """The facts of data with so many classes, from the first videos."""
    shard = data.open(0)
    seen = [data.first(), *(shard[index] for index in range(min(look_at, len(shard))))]
    lengths = [len(frames) for example in seen for frames in example.streams.values()]
    widths = {name: frames.shape[1] for name, frames in seen[0].streams.items()}
    return Facts(features=widths, classes=classes, frames=max(lengths), videos=len(data))


def smaller(recipe: Recipe, facts: Facts, *, by: int = 8) -> Recipe:
    """The recipe with its sizes divided `by` so much, for data with these facts.

    It reads the features of the same names, of frames or of whole videos. Those that the data lack are left
    out, with the streams that read nothing else; where they lack them all, the first is the data's first.
    Layers that are recurrent cost the square of their width, and shrink twice as much.
    """
    found = _found(recipe, facts)
    widths = {name: facts.features[there] for name, there in found.items()}
    parts = {tuple(recipe.features.values()): tuple(widths.values())}
    streams: dict[str, Stream] = {}
    for name, stream in recipe.streams.items():
        read = stream.inputs or (name,)
        inputs = tuple(found[feature] for feature in read if feature in found)
        if not inputs:
            continue
        # As much wider or narrower than the frames as they were.
        narrower = sum(recipe.features[f] or 0 for f in read) / sum(widths[f] for f in read if f in found)
        transforms = tuple(part for part in stream.transforms if part.func is not ReverseWhitening)
        streams[name] = Stream(
            inputs=inputs,
            transforms=_resized(transforms, narrower, parts),
            pool=_resized(stream.pool, by, parts),
        )
    return replace(
        recipe,
        about=replace(recipe.about, parameters=None),
        features={found[name]: width for name, width in widths.items()},
        classes=facts.classes,
        optional=tuple(found[name] for name in recipe.optional if name in found),
        streams=streams,
        join=_resized(recipe.join, by, parts),
        body=_resized(recipe.body, by, parts),
        head=_resized(recipe.head, by, parts),
        output=_resized(recipe.output, by, parts),
        late=_resized(recipe.late, by, parts),
        sampling=_for_length(recipe.sampling, facts.frames),
        evaluation_sampling=_for_length(recipe.evaluation_sampling, facts.frames),
        inference=_for_length(recipe.inference, facts.frames),
        training=_shorter(recipe.training, VIDEOS.get(recipe.classes or 0, facts.videos), facts.videos),
        # What took 100,000 steps to settle has hundreds here.
        batch_norm_momentum=max(recipe.batch_norm_momentum, 0.02),
    )


def _found(recipe: Recipe, facts: Facts) -> dict[str, str]:
    """The data's name for each of the recipe's features, of those that they have."""
    found: dict[str, str] = {}
    for name in recipe.features:
        plain = name.removeprefix("mean_")
        there = [other for other in (name, plain, f"mean_{plain}") if other in facts.features]
        if there:
            found[name] = there[0]
    return found or {next(iter(recipe.features)): next(iter(facts.features))}


def _resized(node: Any, by: float, parts: Mapping[tuple[int | None, ...], tuple[int, ...]]) -> Any:
    """Parts of a recipe with smaller sizes; `parts` says what becomes of widths of features."""
    if isinstance(node, tuple):
        return tuple(_resized(part, by, parts) for part in node)
    if not isinstance(node, partial):
        return node
    options = {name: _resized(value, by, parts) for name, value in _options(node).items()}
    for name in SIZES:
        if isinstance(options.get(name), int):
            options[name] = _divided(options[name], by)
    if "units" in options:
        options["units"] = tuple(_divided(width, 2 * by) for width in options["units"])
    if "fused_units" in options:
        options["fused_units"] = _divided(options["fused_units"], 2 * by)
    if "parts" in options:
        options["parts"] = parts.get(options["parts"], options["parts"])
    if options.get("std") is not None:  # 1 / sqrt(K), of fewer clusters
        options["std"] *= math.sqrt(by)
    return partial(node.func, **options)


def _options(part: Part) -> dict[str, Any]:
    """What a part is called with, its defaults spelled out."""
    known = inspect.signature(part.func).parameters.values()
    defaults = {option.name: option.default for option in known if option.default is not option.empty}
    return defaults | part.keywords


def _divided(size: int, by: float) -> int:
    return max(round(size / by), min(size, LEAST))


def _for_length(part: Part | None, frames: int) -> Any:
    """A sampling or an inference for videos of so many frames, which takes as large a share of them."""
    if part is None:
        return None
    options = _options(part)
    if "stride" in options:
        stride = min(options["stride"], max(frames // 5, 2))
        options |= {"stride": stride, "starts": max(options["starts"] * stride // options["stride"], 1)}
    elif "frames" in options:
        options["frames"] = max(options["frames"] * min(frames, FRAMES) // FRAMES, 1)
    return partial(part.func, **options)


def _shorter(training: Training, published: int, videos: int) -> Training:
    """The training of every row: as many steps as `EPOCHS` of all the data, of a subset of them, too."""
    epochs = training.epochs
    if training.steps is not None:
        epochs = training.steps * training.batch_size * training.accumulate / published
    subset = training.subset
    if subset is not None:
        subset = (max(round(subset[0] * videos / published), 1), subset[1])
    return replace(
        training,
        optimizer=partial(Adam, lr=RATE),
        schedule=partial(Cosine),
        batch_size=BATCH_SIZE,
        accumulate=1,
        epochs=EPOCHS,
        steps=math.ceil(EPOCHS * videos / BATCH_SIZE),
        late_epochs=training.late_epochs / epochs * EPOCHS,
        subset=subset,
    )
