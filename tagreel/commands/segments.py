"""`tagreel segments`: frame records to the means of their parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagreel.commands._shared import (
    SOURCES_HELP,
    Json,
    NoCrc,
    SkipDamaged,
    WholeVideos,
    finish,
    list_damaged,
    printer,
    source_of,
)
from tagreel.display import progress


def segments(
    sources: Annotated[list[str], typer.Argument(metavar="SRC...", help=SOURCES_HELP)],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder for one .npz file a shard.")],
    parts: Annotated[int, typer.Option("--segments", min=1, help="Equal parts of each video.")] = 3,
    skip_damaged: SkipDamaged = 0,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    as_json: Json = False,
) -> None:
    """Pool frame records to the means of each video's thirds, once, for video-level recipes.

    Recipes that draw segments in training (cmu-...-da) or weigh them in prediction (cmu-...-si) read the
    result; a run that was interrupted goes on.

    Example: tagreel segments tagreel-demo/data/train* --out thirds
    """
    from tagreel.segments import write_segments

    say = printer(as_json)
    source = source_of(sources, check_crc=not no_crc, whole_videos=whole_videos, say=say)
    with progress("pooling", len(source)) as advance:
        written = write_segments(source, out, segments=parts, skip_damaged=skip_damaged, on_videos=advance)
    kept = f", {written.kept:,} files were there already" if written.kept else ""
    say(f"wrote {out}: {written.videos:,} videos from {written.files:,} files{kept}")
    list_damaged(say, [str(error) for error in written.damaged])
    say(f"next: tagreel train cmu-more8 --data {out} --set sampling=tagreel.sampling.RandomSegment --out RUN")
    finish(as_json, {"out": str(out), "videos": written.videos, "damaged": len(written.damaged)})
