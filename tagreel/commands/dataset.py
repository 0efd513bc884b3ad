"""`tagreel dataset make`: a table of videos and tags to a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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

app = typer.Typer(
    no_args_is_help=True, help="Make a data set of your own videos and tags.", rich_markup_mode=None
)


@app.command()
def make(
    table: Annotated[
        Path,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Columns path and tags (several between semicolons); if you like id, split, group.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DATASET", help="The folder for train, validate, test and labels.")
    ],
    rgb: Rgb = None,
    audio: Audio = None,
    settings: MediaSettings = [],  # noqa: B006
    pca: Pca = [],  # noqa: B006
    projection: Projections = [],  # noqa: B006
    separator: Annotated[str, typer.Option(help="What stands between the tags of a video.")] = ";",
    shares: Annotated[
        str, typer.Option("--split", metavar="A,B,C", help="Per cent for train, validate and test.")
    ] = "80,10,10",
    min_videos: Annotated[
        int, typer.Option(min=1, help="Leave out tags that fewer training videos have.")
    ] = 2,
    jobs: Jobs = JOBS,
    max_bad: MaxBad = None,
    retry: Retry = False,
    as_json: Json = False,
) -> None:
    """Make a data set of your own videos and tags, ready to train on.

    Videos are extracted as by `tagreel extract`, the tags become the vocabulary, and the videos are split so
    that copies of a file, and what has the same group in the table, stay on one side. The tags' names go with
    the data into every model that is trained on it. When the work is stopped, the same command goes on.

    Example: tagreel dataset make --csv videos.csv --rgb layout --audio mel --out mine
    """
    from tagreel import media
    from tagreel.dataset import make as make_dataset

    say = printer(as_json)
    listed = media.table(table, separator=separator)
    extractor = extractor_of(rgb, audio, settings, projection)
    with resumable(), progress("extracting", len(listed)) as advance:
        made = make_dataset(
            listed,
            out,
            extractor,
            shares=_shares(shares),
            min_videos=min_videos,
            pca=pca_of(pca, extractor),
            jobs=jobs,
            max_bad=max_bad,
            retry=retry,
            on_video=advance,
        )
    say(f"wrote {out}: {len(made.tags):,} tags")
    for name, extracted in made.splits.items():
        say(f"  {name:<9} {told(extracted)}")
    bad = [each for extracted in made.splits.values() for each in extracted.bad]
    for line in bad_lines(bad, f"{out}/*/report.json"):
        say(line)
    if made.dropped:
        say(f"tags that too few training videos have, left out: {media.told(made.dropped)}")
    recipe = "own" if len(extractor.encoders) == 2 else f"own-{next(iter(extractor.encoders))}"
    validate = f" --validate {out}/validate" if "validate" in made.splits else ""
    say(f"next: tagreel train {recipe} --data {out}/train{validate} --out run")
    finish(
        as_json,
        {
            "out": str(out),
            "tags": made.tags,
            "dropped": made.dropped,
            "videos": {name: extracted.videos for name, extracted in made.splits.items()},
            "bad": bad,
        },
    )


def _shares(text: str) -> tuple[float, float, float]:
    try:
        train, validate, test = (float(share) for share in text.split(","))
    except ValueError:
        raise RecipeError(f"--split {text}: expected three numbers, such as 80,10,10") from None
    if min(train, validate, test) < 0 or not train:
        raise RecipeError(f"--split {text}: expected shares of 0 or more, and some for training")
    total = train + validate + test
    return train / total, validate / total, test / total
