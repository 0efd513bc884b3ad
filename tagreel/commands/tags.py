"""`tagreel tags`."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tagreel.commands._shared import Checkpoint, Json, Run, finish, printer
from tagreel.errors import RecipeError


def tags(
    run: Run,
    edit: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Show each class as its column tag says.")
    ] = None,
    restore: Annotated[
        list[str], typer.Option(metavar="CLASS", help="Show a class as it was trained again.")
    ] = [],  # noqa: B006
    rename: Annotated[list[str], typer.Option(metavar="OLD=NEW", help="Show a tag under another name.")] = [],  # noqa: B006
    merge: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=TAG,TAG", help='Show several tags as one; a name with a comma in "quotes".'
        ),
    ] = [],  # noqa: B006
    drop: Annotated[list[str], typer.Option(metavar="TAG", help="Do not show a tag.")] = [],  # noqa: B006
    reset: Annotated[
        bool, typer.Option("--reset", help="Show all classes as trained, without thresholds and calibration.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write what --edit reads, to change it there.")
    ] = None,
    checkpoint: Checkpoint = "best",
    as_json: Json = False,
) -> None:
    """Show the tags of a model, and rename, merge and drop them without training anew.

    Without options: the name of each tag, the classes that it is made of, the threshold from which on it is
    shown, its calibration, and how many labels it had in training and in calibration.

    --edit, --restore, --rename, --merge and --drop change what `tag` and `predict` show of the model, in this
    order, each as often as needed. A merged tag has the highest probability of its classes, with calibration
    and threshold as for all tags together until `tagreel calibrate` is run again. The model itself stays as
    it is, and nothing is lost: `evaluate`, ensembles and teachers go on with its classes as trained.

    For hundreds of tags: --export FILE.csv, change the column tag (the same name twice merges, an empty one
    drops), and --edit FILE.csv.

    Example: tagreel tags tagreel-demo/run --rename beach=Seaside --merge "Inside=kitchen,studio"
    """
    from tagreel.checkpoint import TAGS, facts, find
    from tagreel.tags import TagSet
    from tagreel.tags import reset as show_as_trained

    say = printer(as_json)
    folder = find(run, checkpoint)
    edits = bool(edit or restore or rename or merge or drop)
    if reset:
        if edits:
            raise RecipeError("--reset undoes all that other options do; give it alone")
        show_as_trained(folder)
    found = TagSet.in_folder(folder)
    if edit is not None:
        found = found.edited(edit)
    for name in restore:
        found = found.restore(name)
    for text in rename:
        found = found.rename(*_parted("--rename", text, "OLD=NEW"))
    for text in merge:
        name, parts = _parted("--merge", text, "NAME=TAG,TAG")
        found = found.merge(name, [parts] if parts in found.names else _listed(parts))
    for name in drop:
        found = found.drop(name)
    if edits:
        found.write(folder)
    if export is not None:
        found.export(export)
    counts = facts(folder).get("train_counts")
    rows: list[dict[str, Any]] = [
        {
            "name": tag.name,
            "classes": {c: found.label_names[c] for c in tag.classes},
            "threshold": tag.fit.threshold if math.isfinite(tag.fit.threshold) else None,
            "slope": tag.fit.slope,
            "bias": tag.fit.bias,
            "train_labels": sum(counts[c] for c in tag.classes) if counts else None,
            "calibration_labels": tag.fit.positives,
        }
        for tag in found.tags
    ]
    dropped = len(found.label_names) - sum(len(tag.classes) for tag in found.tags)
    if edits or reset or export:
        for path in (folder / TAGS if edits else None, export):
            if path is not None:
                say(f"wrote {path}")
        say(f"{len(rows):,} tags of {len(found.label_names):,} classes, {dropped:,} of which are not shown")
    else:
        _print(rows, dropped, say)
    if edits and found.fitted is not None:
        say("next: tagreel calibrate, if tags were merged or restored: they have what fits all tags together")
    finish(as_json, {"model": str(folder), "tags": rows, "dropped": dropped, "fitted": found.fitted})


def _print(rows: Sequence[dict[str, Any]], dropped: int, say: Callable[[str], None]) -> None:
    """A line a tag."""
    width = min(max(len(row["name"]) for row in rows), 40)
    say(f"{'tag':<{width}}  threshold      slope       bias  trained on  fitted on  classes")
    for row in rows:
        threshold = "never" if row["threshold"] is None else f"{row['threshold']:.4f}"
        keys = ("train_labels", "calibration_labels")
        counts = ["" if row[key] is None else f"{row[key]:,}" for key in keys]
        classes = ", ".join(f"{c} {name}" for c, name in row["classes"].items())
        say(
            f"{row['name']:<{width}}  {threshold:>9}  {row['slope']:>9.4f}  {row['bias']:>9.4f}  "
            f"{counts[0]:>10}  {counts[1]:>9}  {classes}"
        )
    if dropped:
        say(f"{dropped:,} classes are not shown")


def _parted(option: str, text: str, form: str) -> tuple[str, str]:
    before, equals, after = (part.strip() for part in text.partition("="))
    if not (before and equals and after):
        raise RecipeError(f"{option} {text}: expected {form}")
    return before, after


def _listed(text: str) -> Sequence[str]:
    """Names between commas, those with a comma in double quotes."""
    (names,) = csv.reader([text], skipinitialspace=True)
    return [name.strip() for name in names]
