"""`tagreel pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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


def pretrain(
    recipe: RecipeName,
    data: Data,
    target: Annotated[
        list[str],
        typer.Option(metavar="FEATURE", help="A feature to predict. May be given several times."),
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The folder for checkpoints and log.")],
    validate: Validate = [],  # noqa: B006
    settings: Settings = [],  # noqa: B006
    epochs: Epochs = None,
    steps: Steps = None,
    seed: Seed = 0,
    resume: Resume = False,
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
    """Teach a recipe's streams to predict features frame by frame, without labels.

    For recurrent pools. A tagger then begins with what was learnt: tagreel train RECIPE --start-from RUN.

    Example: tagreel pretrain thu-ae-visual-to-audio --data train/ --target audio --out runs/pretrained
    """
    from tagreel.pretrain import pretrain as pretrain_recipe

    say = printer(as_json)
    chosen = recipe_of(recipe, settings, trust, epochs=epochs, steps=steps)
    outcome = pretrain_recipe(
        chosen,
        data=source_of(data, check_crc=not no_crc, whole_videos=whole_videos, say=say),
        validation=source_of(validate, check_crc=not no_crc, whole_videos=whole_videos, say=say)
        if validate
        else None,
        target=target,
        out=out,
        seed=seed,
        device=device,
        resume=resume,
        threads=threads,
        validate_every=validate_every,
        save_minutes=save_minutes,
        keep=keep,
        log_every=log_every,
        skip_damaged=skip_damaged,
        tensorboard=tensorboard,
        on_event=training_lines(say),
    )
    command = f"tagreel train {recipe} --start-from {out} --data SRC --out OTHER"
    end_training(outcome, out, say, as_json, next_commands=(command,))
