"""What the commands share that read media files: the options, and what makes features of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagreel.display import clock
from tagreel.errors import RecipeError

if TYPE_CHECKING:
    from tagreel.decoding import Limits
    from tagreel.extract import Extracted
    from tagreel.extractor import Extractor

LISTED = 20
"""Unreadable files that a command lists; the report has all."""

_ENCODERS = "KIND:WHAT, such as tflite:FILE, onnx:FILE or transformers:NAME (`tagreel encoders` lists them)"
Rgb = Annotated[
    str | None,
    typer.Option("--rgb", metavar="ENCODER", help=f"What makes features of pictures: {_ENCODERS}."),
]
Audio = Annotated[
    str | None,
    typer.Option("--audio", metavar="ENCODER", help="What makes features of sound, named likewise."),
]
MediaSettings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="An encoder's option or a limit: --set rgb.size=256, --set limits.seconds=300.",
    ),
]
Pca = Annotated[
    list[str],
    typer.Option(
        metavar="STREAM=N",
        help="Project a stream onto its N main directions, fitted on these videos, and store it in bytes.",
    ),
]
Projections = Annotated[
    list[str],
    typer.Option(
        "--projection",
        metavar="STREAM=FILE",
        help="A projection that there is: from another data set, or the folder that YouTube-8M published.",
    ),
]
Jobs = Annotated[int, typer.Option(min=1, help="Files to decode at a time; default: one a core.")]
MaxBad = Annotated[
    int | None,
    typer.Option(min=0, help="Stop at more unreadable files; by default they never stop the work."),
]
Retry = Annotated[bool, typer.Option("--retry", help="Try again the files that could not be read before.")]
JOBS = os.cpu_count() or 1


def limits_of(settings: Sequence[str]) -> Limits:
    """The limits of decoding, with the settings (`limits.seconds=300`) among these."""
    from tagreel.decoding import Limits
    from tagreel.parts import set_at

    limits: Any = Limits()
    for path, value in _pairs(settings, "--set"):
        if path.startswith("limits."):
            limits = set_at(limits, path.split(".")[1:], value, "limits", ())
    found: Limits = limits
    return found


def extractor_of(
    rgb: str | None, audio: str | None, settings: Sequence[str], projections: Sequence[str] = ()
) -> Extractor:
    """What makes features, from a command's options."""
    from tagreel import encoding
    from tagreel.extractor import Extractor
    from tagreel.projection import Projection

    named = {stream: name for stream, name in (("rgb", rgb), ("audio", audio)) if name is not None}
    if not named:
        raise RecipeError(
            "neither --rgb nor --audio: name what makes the features of pictures, sound or both"
        )
    for path, _ in _pairs(settings, "--set"):
        if path.split(".")[0] not in (*named, "limits"):
            raise RecipeError(
                f"--set {path}: expected {', '.join(f'{name}.OPTION' for name in (*named, 'limits'))}"
            )
    encoders = {
        stream: encoding.find(
            name, [setting for setting in settings if setting.startswith(f"{stream}.")], slot=stream
        )
        for stream, name in named.items()
    }
    given = {
        stream: Projection.load(path) for stream, path in _of_streams(projections, "--projection", named)
    }
    return Extractor(encoders, given, limits=limits_of(settings))


def pca_of(pca: Sequence[str], extractor: Extractor) -> dict[str, int]:
    """The widths that are asked for by stream."""
    widths = {}
    for stream, text in _of_streams(pca, "--pca", extractor.encoders):
        if not text.isdigit():
            raise RecipeError(f"--pca {stream}={text}: expected a number, the width that is to come out")
        if stream in extractor.projections:
            raise RecipeError(f"{stream} has both --pca and --projection; give one of them")
        widths[stream] = int(text)
    return widths


def told(extracted: Extracted) -> str:
    """A data set in a line."""
    return f"{extracted.videos:,} videos of {clock(extracted.seconds)} in all"


def bad_lines(bad: Sequence[Mapping[str, str]], report: str) -> Iterator[str]:
    """The files that could not be read, and why."""
    if bad:
        yield f"{len(bad):,} {'file' if len(bad) == 1 else 'files'} could not be read:"
        for each in bad[:LISTED]:
            yield f"  {each['path']}: {each['reason']}"
        if len(bad) > LISTED:
            yield f"  ... and {len(bad) - LISTED:,} more, all in {report}"


@contextmanager
def resumable() -> Iterator[None]:
    """Say how to go on when somebody stops the work."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; go on with the same command", file=sys.stderr)  # noqa: T201
        raise


def _pairs(settings: Sequence[str], option: str) -> Iterator[tuple[str, str]]:
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(f"{option} {setting}: expected PATH=VALUE")
        yield path.strip(), value.strip()


def _of_streams(given: Sequence[str], option: str, streams: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for stream, value in _pairs(given, option):
        if stream not in streams:
            raise RecipeError(
                f"{option} {stream}={value}: there is no such stream; expected {' or '.join(streams)}"
            )
        yield stream, value
