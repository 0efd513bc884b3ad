"""`tagreel convert`: feature files of any format to Arrow shards."""

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
from tagreel.errors import RecipeError


def convert(
    sources: Annotated[list[str], typer.Argument(metavar="SRC...", help=SOURCES_HELP)],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder for the shards.")],
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="About how large a shard is: 250MB, 1GB, 1GiB.")
    ] = "1GB",
    jobs: Annotated[int, typer.Option(min=1, help="Shards to write at once, each in a process.")] = 1,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not read each shard again and compare it with its source.")
    ] = False,
    skip_damaged: SkipDamaged = 0,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    as_json: Json = False,
) -> None:
    """Write feature files as Arrow shards, which are read in less time and by other tools as well.

    TFRecord and .npz files become files of one size, mapped into memory when they are read, each record with
    a checksum. The same command goes on where a stopped one was.

    Example: tagreel convert 'tagreel-demo/data/train*' --out arrow
    """
    from tagreel.compress import parse_size
    from tagreel.convert import convert as convert_source

    say = printer(as_json)
    if ":/" in out.as_posix()[2:]:  # a Path of s3://x is s3:/x
        raise RecipeError(
            f"--out {out}: expected a local folder; upload it then, with `aws s3 sync` or the like"
        )
    try:
        size = parse_size(shard_size)
    except RecipeError:
        raise RecipeError(
            f"--shard-size {shard_size}: expected a size such as 250MB, 1GB (10^9 bytes) or 1GiB (2^30)"
        ) from None
    source = source_of(sources, check_crc=not no_crc, whole_videos=whole_videos, say=say)
    with progress("converting", len(source)) as advance:
        made = convert_source(
            source,
            out,
            shard_size=size,
            jobs=jobs,
            verify=not no_verify,
            skip_damaged=skip_damaged,
            on_videos=advance,
        )
    kept = f", {made.kept:,} of them there already" if made.kept else ""
    files = "1 shard" if made.shards == 1 else f"{made.shards:,} shards"
    say(f"wrote {out}: {made.videos:,} videos in {files}{kept}")
    list_damaged(say, [str(error) for error in made.damaged])
    say(f"next: tagreel check {out}")
    finish(
        as_json,
        {
            "out": str(out),
            "videos": made.videos,
            "shards": made.shards,
            "kept": made.kept,
            "damaged": len(made.damaged),
        },
    )
