"""`tagreel check`: what is in the files."""

from __future__ import annotations

from typing import Annotated

import typer

from tagreel.commands._shared import SOURCES_HELP, Json, WholeVideos, finish, printer, source_of
from tagreel.display import progress


def check(
    sources: Annotated[list[str], typer.Argument(metavar="SRC...", help=SOURCES_HELP)],
    whole_videos: WholeVideos = False,
    as_json: Json = False,
) -> None:
    """Walk every record: what is there, and what is damaged.

    Shows counts, widths, frame lengths and labels. Exit code 2, and a list of it, if anything is damaged.
    """
    from tagreel.check import check as check_source

    say = printer(as_json)
    source = source_of(sources, whole_videos=whole_videos)
    with progress("checking", len(source)) as advance:
        report = check_source(source, progress=lambda done, total: advance(done))
    say(report.text())
    found = report.to_dict()
    finish(as_json, found)
    if found["damage"]:
        raise typer.Exit(2)
