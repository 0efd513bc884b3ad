"""`tagreel reproduce`."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tagreel.commands._shared import (
    Data,
    Device,
    Json,
    Labels,
    Settings,
    SkipDamaged,
    Threads,
    finish,
    printer,
    source_of,
)
from tagreel.display import duration, training_lines
from tagreel.errors import RecipeError

EVERY = 20.0
"""Seconds from one line of a training to the next."""


def reproduce(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="A table's name; without one they are listed.")
    ] = None,
    data: Data = [],  # noqa: B006
    validate: Annotated[
        list[str], typer.Option("--validate", metavar="SRC", help="Videos to score on; never trained on.")
    ] = [],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="A folder for models and tables; one in use goes on where it was."
        ),
    ] = None,
    scale: Annotated[
        Literal["small", "paper"],
        typer.Option(
            help="small: models of an eighth of the width, trained alike for minutes, on any data; paper: as "
            "published, on the data set of the paper."
        ),
    ] = "small",
    seeds: Annotated[int, typer.Option(min=1, max=10, help="How often each row is trained.")] = 3,
    rows: Annotated[
        list[str], typer.Option("--rows", metavar="NAME", help="Only this row; may be given several times.")
    ] = [],  # noqa: B006
    labels: Labels = None,
    settings: Settings = [],  # noqa: B006
    device: Device = "auto",
    threads: Threads = 1,
    skip_damaged: SkipDamaged = 0,
    as_json: Json = False,
) -> None:
    """Train the rows of a paper's results table, and see which of its claims hold on your data.

    Every row is trained several times, with different random numbers. Then the table is written, your figures
    beside the paper's, with a picture and what the runs say of each claim of the paper: shown, not shown, or
    the opposite. Small models learn from any data, and their figures cannot be compared with a paper's; which
    row is ahead of which can. Stop it at any time: the same command goes on, and trains nothing twice.

    Example: tagreel reproduce willow-2 --data tagreel-demo/data/train* --validate tagreel-demo/data/test*
    --labels tagreel-demo/data/labels.txt --out runs/willow-2
    """
    from tagreel.claims import TABLES

    say = printer(as_json)
    if table is None:
        width = max(map(len, TABLES))
        for name, found in TABLES.items():
            say(f"{name:<{width}}   {len(found.rows):>2} rows   {found.title}")
        say("\ntrain one: tagreel reproduce TABLE --data SRC --validate SRC --labels FILE --out FOLDER")
        finish(as_json, {name: {"title": t.title, "rows": list(t.rows)} for name, t in TABLES.items()})
        return
    for option, given in (("--data", data), ("--validate", validate), ("--out", out)):
        if not given:
            raise RecipeError(f"{option} is missing; expected --data SRC, --validate SRC and --out FOLDER")
    assert out is not None
    from tagreel.reproduce import reproduce as run
    from tagreel.reproduce import table_of
    from tagreel.verdicts import draw
    from tagreel.vocabulary import read_label_names

    table_of(table)  # before the data are looked at
    show, printed = training_lines(say), 0.0

    def on_event(row: dict[str, Any]) -> None:
        nonlocal printed
        if row["event"] == "row":
            say(f"\n{row['number']} of {row['rows']}: {row['name']}, seed {row['seed']}")
        elif row["event"] == "scored":
            took = duration(60 * row["minutes"])
            say(f"GAP@20 {row['scores']['gap@20']:.4f}   mAP {row['scores']['map']:.4f}   trained in {took}")
        elif row["event"] == "start":
            show(row)
        elif row["event"] in ("train", "scoring") and time.monotonic() - printed > EVERY:
            printed = time.monotonic()
            if row["event"] == "train":
                show(row)
            else:
                say(f"scored {row['videos']:,} of {row['all']:,} videos")

    result = run(
        table,
        data=source_of(data, say=say),
        validation=source_of(validate, say=say),
        out=out,
        scale=scale,
        seeds=seeds,
        rows=rows,
        label_names=read_label_names(labels) if labels is not None else None,
        settings=settings,
        device=device,
        threads=threads,
        skip_damaged=skip_damaged,
        command=shlex.join(["tagreel", *sys.argv[1:]]),
        on_event=on_event,
    )
    if result is None:
        say("stopped, saved; go on with the same command")
        finish(as_json, {"out": str(out), "interrupted": True})
        raise typer.Exit(130)
    written = [out / f"{table}.md", out / f"{table}.json"]
    try:
        draw(result, out / f"{table}.png")
        written.insert(1, out / f"{table}.png")
    except RecipeError as error:
        say(f"no picture: {error}")
    say("\n" + (out / f"{table}.md").read_text(encoding="utf-8"))
    say(f"done: {', '.join(map(str, written))}")
    finish(as_json, {"out": str(out), **result})
