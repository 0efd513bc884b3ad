"""`tagreel predict`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tagreel.commands._shared import (
    BatchSize,
    Checkpoint,
    Data,
    Device,
    Inference,
    Json,
    NoCrc,
    Run,
    SkipDamaged,
    Threads,
    Trust,
    WholeVideos,
    finish,
    list_damaged,
    model_of,
    printer,
    source_of,
)
from tagreel.display import progress


def predict(
    run: Run,
    data: Data,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help=".parquet, .jsonl, or .csv (YouTube-8M's submission format)."),
    ],
    top_k: Annotated[int, typer.Option(min=1, help="Tags a video.")] = 20,
    checkpoint: Checkpoint = "best",
    settings: Inference = [],  # noqa: B006
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = 1,
    skip_damaged: SkipDamaged = 0,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Write the most probable tags of every video to a file.

    One row a video, with names and probabilities, in the order of the input.

    A run that was killed goes on where it was when the command is given again.
    """
    from tagreel.evaluate import scoring_loader
    from tagreel.predict import predict as predict_all
    from tagreel.runtime import pick_device

    say = printer(as_json)
    source = source_of(data, check_crc=not no_crc, whole_videos=whole_videos, say=say)
    target = pick_device(device)
    model = model_of(run, checkpoint, device, tuple(trust), settings)
    loader = scoring_loader(model, source, batch_size=batch_size, threads=threads, skip_damaged=skip_damaged)
    began = time.perf_counter()
    with progress("tagging", len(source)) as advance:
        result = predict_all(model, loader, out, device=target, top_k=top_k, on_batch=advance)
    seconds = time.perf_counter() - began
    if result.resumed:
        say(f"an earlier run had left {result.resumed:,} rows")
    rate = (result.videos - result.resumed) / seconds
    say(f"wrote {out}: {result.videos:,} videos × {min(top_k, model.classes)} tags   {rate:,.0f} videos/s")
    list_damaged(say, result.damaged)
    finish(as_json, {"out": str(out), "videos": result.videos, "damaged": len(result.damaged)})
