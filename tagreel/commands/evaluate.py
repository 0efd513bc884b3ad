"""`tagreel evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagreel.commands._shared import (
    BatchSize,
    Checkpoint,
    Data,
    Device,
    Foreign,
    Inference,
    Json,
    Labels,
    NoCrc,
    Precision,
    SkipDamaged,
    Threads,
    Trust,
    WholeVideos,
    finish,
    list_damaged,
    printer,
    report_on,
    source_of,
)
from tagreel.errors import RecipeError


def evaluate(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run, a model or an ensemble; or a file of anyone's predictions."
        ),
    ],
    data: Data,
    report: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Default: RUN/report, FILE.report.")
    ] = None,
    labels: Labels = None,
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
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Score a trained tagger, or predictions, with a page of pictures.

    GAP@20, mAP, Hit@1, PERR, calibration, and the average precision of every class.

    map is over all scores and leaves out classes without positives; map_top20 is the YouTube-8M starter
    code's: only each video's 20 highest scores, and classes without positives count 0.
    """
    from tagreel.distributed import one_of_several
    from tagreel.vocabulary import read_label_names

    with one_of_several(device) as (_, ranks):
        if labels is not None and run.is_dir():
            raise RecipeError(f"--labels: {run} has its own names of the classes; give them with predictions")
        say = printer(as_json)
        with ranks.together():
            source = source_of(data, check_crc=not no_crc, whole_videos=whole_videos, say=say)
        title = f"{run.resolve().name} on {', '.join(Path(path).name for path in data)}"
        damaged: list[str] = []
        found = report_on(
            run,
            source,
            title=title,
            device=device,
            checkpoint=checkpoint,
            batch_size=batch_size,
            threads=threads,
            skip_damaged=skip_damaged,
            foreign=foreign,
            settings=settings,
            label_names=read_label_names(labels) if labels is not None else None,
            trust=tuple(trust),
            say=say,
            damaged=damaged,
            ranks=ranks,
            precision=precision,
        )
        say(found.text())
        list_damaged(say, damaged)
        folder = report or (run.with_name(f"{run.name}.report") if run.is_file() else run / "report")
        with ranks.together():
            if ranks.first:
                found.write(folder)
        say(f"\nwrote {folder / 'report.html'} and {folder / 'report.json'}")
        if run.is_dir():
            say(f"next: tagreel predict {run} --data SRC --out tags.parquet")
        finish(
            as_json, {**found.metrics, "videos": found.videos, "damaged": len(damaged), "report": str(folder)}
        )
