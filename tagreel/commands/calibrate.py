"""`tagreel calibrate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tagreel.commands._shared import (
    LISTED,
    BatchSize,
    Checkpoint,
    Data,
    Device,
    Foreign,
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


def calibrate(
    run: Run,
    data: Data,
    precision: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Show a tag only where this share of what is shown will be right."
        ),
    ] = None,
    checkpoint: Checkpoint = "best",
    settings: Inference = [],  # noqa: B006
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = 1,
    skip_damaged: SkipDamaged = 0,
    foreign: Foreign = False,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Make probabilities mean what they say, and fit a threshold for every tag.

    --data are labelled videos that the model was not trained on, such as those of --validate: the more, the
    better. Afterwards, of the videos that are given a tag with probability 0.3, three in ten have it, and
    every tag has a threshold from which on it is worth showing: so that few are wrong and few are missed
    (F1), or, with --precision 0.9, that nine in ten are right. Tags that cannot be that sure are never shown,
    and are listed.

    What was fitted is written into the model (tags.json); `tagreel tags RUN` shows it, and `tag` and
    `predict` use it. The videos of a tag keep their order. The table says what it is worth.

    Example: tagreel calibrate tagreel-demo/run --data tagreel-demo/data/validate*
    """
    from tagreel.calibrate import calibrate as calibrate_model
    from tagreel.checkpoint import find
    from tagreel.evaluate import scoring_loader
    from tagreel.runtime import pick_device
    from tagreel.tags import TagSet

    say = printer(as_json)
    source = source_of(data, check_crc=not no_crc, whole_videos=whole_videos, say=say)
    folder = find(run, checkpoint)
    tags = TagSet.in_folder(folder)
    model = model_of(folder, checkpoint, device, tuple(trust), settings)
    loader = scoring_loader(
        model,
        source,
        batch_size=batch_size,
        threads=threads,
        skip_damaged=skip_damaged,
        foreign=foreign,
    )
    with progress("scoring", len(source)) as advance:
        found = calibrate_model(
            model, tags, loader, device=pick_device(device), precision=precision, on_batch=advance
        )
    found.tags.write(folder)

    errors = [f"{error:.2e}" for error in found.calibration_error]
    losses = [f"{loss:.4f}" for loss in found.log_loss]
    of = f"{found.positives:,} labels of {found.videos:,} videos"
    say(f"{len(tags.tags):,} tags, {of}; all below on a fifth of them, left out in turn")
    say(f"calibration error   {errors[0]} as trained, {errors[1]} calibrated")
    say(f"log loss a video    {losses[0]} as trained, {losses[1]} calibrated\n")
    say(f"{'':<28}micro F1  macro F1  precision   recall  tags a video")
    for name, row in found.shown.items():
        title = "fitted thresholds" if name == "fitted" else f"as trained, {name}"
        say(
            f"{title:<28}{row.micro_f1:>8.4f}  {row.macro_f1:>8.4f}  {row.precision:>9.4f}   "
            f"{row.recall:>6.4f}  {row.tags_per_video:>12.2f}"
        )
    if found.never:
        say(f"\n{len(found.never):,} tags do not reach a precision of {precision} and are never shown:")
        for name in found.never[:LISTED]:
            say(f"  {name}")
        if len(found.never) > LISTED:
            say(f"  ... and {len(found.never) - LISTED:,} more (tagreel tags {run} lists them)")
    damaged = [str(error) for error in loader.damaged.values()]
    list_damaged(say, damaged)
    say(f"\nwrote {folder / 'tags.json'}")
    say(f"next: tagreel predict {run} --data SRC --threshold --out tags.parquet")
    before_after = {
        name: dict(zip(("as_trained", "calibrated"), getattr(found, name), strict=True))
        for name in ("calibration_error", "log_loss")
    }
    finish(
        as_json,
        {
            "model": str(folder),
            "videos": found.videos,
            "labels": found.positives,
            **before_after,
            "shown": {name: asdict(row) for name, row in found.shown.items()},
            "never": found.never,
            "damaged": len(damaged),
        },
    )
