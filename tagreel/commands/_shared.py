"""What the commands share: their options, and how they print, read and end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tagreel.display import progress
from tagreel.errors import RecipeError

if TYPE_CHECKING:
    from tagreel.distributed import Ranks
    from tagreel.loop import Outcome
    from tagreel.model import Model
    from tagreel.recipe import Ensemble, Recipe
    from tagreel.report import Report
    from tagreel.source import Source

SOURCES_HELP = (
    "Feature files: TFRecord shards (YouTube-8M video, frame or segment level, AudioSet; plain or .gz), "
    ".arrow or .npz; files, folders, quoted globs, and URLs of them (s3://, https://). May be given several "
    "times."
)
LISTED = 100
"""Damaged records that a command lists, of those it left out."""

Data = Annotated[list[str], typer.Option("--data", metavar="SRC", help=SOURCES_HELP)]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout; all else on stderr.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads that read ahead.")]
SkipDamaged = Annotated[
    int, typer.Option(metavar="N", min=0, help="Go on without up to N damaged records; they are listed.")
]
NoCrc = Annotated[bool, typer.Option("--no-crc", help="Do not verify checksums.")]
WholeVideos = Annotated[
    bool, typer.Option("--whole-videos", help="Read rated segments (YouTube-8M 2019) as whole videos.")
]
Precision = Annotated[
    Literal["float32", "bfloat16", "int8"] | None,
    typer.Option(help="Multiply frames in fewer bits: faster on a CPU. float32 changes no score."),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run, a model or an ensemble: the folder.")]
Checkpoint = Annotated[str, typer.Option(help="best, last, or step-N.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Videos at once; default: the recipe's.")]
Foreign = Annotated[
    bool, typer.Option("--foreign", help="Take features that were made otherwise than the model's.")
]
Trust = Annotated[
    list[str],
    typer.Option(
        metavar="MODULE", help="Also take parts of recipes from this module, installed or in this folder."
    ),
]
RecipeName = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A name from `tagreel recipes`, a .json file, or file.py:NAME."),
]
Validate = Annotated[
    list[str],
    typer.Option("--validate", metavar="SRC", help="Data to validate on after each epoch."),
]
Settings = Annotated[
    list[str],
    typer.Option("--set", metavar="PATH=VALUE", help="Change a setting: --set training.batch_size=256."),
]
Labels = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Names of the classes: YouTube-8M's or AudioSet's CSV, or one a line."),
]
Inference = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Score otherwise: --set inference=tagreel.inference.RepeatedSampling, --set inference.times=10, "
        "or a setting of evaluation_sampling.",
    ),
]
Epochs = Annotated[float | None, typer.Option(help="How long; default: the recipe's.")]
Steps = Annotated[int | None, typer.Option(min=1, help="How long, in steps of the optimizer.")]
Seed = Annotated[
    int, typer.Option(min=0, help="First weights, order of the data, dropout: everything random.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a stopped or killed run was.")]
ValidateEvery = Annotated[int | None, typer.Option(metavar="STEPS", min=1, help="Default: every epoch.")]
SaveMinutes = Annotated[float, typer.Option(min=0, help="Write a checkpoint at least this often.")]
Keep = Annotated[int, typer.Option(min=1, help="Checkpoints to keep, besides the best.")]
LogEvery = Annotated[int | None, typer.Option(metavar="STEPS", min=1, help="Default: 100 lines a run.")]
Board = Annotated[bool, typer.Option("--tensorboard", help="Also log to RUN/tensorboard.")]


def printer(as_json: bool) -> Callable[[str], None]:
    """What prints a line for people: on stdout, or on stderr where that is for JSON."""
    stream = sys.stderr if as_json else sys.stdout
    return lambda text: print(text, file=stream, flush=True)


def finish(as_json: bool, result: dict[str, Any]) -> None:
    """The one JSON object that `--json` asks for."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False), flush=True)  # noqa: T201


def recipe_of(
    name: str,
    settings: Sequence[str],
    trust: Sequence[str],
    *,
    epochs: float | None = None,
    steps: int | None = None,
) -> Recipe:
    """The recipe of that name with the command line's settings."""
    from tagreel import recipe as recipes

    found = recipe_or_ensemble(name, settings, trust, epochs=epochs, steps=steps)
    if isinstance(found, recipes.Recipe):
        return found
    return recipes.find(name, trust=tuple(trust))  # which says what it is instead


def recipe_or_ensemble(
    name: str,
    settings: Sequence[str],
    trust: Sequence[str],
    *,
    epochs: float | None = None,
    steps: int | None = None,
) -> Recipe | Ensemble:
    """What has that name, with the command line's settings; a length holds for every member."""
    from tagreel import recipe as recipes

    if epochs is not None and steps is not None:
        raise RecipeError("--epochs and --steps both say how long; give one of them")
    look_here(trust)
    found = recipes.find_any(name, trust=tuple(trust))
    length = f"epochs={epochs}" if epochs is not None else f"steps={steps}" if steps is not None else ""
    within = (
        [f"members.{member}." for member in found.members] if isinstance(found, recipes.Ensemble) else [""]
    )
    for setting in [*settings, *(f"{member}training.{length}" for member in within if length)]:
        found = recipes.override(found, setting, trust=tuple(trust))
    return found


def end_training(
    outcome: Outcome,
    out: Path,
    say: Callable[[str], None],
    as_json: bool,
    *,
    next_commands: Sequence[str],
) -> None:
    """Say how it ended and what comes next; raises `typer.Exit` with code 130 when it was stopped."""
    list_damaged(say, [str(error) for error in outcome.damaged])
    if outcome.interrupted:
        say(f"stopped at step {outcome.step:,}, saved; go on with the same command and --resume")
        finish(as_json, {"run": str(out), "step": outcome.step, "interrupted": True})
        raise typer.Exit(130)
    say(f"\ndone: {out} at step {outcome.step:,}")
    for number, command in enumerate(next_commands):
        say(f"{'next:' if number == 0 else '     '} {command}")
    scores = {"best": outcome.best} if outcome.best else {}
    finish(as_json, {"run": str(out), "step": outcome.step, "damaged": len(outcome.damaged), **scores})


def look_here(trust: Sequence[str]) -> None:
    """A trusted package may be a file in the current folder, as with `python -m`."""
    if trust and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def source_of(
    paths: Sequence[str],
    *,
    check_crc: bool = True,
    whole_videos: bool = False,
    say: Callable[[str], None] | None = None,
) -> Source:
    """The feature files; says which of the files found are none."""
    from tagreel.source import Source

    with progress("looking at", unit="files") as advance:
        source = Source(paths, check_crc=check_crc, whole_videos=whole_videos, progress=advance)
    # What lies beside features by rights is no surprise: reports, projections, names of tags.
    ignored = [path for path in source.ignored if not path.endswith((".json", ".safetensors", ".txt"))]
    if ignored and say is not None:
        shown = ", ".join(ignored[:3]) + (" ..." if len(ignored) > 3 else "")
        say(f"no feature files, left out: {shown} ({len(ignored):,} in all)")
    return source


def model_of(
    run: Path, checkpoint: str, device: str, trust: tuple[str, ...], settings: Sequence[str] = ()
) -> Model:
    """A trained model, on the device."""
    from tagreel.checkpoint import load
    from tagreel.runtime import pick_device
    from tagreel.tagger import set_inference

    look_here(trust)
    model = load(run, checkpoint=checkpoint, device=pick_device(device), trust=trust)
    set_inference(model, settings, trust=trust)
    return model


def list_damaged(say: Callable[[str], None], damaged: Sequence[str]) -> None:
    """Print the records that were left out."""
    if damaged:
        say(f"{len(damaged):,} damaged records were left out:")
        for line in damaged[:LISTED]:
            say(f"  {line}")
        if len(damaged) > LISTED:
            say(f"  ... and {len(damaged) - LISTED:,} more (tagreel check lists them by file)")


def report_on(
    run: Path,
    source: Source,
    *,
    title: str,
    device: str,
    say: Callable[[str], None],
    checkpoint: str = "best",
    batch_size: int | None = None,
    threads: int = 1,
    skip_damaged: int = 0,
    settings: Sequence[str] = (),
    label_names: Sequence[str] | None = None,
    trust: tuple[str, ...] = (),
    best: dict[str, float] | None = None,
    damaged: list[str] | None = None,
    foreign: bool = False,
    ranks: Ranks | None = None,
    precision: str | None = None,
) -> Report:
    """Evaluate a run's checkpoint, or predictions of `label_names`; `damaged` takes what was left out.

    With a `precision` it is what `tagreel predict` makes of the model that is scored.
    """
    from tagreel.checkpoint import facts, find
    from tagreel.distributed import ALONE
    from tagreel.evaluate import evaluate as evaluate_model
    from tagreel.evaluate import make_report, scoring_loader
    from tagreel.folding import fold
    from tagreel.log import read_log
    from tagreel.recorded import Recorded
    from tagreel.runtime import pick_device
    from tagreel.tagger import set_inference

    model: Model
    if run.is_file():
        folder, known = run, {}
        model = Recorded(run, label_names=label_names or source.label_names)
        set_inference(model, settings, trust=trust)
    else:
        folder = find(run, checkpoint)
        known = facts(folder)
        model = model_of(folder, checkpoint, device, trust, settings)
    loader = scoring_loader(
        model,
        source,
        batch_size=batch_size,
        threads=threads,
        skip_damaged=skip_damaged,
        foreign=foreign,
        ranks=ranks or ALONE,
    )
    with progress("evaluating", len(source)) as advance:
        shown = model if precision is None else fold(model, precision)
        result = evaluate_model(shown, loader, device=pick_device(device), on_batch=advance)
    if damaged is not None:
        damaged += [str(error) for error in loader.damaged.values()]
    return make_report(
        model,
        result,
        title=title,
        data=source,
        checkpoint=folder,
        facts=known,
        log=read_log(run),
        best=best,
    )
