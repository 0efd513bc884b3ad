"""`tagreel average`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tagreel.commands._shared import (
    SOURCES_HELP,
    BatchSize,
    Device,
    Json,
    NoCrc,
    Run,
    SkipDamaged,
    Threads,
    Trust,
    WholeVideos,
    finish,
    list_damaged,
    look_here,
    printer,
    source_of,
)
from tagreel.display import progress


def average(
    run: Run,
    out: Annotated[Path, typer.Option(metavar="MODEL", help="The folder for the model; it must be new.")],
    from_step: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="The first to take; default: the oldest there is.")
    ] = None,
    to_step: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="The last to take; default: the newest.")
    ] = None,
    data: Annotated[
        list[str],
        typer.Option("--data", metavar="SRC", help=f"Training data for batch norm. {SOURCES_HELP}"),
    ] = [],  # noqa: B006
    videos: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many of them, chosen at random; default: all.")
    ] = None,
    batch_norm: Annotated[
        Literal["last"] | None,
        typer.Option(help="In place of --data: batch norm as in the last checkpoint taken."),
    ] = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = 1,
    skip_damaged: SkipDamaged = 0,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Average the weights of a run's checkpoints into one model, which is often better than each of them.

    Nothing is trained; `evaluate` and `predict` take MODEL like RUN. `tagreel train` keeps the last three
    checkpoints, and the best; for more to average train with, say, --validate SRC --validate-every 1000
    --keep 100, which leaves a checkpoint every thousand steps, a hundred at most. The early ones are worse:
    --from-step leaves them out.

    Batch norm, which most recipes have, keeps statistics of what passes through it. Those of the averaged
    weights are taken over --data: give what was trained on, some ten thousand --videos of it will do.

    Example: tagreel average tagreel-demo/run --data tagreel-demo/data/train* --out tagreel-demo/average
    """
    from tagreel.average import average as average_checkpoints
    from tagreel.average import between, step_of

    say = printer(as_json)
    look_here(trust)
    folders = between(run, from_step, to_step)
    source = source_of(data, check_crc=not no_crc, whole_videos=whole_videos, say=say) if data else None
    steps = ", ".join(str(step_of(folder)) for folder in folders)
    say(f"averaging {len(folders):,} checkpoints: steps {steps}")
    with progress("taking statistics", min(videos or len(source), len(source)) if source else 0) as advance:
        result = average_checkpoints(
            folders,
            out,
            data=source,
            videos=videos,
            batch_norm=batch_norm,
            batch_size=batch_size,
            device=device,
            threads=threads,
            skip_damaged=skip_damaged,
            trust=tuple(trust),
            on_batch=advance,
        )
    over = f", batch norm's statistics over {result.videos:,} videos" if result.videos else ""
    say(f"wrote {out}: the mean of {len(result.steps):,} checkpoints{over}")
    list_damaged(say, [str(error) for error in result.damaged])
    say(f"next: tagreel evaluate {out} --data SRC")
    found = {"out": str(out), "steps": result.steps, "videos": result.videos}
    finish(as_json, {**found, "damaged": len(result.damaged)})
