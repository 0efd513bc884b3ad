"""`tagreel train`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagreel.commands._shared import (
    Board,
    Data,
    Device,
    Epochs,
    Json,
    Keep,
    LogEvery,
    NoCrc,
    RecipeName,
    Resume,
    SaveMinutes,
    Seed,
    Settings,
    SkipDamaged,
    Steps,
    Threads,
    Trust,
    Validate,
    ValidateEvery,
    WholeVideos,
    end_training,
    finish,
    list_damaged,
    printer,
    recipe_or_ensemble,
    source_of,
)
from tagreel.display import progress, training_lines
from tagreel.errors import DataError, RecipeError

if TYPE_CHECKING:
    import torch

    from tagreel.distributed import Ranks
    from tagreel.recipe import Ensemble, Recipe


def train(
    recipe: RecipeName,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="RUN", help="The folder for checkpoints, log and report.")],
    validate: Validate = [],  # noqa: B006
    settings: Settings = [],  # noqa: B006
    epochs: Epochs = None,
    steps: Steps = None,
    seed: Seed = 0,
    resume: Resume = False,
    start_from: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Begin with another run's weights, as far as they fit."),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="A trained model or ensemble to learn from, by training.distill or training.forgive; or a "
            "file of its predictions on --data.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Names of the classes: YouTube-8M's or AudioSet's CSV, or one a line."
        ),
    ] = None,
    validate_every: ValidateEvery = None,
    save_minutes: SaveMinutes = 5.0,
    keep: Keep = 3,
    log_every: LogEvery = None,
    tensorboard: Board = False,
    device: Device = "auto",
    threads: Threads = 1,
    skip_damaged: SkipDamaged = 0,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard", help="Divide weights and optimizer among torchrun's processes; for large models."
        ),
    ] = False,
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Train a recipe, or every member of an ensemble, on feature files.

    A small model often becomes better when it learns from a large one, or from an ensemble: labels only say
    yes or no, and some are missing; a teacher says how likely each tag is. With --teacher MODEL and --set
    training.distill=0.5 what is learnt is half the labels and half the teacher's probabilities. The teacher
    is asked about --data once, into RUN/teacher.parquet, which holds its 100 best tags of every video. With
    --set training.forgive=0.01 the one in a hundred of each tag's negatives that the teacher believes in most
    are not held against the model.

    Example: tagreel train audioset-mean-std --data train/ --validate dev/ --labels class_labels_indices.csv
    --out runs/first

    Example of a small model that learns from a large one: tagreel train smoke --data tagreel-demo/data/train*
    --teacher tagreel-demo/run --set training.distill=0.5 --set streams.rgb.pool.clusters=4 --set
    streams.audio.pool.clusters=4 --set body.1.width=32 --out tagreel-demo/student

    Several processes, on one machine or many, train one model when torchrun starts them; each takes its share
    of every batch, so that the recipe means the same (docs/scale.md).
    """
    from tagreel.distributed import one_of_several
    from tagreel.recipe import Ensemble
    from tagreel.vocabulary import read_label_names

    with one_of_several(device) as (target, ranks):
        say = printer(as_json)
        read = partial(source_of, check_crc=not no_crc, whole_videos=whole_videos, say=say)
        with ranks.together():
            chosen = recipe_or_ensemble(recipe, settings, trust, epochs=epochs, steps=steps)
            source, held_out = read(data), read(validate) if validate else None
            names = read_label_names(labels) if labels is not None else None
        options: dict[str, Any] = {
            "data": source,
            "validation": held_out,
            "out": out,
            "label_names": names,
            "seed": seed,
            "device": device,
            "resume": resume,
            "threads": threads,
            "validate_every": validate_every,
            "save_minutes": save_minutes,
            "keep": keep,
            "log_every": log_every,
            "skip_damaged": skip_damaged,
            "tensorboard": tensorboard,
            "trust": tuple(trust),
        }
        alone = {"start_from": start_from, "teacher": teacher, "shard": shard}
        if not isinstance(chosen, Ensemble):
            _train_recipe(chosen, options | alone, target, ranks, say, as_json)
            return
        member = next(iter(chosen.members))
        if any(alone.values()):
            raise RecipeError(
                f"{recipe} is an ensemble; --start-from, --teacher and --shard are for one recipe, such as "
                f"its member {member}"
            )
        if ranks.count > 1:
            raise RecipeError(f"{recipe} is an ensemble, which one process trains; start it without torchrun")
        _train_ensemble(chosen, options, say, as_json)


def _train_recipe(
    recipe: Recipe,
    options: dict[str, Any],
    device: torch.device,
    ranks: Ranks,
    say: Callable[[str], None],
    as_json: bool,
) -> None:
    from tagreel.train import train

    data, out, teacher = options["data"], options["out"], options["teacher"]
    with ranks.together():
        needed = _needs(recipe, options, device, ranks) if ranks.first else ""
    show = training_lines(say)

    bar = ExitStack()

    def on_event(row: dict[str, Any]) -> None:
        if row["event"] == "start":
            bar.close()
            if needed:
                say(needed)
        show(row)

    with bar:
        asks = teacher is not None and teacher.is_dir()
        advance = bar.enter_context(progress("asking the teacher", len(data))) if asks else None
        outcome = train(recipe, on_event=on_event, on_asked=advance, **options)
    end_training(
        outcome,
        out,
        say,
        as_json,
        next_commands=(
            f"tagreel evaluate {out} --data SRC",
            f"tagreel predict {out} --data SRC --out tags.parquet",
        ),
    )


def _needs(recipe: Recipe, options: dict[str, Any], device: torch.device, ranks: Ranks) -> str:
    """The memory that training takes, where it can be told: of each process, unless they divide the model."""
    from tagreel.memory import available, estimate
    from tagreel.train import known_label_names, settle

    data, before = options["data"], options["out"] if options["resume"] else None
    if options["shard"]:
        return ""
    with suppress(DataError):  # where nothing can be read, training says so
        settled = settle(recipe, data, known_label_names(before, data, options["label_names"]))
        own = ceil(settled.training.batch_size / ranks.count)
        settled = replace(settled, training=replace(settled.training, batch_size=own))
        needed = estimate(settled, data.first(), device=device).text(available(device))
        return needed if ranks.count == 1 else f"each process {needed}"
    return ""


def _train_ensemble(
    ensemble: Ensemble, options: dict[str, Any], say: Callable[[str], None], as_json: bool
) -> None:
    from tagreel.train_ensemble import runs_of, train_ensemble

    out = options["out"]
    outcome = train_ensemble(ensemble, **options, on_event=training_lines(say))
    list_damaged(say, [str(error) for error in outcome.damaged])
    if outcome.interrupted:
        say(f"stopped, saved in {runs_of(out)}; go on with the same command and --resume")
        finish(as_json, {"run": str(out), "interrupted": True})
        raise typer.Exit(130)
    say(f"\ndone: {out}, {len(outcome.members)} members; their runs are in {runs_of(out)}")
    say(f"next: tagreel evaluate {out} --data SRC")
    finish(as_json, {"run": str(out), "members": outcome.members, "damaged": len(outcome.damaged)})
