"""`tagreel demo`: the whole way on a planted data set."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from tagreel.commands._shared import Device, Json, finish, printer, report_on
from tagreel.display import training_lines
from tagreel.errors import RecipeError


def demo(
    out: Annotated[
        Path, typer.Option(help="Where the data set and the run go; an earlier demo is replaced.")
    ] = Path("tagreel-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Another seed plants another problem.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train and score a small tagger on a planted data set.

    Writes shards, trains the recipe `smoke` on them, evaluates it on videos it has not seen, and writes a
    report to look at: the same steps as on your own data, in half a minute on two cores. The best score that
    is possible on these videos is known, and shown beside the one that was reached.
    """
    say = printer(as_json)
    marker = out / "demo.json"
    if out.exists() and any(out.iterdir()):
        if not marker.exists():
            raise RecipeError(f"--out {out}: is not empty and no demo; choose another folder")
        for name in ("data", "run"):
            shutil.rmtree(out / name, ignore_errors=True)
    from tagreel import recipe as recipes
    from tagreel.demo import best_possible, write_planted
    from tagreel.files import write_json
    from tagreel.readers.synthetic import Planted
    from tagreel.source import Source
    from tagreel.train import train as train_recipe

    out.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"seed": seed})
    planted = Planted(seed=seed)
    say("Planting a problem: 24 scenes in the picture, 12 sounds, 120 tags that depend on one or both.")
    write_planted(out / "data", planted)
    splits = {name: Source([out / "data" / f"{name}*.tfrecord"]) for name in ("train", "validate", "test")}
    say(f"wrote {sum(map(len, splits.values())):,} videos to {out / 'data'} as TFRecord shards\n")
    outcome = train_recipe(
        recipes.find("smoke"),
        data=splits["train"],
        validation=splits["validate"],
        out=out / "run",
        label_names=planted.label_names,
        seed=seed,
        device=device,
        log_every=50,
        on_event=training_lines(say),
    )
    if outcome.interrupted:
        raise typer.Exit(130)
    report = report_on(
        out / "run",
        splits["test"],
        title="tagreel demo: the planted set",
        device=device,
        say=say,
        best=best_possible(planted, splits["test"]),
    )
    say("")
    say(report.text())
    report.write(out / "run" / "report")
    say(f"\nwrote {out / 'run' / 'report' / 'report.html'}: open it in a browser")
    say("next, the same by hand:")
    say(f"  tagreel check {out / 'data'}")
    say(f"  tagreel evaluate {out / 'run'} --data '{out / 'data'}/test*'")
    say(f"  tagreel predict {out / 'run'} --data '{out / 'data'}/test*' --out {out / 'tags.jsonl'}")
    say("  tagreel recipes")
    finish(as_json, {**report.metrics, "videos": report.videos, "best_possible": report.best_possible})
