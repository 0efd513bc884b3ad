"""`tagreel train`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

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
    printer,
    recipe_of,
    source_of,
)
from tagreel.display import training_lines
from tagreel.errors import DataError


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
            metavar="FILE",
            help="A teacher's predictions on --data (.parquet); the loss leaves out its likeliest "
            "negatives, of each class the share training.forgive.",
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
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Train a recipe on feature files.

    Example: tagreel train audioset-mean-std --data train/ --validate dev/ --labels class_labels_indices.csv
    --out runs/first
    """
    from tagreel.memory import available, estimate
    from tagreel.runtime import pick_device
    from tagreel.train import known_label_names, settle
    from tagreel.train import train as train_recipe
    from tagreel.vocabulary import read_label_names

    say = printer(as_json)
    chosen = recipe_of(recipe, settings, trust, epochs=epochs, steps=steps)
    source = source_of(data, check_crc=not no_crc, whole_videos=whole_videos, say=say)
    names = read_label_names(labels) if labels is not None else None
    target = pick_device(device)
    needed = ""
    with suppress(DataError):  # where nothing can be read, training says so
        settled = settle(chosen, source, known_label_names(out if resume else None, source, names))
        needed = estimate(settled, source.first(), device=target).text(available(target))
    show = training_lines(say)

    def on_event(row: dict[str, Any]) -> None:
        if row["event"] == "start" and needed:
            say(needed)
        show(row)

    outcome = train_recipe(
        chosen,
        data=source,
        validation=source_of(validate, check_crc=not no_crc, whole_videos=whole_videos, say=say)
        if validate
        else None,
        out=out,
        label_names=names,
        seed=seed,
        device=device,
        resume=resume,
        start_from=start_from,
        teacher=teacher,
        threads=threads,
        validate_every=validate_every,
        save_minutes=save_minutes,
        keep=keep,
        log_every=log_every,
        skip_damaged=skip_damaged,
        tensorboard=tensorboard,
        on_event=on_event,
    )
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
