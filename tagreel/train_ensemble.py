"""Training a system: the members of an `Ensemble` one after the other, then the folder that holds them all.

    OUT.runs/NAME/    the run of a member
    OUT/              the ensemble, which `evaluate`, `predict` and `load` take like a model

A member whose recipe has a `memory` is trained without it and then remembers the training videos. Members get
seeds in a row, so that two of the same recipe differ.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tagreel.checkpoint import check_new, find, load, save_ensemble
from tagreel.compress import compress
from tagreel.ensemble import EnsembleTagger
from tagreel.errors import DataError
from tagreel.evaluate import scoring_loader
from tagreel.log import Row
from tagreel.recipe import Ensemble, Recipe
from tagreel.remember import remember
from tagreel.source import Source
from tagreel.tagger import build
from tagreel.train import known_label_names, settle, train


@dataclass(frozen=True)
class TrainedEnsemble:
    """How it ended: the members whose training ended, the records left out, whether it was stopped."""

    members: list[str]
    damaged: list[DataError]
    interrupted: bool


def runs_of(out: Path) -> Path:
    """The folder of the members' runs, beside the ensemble."""
    return out.with_name(out.name + ".runs")


def train_ensemble(
    ensemble: Ensemble,
    *,
    data: Source,
    out: Path,
    validation: Source | None = None,
    label_names: Sequence[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    threads: int = 1,
    skip_damaged: int = 0,
    trust: tuple[str, ...] = (),
    on_event: Callable[[Row], None] = lambda row: None,
    **options: Any,
) -> TrainedEnsemble:
    """Train every member and write the ensemble to `out`.

    `options` are those of `train`, for each member; `on_event` is also told which "member" begins. With
    `resume` members go on where they were, and finished ones are taken as they are. Raises `RecipeError` when
    `out` exists, and as `train` does; where a member cannot be built or cannot read the data, before the
    first one is trained.
    """
    check_new(out)
    members = {name: recipe for name, recipe in ensemble.members.items() if ensemble.shares[name]}
    if not skip_damaged:
        for name, recipe in members.items():
            names = known_label_names(runs_of(out) / name if resume else None, data, label_names)
            _check_fits(replace(recipe, memory=None), data, names)
    damaged: dict[str, DataError] = {}
    folders: dict[str, Path] = {}
    for number, (name, recipe) in enumerate(members.items()):
        on_event({"event": "member", "name": name, "number": number + 1, "members": len(members)})
        folder = runs_of(out) / name
        outcome = train(
            replace(recipe, memory=None),
            data=data,
            validation=validation,
            out=folder,
            label_names=label_names,
            seed=seed + number,
            device=device,
            resume=resume,
            threads=threads,
            skip_damaged=skip_damaged,
            trust=trust,
            on_event=on_event,
            **options,
        )
        damaged |= {str(error): error for error in outcome.damaged}
        if outcome.interrupted:
            return TrainedEnsemble(list(folders), list(damaged.values()), interrupted=True)
        folders[name] = folder if recipe.memory is None else folder / "remembering"
        if recipe.memory is not None and not folders[name].exists():
            remember(
                folder,
                data,
                folders[name],
                **recipe.memory.keywords,
                device=device,
                threads=threads,
                skip_damaged=skip_damaged,
                trust=trust,
            )
    models = {name: load(folder, trust=trust) for name, folder in folders.items()}
    whole = out.with_name(out.name + ".whole")
    shutil.rmtree(whole, ignore_errors=True)
    save_ensemble(
        whole,
        EnsembleTagger(models, [ensemble.shares[name] for name in models], top_k=ensemble.top_k),
        {name: find(folder) for name, folder in folders.items()},
        facts={
            "recipe": ensemble.about.name,
            "candidates": [{"name": name, "model": model.name} for name, model in models.items()],
        },
    )
    if ensemble.storage == "float32":
        whole.rename(out)
    else:
        compress(whole, out, [ensemble.storage])
        shutil.rmtree(whole)
    return TrainedEnsemble(list(folders), list(damaged.values()), interrupted=False)


def _check_fits(recipe: Recipe, data: Source, label_names: Sequence[str] | None) -> None:
    """Raise what the training of the recipe would when it comes to build the model and to read a video."""
    with torch.device("meta"):
        model = build(settle(recipe, data, label_names), label_names=label_names)
    for error in scoring_loader(model, data, batch_size=1).batch(0, 0).damaged:
        raise error
