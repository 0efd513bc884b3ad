"""`tagreel remember`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagreel.commands._shared import (
    BatchSize,
    Checkpoint,
    Data,
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


def remember(
    run: Run,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="MODEL", help="The folder for the model; it must be new.")],
    neighbours: Annotated[int, typer.Option(min=1, help="Videos that vote on a new one.")] = 100,
    sharpness: Annotated[float, typer.Option(help="How much more the nearest of them count.")] = 20.0,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="The votes' share of a score, the tagger has the rest.")
    ] = 0.5,
    checkpoint: Checkpoint = "best",
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = 1,
    skip_damaged: SkipDamaged = 0,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Let a trained tagger also ask the training videos nearest to a new one.

    Nothing is trained: one pass over --data writes a model that `evaluate` and `predict` take like RUN. It
    carries what the tagger made of each of those videos, and their labels: do not give it to anyone who must
    not have those. It is larger by two bytes for each number that the last layer reads of each video
    (4 kB where those are 2,048), and scoring takes longer the more videos there are. Its scores on
    the videos that it carries mean nothing.

    Example: tagreel remember tagreel-demo/run --data tagreel-demo/data/train* --out tagreel-demo/memory
    """
    from tagreel.remember import remember as remember_videos

    say = printer(as_json)
    source = source_of(data, check_crc=not no_crc, whole_videos=whole_videos, say=say)
    look_here(trust)
    with progress("remembering", len(source)) as advance:
        result = remember_videos(
            run,
            source,
            out,
            checkpoint=checkpoint,
            neighbours=neighbours,
            sharpness=sharpness,
            share=share,
            batch_size=batch_size,
            device=device,
            threads=threads,
            skip_damaged=skip_damaged,
            trust=tuple(trust),
            on_batch=advance,
        )
    size = f"{result.size / 1e6:,.1f} MB"
    say(f"wrote {out}: {result.videos:,} videos with {result.labels:,} labels, {size} beside the tagger")
    list_damaged(say, [str(error) for error in result.damaged])
    say(f"next: tagreel evaluate {out} --data SRC")
    found = {"out": str(out), "videos": result.videos, "labels": result.labels, "bytes": result.size}
    finish(as_json, {**found, "damaged": len(result.damaged)})
