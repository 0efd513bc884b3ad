"""`tagreel tag`: media files to named tags on a timeline."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagreel.commands._extraction import (
    Audio,
    MediaSettings,
    Projections,
    Rgb,
    extractor_of,
    limits_of,
)
from tagreel.commands._shared import Checkpoint, Device, Foreign, Json, Trust, finish, model_of, printer
from tagreel.display import clock, progress
from tagreel.errors import DataError, RecipeError

if TYPE_CHECKING:
    from tagreel.extractor import Extractor
    from tagreel.media import File
    from tagreel.streaming import Stream
    from tagreel.tags import TagSet
    from tagreel.timeline import Timeline


def tag(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="Video and sound files, and folders with all that is below them."
        ),
    ],
    run: Annotated[
        Path, typer.Option("--model", metavar="RUN", help="A run, a model or an ensemble: the folder.")
    ],
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page: the player, and every tag on a timeline."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Show tags from this probability on; default: their own, or 0.5."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="At most so many tags a file.")] = 20,
    live: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS",
            min=1,
            help="Say every so many seconds what the tags are so far, in constant memory.",
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option(metavar="SECONDS", min=1, help="With --live: of the last SECONDS alone.")
    ] = None,
    rgb: Rgb = None,
    audio: Audio = None,
    settings: MediaSettings = [],  # noqa: B006
    projection: Projections = [],  # noqa: B006
    foreign: Foreign = False,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Tag videos: which tags apply, how probable each is, and when.

    The model knows what made the features that it was trained on, and makes the same of each file; where that
    encoder's file has moved, say so with --rgb or --audio. Tags are named and cut off as `tagreel tags` and
    `tagreel calibrate` left them.

    With --live an input of hours, or one that is still being recorded, is read from a pipe as well: `-`.

    Example: tagreel tag holiday.mp4 --model run --html holiday.html
    """
    from tagreel import media, tagging
    from tagreel.checkpoint import find
    from tagreel.extractor import Extractor
    from tagreel.files import write_text
    from tagreel.streaming import Stream
    from tagreel.tags import TagSet
    from tagreel.timeline import page

    if window is not None and live is None:
        raise RecipeError("--window is of a running input; give --live SECONDS too")
    say = printer(as_json)
    found, _ = media.files(sources)
    folder = find(run, checkpoint)
    model, tags = model_of(run, checkpoint, device, tuple(trust)), TagSet.in_folder(folder)
    named = {stream: name for stream, name in (("rgb", rgb), ("audio", audio)) if name is not None}
    if model.provenance is None or foreign:
        if not named:
            why = "was told to take other features" if foreign else "does not know what made its features"
            raise DataError(
                f"{why}; name what makes them with --rgb and --audio, and --projection where there is one",
                path=str(run),
            )
        extractor = extractor_of(rgb, audio, settings, projection)
    else:
        moved = {stream: name.partition(":")[2] for stream, name in named.items()}
        extractor = Extractor.from_provenance(model.provenance, moved=moved, limits=limits_of(settings))
    if live is not None:
        for file in found:
            stream = Stream(model, window=window, step=live)
            for row in _running(file, stream, tags, extractor, every=live, threshold=threshold, top_k=top_k):
                if as_json:
                    print(json.dumps(row, ensure_ascii=False), flush=True)  # noqa: T201
                told = "   ".join(f"{each['name']} {each['probability']:.2f}" for each in row["tags"])
                say(f"{file.name}   {clock(row['seconds'])}   {told or '-'}")
        return
    tag_video = partial(tagging.tag, model, tags, threshold=threshold, top_k=top_k)
    timelines: list[Timeline] = []
    bad: list[dict[str, str]] = []
    with progress("tagging", len(found)) as advance:
        for number, file in enumerate(found, 1):
            # As seen from the page, if there is one.
            source = file.path if html is None else os.path.relpath(file.path, html.parent)
            try:
                frames = extractor.features(file.path)
                timeline = tag_video(frames, title=file.name, source=Path(source).as_posix())
            except DataError as error:
                bad.append({"path": file.path, "reason": error.reason})
                print(f"tagreel: {file.path}: {error.reason}", file=sys.stderr)  # noqa: T201
            else:
                timelines.append(timeline)
                for line in _lines(timeline):
                    say(line)
                if not timeline.tags:
                    [lane] = tag_video(frames, title=file.name, threshold=0.0, top_k=1).tags
                    say(f"  none reaches its threshold; likeliest: {lane.name}, {lane.probability:.2f}")
            advance(number)
    if html is not None and timelines:
        write_text(html, page(timelines))
        say(f"wrote {html}: open it in a browser")
    finish(as_json, {"files": [timeline.to_json() for timeline in timelines], "bad": bad})
    if bad:
        raise typer.Exit(2)


def _lines(timeline: Timeline) -> Iterator[str]:
    """A file's tags, each with its probability and places."""
    yield f"{timeline.title}   {clock(timeline.seconds)}"
    width = max((len(lane.name) for lane in timeline.tags), default=0)
    for lane in timeline.tags:
        places = ", ".join(f"{clock(place.start)}-{clock(place.end)}" for place in lane.intervals)
        yield f"  {lane.probability:.2f}  {lane.name:<{width}}  {places}".rstrip()


def _running(
    file: File,
    stream: Stream,
    tags: TagSet,
    extractor: Extractor,
    *,
    every: int,
    threshold: float | None,
    top_k: int,
) -> Iterator[dict[str, Any]]:
    """What the tags of an input are so far, every so many seconds."""
    from tagreel.tagging import shown

    for piece in extractor.pieces(file.path, seconds=every):
        stream.feed(extractor.finish(piece))
        scores = tags.apply(stream.scores().cpu()[None])[0]
        places = shown(tags, scores, threshold=threshold, top_k=top_k)
        found = [{"name": tags.names[place], "probability": float(scores[place])} for place in places]
        yield {"file": file.path, "seconds": stream.seconds, "tags": found}
