"""`tagreel extract`: media files to features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tagreel.commands._extraction import (
    JOBS,
    Audio,
    Jobs,
    MaxBad,
    MediaSettings,
    Pca,
    Projections,
    Retry,
    Rgb,
    bad_lines,
    extractor_of,
    pca_of,
    resumable,
    told,
)
from tagreel.commands._shared import Json, finish, printer
from tagreel.display import progress
from tagreel.errors import RecipeError


def extract(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...", help="Video and sound files, and folders with all that is below them."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DATASET", help="The folder for the shards of features.")],
    rgb: Rgb = None,
    audio: Audio = None,
    settings: MediaSettings = [],  # noqa: B006
    pca: Pca = [],  # noqa: B006
    projection: Projections = [],  # noqa: B006
    jobs: Jobs = JOBS,
    max_bad: MaxBad = None,
    retry: Retry = False,
    part: Annotated[
        str,
        typer.Option(
            metavar="I/N", help="On the I-th of N machines that share DATASET: its share of the work."
        ),
    ] = "1/1",
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="local, or ray: the same work on a Ray cluster that shares DATASET and SRC."),
    ] = "local",
    as_json: Json = False,
) -> None:
    """Make features of videos, one frame a second of picture and sound, that training takes as they are.

    Any container and codec that FFmpeg reads. Each file is decoded by a process of its own, within limits;
    one that cannot be read is listed with the reason and left out. When the work is stopped or killed, the
    same command goes on, and gives the same data set to the byte.

    Example: tagreel extract films/ --rgb layout --audio mel --out features
    """
    from tagreel import media
    from tagreel.extract import Video
    from tagreel.extract import extract as extract_all

    say = printer(as_json)
    found, ignored = media.files(sources)
    if ignored:
        say(f"no media by name, left out: {media.told(ignored)}")
    extractor = extractor_of(rgb, audio, settings, projection)
    videos = [Video(file.name, file.path) for file in found]
    with resumable(), progress("extracting", len(videos)) as advance:
        extracted = extract_all(
            videos,
            out,
            extractor,
            pca=pca_of(pca, extractor),
            jobs=jobs,
            part=_share(part),
            engine=engine,
            max_bad=max_bad,
            retry=retry,
            on_video=advance,
        )
    if extracted is None:
        say(f"part {part} of {out} is done; the data set is whole when the others are")
        finish(as_json, {"out": str(out), "whole": False})
        return
    say(f"wrote {out}: {told(extracted)}")
    for line in bad_lines(extracted.bad, f"{out}/report.json"):
        say(line)
    say(f"next: tagreel predict RUN --data {out} --out tags.parquet")
    finish(
        as_json,
        {
            "out": str(out),
            "whole": True,
            "videos": extracted.videos,
            "seconds": extracted.seconds,
            "bad": extracted.bad,
        },
    )


def _share(part: str) -> tuple[int, int]:
    first, slash, count = part.partition("/")
    if not slash or not first.isdigit() or not count.isdigit() or not 1 <= int(first) <= int(count):
        raise RecipeError(f"--part {part}: expected I/N, such as 2/8, I from 1 to N")
    return int(first), int(count)
