"""The command line: one function a command, which parses, calls, and prints.

Torch is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagreel.display import progress, training_lines
from tagreel.errors import DataError, RecipeError, TagreelError

if TYPE_CHECKING:
    from tagreel.loop import Outcome
    from tagreel.model import Tagger
    from tagreel.recipe import Recipe
    from tagreel.report import Report
    from tagreel.source import Source

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Learn tags for videos from per-second audio and visual features, and tag new videos.\n\n"
    "New here? Run: tagreel demo",
)
recipe_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.add_typer(
    recipe_app, name="recipes", help="List the recipes, or show one: its settings, size and source."
)

SOURCES_HELP = (
    "Feature files: TFRecord shards (YouTube-8M video, frame or segment level, AudioSet; plain or .gz) or "
    ".npz; files, folders, quoted globs. May be given several times."
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
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that `tagreel train` wrote.")]
Checkpoint = Annotated[str, typer.Option(help="best, last, or step-N.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Videos at once; default: the recipe's.")]
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


def run(arguments: Sequence[str]) -> int:
    """Run one command; the exit code. Errors that a user can mend are one line on stderr and code 2."""
    try:
        result = app(_repeat_sources(list(arguments)), standalone_mode=False, prog_name="tagreel")
        return result if isinstance(result, int) else 0
    except (TagreelError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            message = f"{where}{error.strerror or error}"
        print(f"tagreel: {message}", file=sys.stderr)  # noqa: T201
        _finish("--json" in arguments, {"error": message})
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # Typer's own complaints about arguments know how to print themselves.
        if callable(show := getattr(error, "show", None)):
            show()
            _finish("--json" in arguments, {"error": str(getattr(error, "message", error))})
            return int(getattr(error, "exit_code", 2))
        raise


@app.command()
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
    say = _printer(as_json)
    marker = out / "demo.json"
    if out.exists() and any(out.iterdir()):
        if not marker.exists():
            raise RecipeError(f"--out {out}: is not empty and no demo; choose another folder")
        for name in ("data", "run"):
            shutil.rmtree(out / name, ignore_errors=True)
    from tagreel import recipe as recipes
    from tagreel.checkpoint import write_json
    from tagreel.demo import best_possible, write_planted
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
    report = _evaluate(
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
    _finish(as_json, {**report.metrics, "videos": report.videos, "best_possible": report.best_possible})


@recipe_app.callback()
def list_recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the recipes: name, parameters, what the paper reports, and what it is."""
    if context.invoked_subcommand is not None:
        context.obj = as_json
        return
    from tagreel import recipe as recipes
    from tagreel.model import count_parameters

    rows = [(name, count_parameters(found), found.about) for name, found in recipes.names().items()]
    say = _printer(as_json)
    width = max(len(name) for name, _, _ in rows)
    say(f"{'recipe':<{width}}   {'parameters':>12}   published          what it is")
    for name, parameters, about in rows:
        size = f"{parameters:,}" if parameters is not None else "by the data"
        published = ", ".join(f"{k.split()[0]} {v:g}" for k, v in list(about.published.items())[:1]) or "-"
        say(f"{name:<{width}}   {size:>12}   {published:<16}   {about.summary}")
    say("\nshow one: tagreel recipes show NAME")
    listed = [
        {"name": name, "parameters": size, "summary": about.summary, "published": dict(about.published)}
        for name, size, about in rows
    ]
    _finish(as_json, {"recipes": listed})


@recipe_app.command("show")
def show_recipe(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A recipe's name, a .json file, or file.py:NAME.")
    ],
    settings: Annotated[
        list[str], typer.Option("--set", metavar="PATH=VALUE", help="Change a setting first.")
    ] = [],  # noqa: B006
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Show a recipe: its settings with their paths for --set, its size, its source and published figures."""
    from tagreel import recipe as recipes
    from tagreel.model import count_parameters

    as_json = as_json or bool(context.obj)
    recipe = _recipe(name, settings, trust)
    configuration = recipes.to_json(recipe)
    about = configuration.pop("about")
    parameters = count_parameters(recipe)
    say = _printer(as_json)
    say(f"{name}: {about['summary']}")
    say(f"  parameters   {f'{parameters:,}' if parameters is not None else 'depends on the data'}")
    if parameters is not None:
        say(f"  float32      {parameters * 4 / 1e6:,.2f} MB ({parameters * 4 / 2**20:,.2f} MiB)")
    for key in ("paper", "checked"):
        if about[key]:
            say(f"  {key:<12} {about[key]}")
    for key, value in about["published"].items():
        say(f"  published    {key} {value:g}")
    say("\nsettings (change one with --set PATH=VALUE):")
    for path, value in _leaves(configuration, ""):
        say(f"  {path} = {value}")
    shown = {"name": name, "parameters": parameters, "about": about, "configuration": configuration}
    _finish(as_json, shown)


@app.command()
def check(
    sources: Annotated[list[str], typer.Argument(metavar="SRC...", help=SOURCES_HELP)],
    whole_videos: WholeVideos = False,
    as_json: Json = False,
) -> None:
    """Walk every record: what is there, and what is damaged.

    Shows counts, widths, frame lengths and labels. Exit code 2, and a list of it, if anything is damaged.
    """
    from tagreel.check import check as check_source

    say = _printer(as_json)
    source = _source(sources, whole_videos=whole_videos)
    with progress("checking", len(source)) as advance:
        report = check_source(source, progress=lambda done, total: advance(done))
    say(report.text())
    found = report.to_dict()
    _finish(as_json, found)
    if found["damage"]:
        raise typer.Exit(2)


@app.command()
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

    say = _printer(as_json)
    source = _source(sources, check_crc=not no_crc, whole_videos=whole_videos, say=say)
    with progress("pooling", len(source)) as advance:
        written = write_segments(source, out, segments=parts, skip_damaged=skip_damaged, on_videos=advance)
    kept = f", {written.kept:,} files were there already" if written.kept else ""
    say(f"wrote {out}: {written.videos:,} videos from {written.files:,} files{kept}")
    _list_damaged(say, [str(error) for error in written.damaged])
    say(f"next: tagreel train cmu-more8 --data {out} --set sampling=tagreel.sampling.RandomSegment --out RUN")
    _finish(as_json, {"out": str(out), "videos": written.videos, "damaged": len(written.damaged)})


@app.command()
def train(
    recipe: RecipeName,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="RUN", help="The folder for checkpoints, log and report.")],
    validate: Validate = [],  # noqa: B006
    settings: Settings = [],  # noqa: B006
    epochs: Epochs = None,
    steps: Steps = None,
    seed: Seed = 0,
    resume: Resume = False,
    start_from: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Begin with another run's weights, as far as they fit."),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A teacher's predictions on --data (.parquet); the loss leaves out its likeliest "
            "negatives, of each class the share training.forgive.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Names of the classes: YouTube-8M's or AudioSet's CSV, or one a line."
        ),
    ] = None,
    validate_every: ValidateEvery = None,
    save_minutes: SaveMinutes = 5.0,
    keep: Keep = 3,
    log_every: LogEvery = None,
    tensorboard: Board = False,
    device: Device = "auto",
    threads: Threads = 1,
    skip_damaged: SkipDamaged = 0,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Train a recipe on feature files.

    Example: tagreel train audioset-mean-std --data train/ --validate dev/ --labels class_labels_indices.csv
    --out runs/first
    """
    from tagreel.memory import available, estimate
    from tagreel.runtime import pick_device
    from tagreel.train import known_label_names, settle
    from tagreel.train import train as train_recipe
    from tagreel.vocabulary import read_label_names

    say = _printer(as_json)
    chosen = _recipe(recipe, settings, trust, epochs=epochs, steps=steps)
    source = _source(data, check_crc=not no_crc, whole_videos=whole_videos, say=say)
    names = read_label_names(labels) if labels is not None else None
    target = pick_device(device)
    needed = ""
    with suppress(DataError):  # where nothing can be read, training says so
        settled = settle(chosen, source, known_label_names(out if resume else None, source, names))
        needed = estimate(settled, source.first(), device=target).text(available(target))
    show = training_lines(say)

    def on_event(row: dict[str, Any]) -> None:
        if row["event"] == "start" and needed:
            say(needed)
        show(row)

    outcome = train_recipe(
        chosen,
        data=source,
        validation=_source(validate, check_crc=not no_crc, whole_videos=whole_videos, say=say)
        if validate
        else None,
        out=out,
        label_names=names,
        seed=seed,
        device=device,
        resume=resume,
        start_from=start_from,
        teacher=teacher,
        threads=threads,
        validate_every=validate_every,
        save_minutes=save_minutes,
        keep=keep,
        log_every=log_every,
        skip_damaged=skip_damaged,
        tensorboard=tensorboard,
        on_event=on_event,
    )
    _end_training(
        outcome,
        out,
        say,
        as_json,
        next_commands=(
            f"tagreel evaluate {out} --data SRC",
            f"tagreel predict {out} --data SRC --out tags.parquet",
        ),
    )


@app.command()
def pretrain(
    recipe: RecipeName,
    data: Data,
    target: Annotated[
        list[str],
        typer.Option(metavar="FEATURE", help="A feature to predict. May be given several times."),
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The folder for checkpoints and log.")],
    validate: Validate = [],  # noqa: B006
    settings: Settings = [],  # noqa: B006
    epochs: Epochs = None,
    steps: Steps = None,
    seed: Seed = 0,
    resume: Resume = False,
    validate_every: ValidateEvery = None,
    save_minutes: SaveMinutes = 5.0,
    keep: Keep = 3,
    log_every: LogEvery = None,
    tensorboard: Board = False,
    device: Device = "auto",
    threads: Threads = 1,
    skip_damaged: SkipDamaged = 0,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Teach a recipe's streams to predict features frame by frame, without labels.

    For recurrent pools. A tagger then begins with what was learnt: tagreel train RECIPE --start-from RUN.

    Example: tagreel pretrain thu-ae-visual-to-audio --data train/ --target audio --out runs/pretrained
    """
    from tagreel.pretrain import pretrain as pretrain_recipe

    say = _printer(as_json)
    chosen = _recipe(recipe, settings, trust, epochs=epochs, steps=steps)
    outcome = pretrain_recipe(
        chosen,
        data=_source(data, check_crc=not no_crc, whole_videos=whole_videos, say=say),
        validation=_source(validate, check_crc=not no_crc, whole_videos=whole_videos, say=say)
        if validate
        else None,
        target=target,
        out=out,
        seed=seed,
        device=device,
        resume=resume,
        threads=threads,
        validate_every=validate_every,
        save_minutes=save_minutes,
        keep=keep,
        log_every=log_every,
        skip_damaged=skip_damaged,
        tensorboard=tensorboard,
        on_event=training_lines(say),
    )
    command = f"tagreel train {recipe} --start-from {out} --data SRC --out OTHER"
    _end_training(outcome, out, say, as_json, next_commands=(command,))


@app.command()
def evaluate(
    run: Run,
    data: Data,
    report: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: RUN/report.")] = None,
    checkpoint: Checkpoint = "best",
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = 1,
    skip_damaged: SkipDamaged = 0,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Score a trained tagger, with a page of pictures.

    GAP@20, mAP, Hit@1, PERR, calibration, and the average precision of every class.

    map is over all scores and leaves out classes without positives; map_top20 is the YouTube-8M starter
    code's: only each video's 20 highest scores, and classes without positives count 0.
    """
    say = _printer(as_json)
    source = _source(data, check_crc=not no_crc, whole_videos=whole_videos, say=say)
    title = f"{run.resolve().name} on {', '.join(Path(path).name for path in data)}"
    damaged: list[str] = []
    found = _evaluate(
        run,
        source,
        title=title,
        device=device,
        checkpoint=checkpoint,
        batch_size=batch_size,
        threads=threads,
        skip_damaged=skip_damaged,
        trust=tuple(trust),
        say=say,
        damaged=damaged,
    )
    say(found.text())
    _list_damaged(say, damaged)
    folder = report or run / "report"
    found.write(folder)
    say(f"\nwrote {folder / 'report.html'} and {folder / 'report.json'}")
    say(f"next: tagreel predict {run} --data SRC --out tags.parquet")
    _finish(
        as_json, {**found.metrics, "videos": found.videos, "damaged": len(damaged), "report": str(folder)}
    )


@app.command()
def predict(
    run: Run,
    data: Data,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help=".parquet, .jsonl, or .csv (YouTube-8M's submission format)."),
    ],
    top_k: Annotated[int, typer.Option(min=1, help="Tags a video.")] = 20,
    checkpoint: Checkpoint = "best",
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = 1,
    skip_damaged: SkipDamaged = 0,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Write the most probable tags of every video to a file.

    One row a video, with names and probabilities, in the order of the input.

    A run that was killed goes on where it was when the command is given again.
    """
    from tagreel.evaluate import scoring_loader
    from tagreel.predict import predict as predict_all
    from tagreel.runtime import pick_device

    say = _printer(as_json)
    source = _source(data, check_crc=not no_crc, whole_videos=whole_videos, say=say)
    target = pick_device(device)
    model = _model(run, checkpoint, device, tuple(trust))
    loader = scoring_loader(model, source, batch_size=batch_size, threads=threads, skip_damaged=skip_damaged)
    began = time.perf_counter()
    with progress("tagging", len(source)) as advance:
        result = predict_all(model, loader, out, device=target, top_k=top_k, on_batch=advance)
    seconds = time.perf_counter() - began
    if result.resumed:
        say(f"an earlier run had left {result.resumed:,} rows")
    rate = (result.videos - result.resumed) / seconds
    say(f"wrote {out}: {result.videos:,} videos × {min(top_k, model.classes)} tags   {rate:,.0f} videos/s")
    _list_damaged(say, result.damaged)
    _finish(as_json, {"out": str(out), "videos": result.videos, "damaged": len(result.damaged)})


@app.command()
def remember(
    run: Run,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="MODEL", help="The folder for the model; it must be new.")],
    neighbours: Annotated[int, typer.Option(min=1, help="Videos that vote on a new one.")] = 100,
    sharpness: Annotated[float, typer.Option(help="How much more the nearest of them count.")] = 20.0,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="The votes' share of a score, the tagger has the rest.")
    ] = 0.5,
    checkpoint: Checkpoint = "best",
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = 1,
    skip_damaged: SkipDamaged = 0,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Let a trained tagger also ask the training videos nearest to a new one.

    Nothing is trained: one pass over --data writes a model that `evaluate` and `predict` take like RUN. It
    carries what the tagger made of each of those videos, and their labels: do not give it to anyone who must
    not have those. It is larger by two bytes for each number that the last layer reads of each video
    (4 kB where those are 2,048), and scoring takes longer the more videos there are. Its scores on
    the videos that it carries mean nothing.

    Example: tagreel remember tagreel-demo/run --data tagreel-demo/data/train* --out tagreel-demo/memory
    """
    from tagreel.remember import remember as remember_videos

    say = _printer(as_json)
    source = _source(data, check_crc=not no_crc, whole_videos=whole_videos, say=say)
    _look_here(trust)
    with progress("remembering", len(source)) as advance:
        result = remember_videos(
            run,
            source,
            out,
            checkpoint=checkpoint,
            neighbours=neighbours,
            sharpness=sharpness,
            share=share,
            batch_size=batch_size,
            device=device,
            threads=threads,
            skip_damaged=skip_damaged,
            trust=tuple(trust),
            on_batch=advance,
        )
    size = f"{result.size / 1e6:,.1f} MB"
    say(f"wrote {out}: {result.videos:,} videos with {result.labels:,} labels, {size} beside the tagger")
    _list_damaged(say, [str(error) for error in result.damaged])
    say(f"next: tagreel evaluate {out} --data SRC")
    found = {"out": str(out), "videos": result.videos, "labels": result.labels, "bytes": result.size}
    _finish(as_json, {**found, "damaged": len(result.damaged)})


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Tag videos."""
    if show:
        from tagreel import __version__

        print(f"tagreel {__version__}")  # noqa: T201
        raise typer.Exit


# ---------------------------------------------------------------------- what the commands share


def _printer(as_json: bool) -> Callable[[str], None]:
    stream = sys.stderr if as_json else sys.stdout
    return lambda text: print(text, file=stream, flush=True)


def _finish(as_json: bool, result: dict[str, Any]) -> None:
    if as_json:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False), flush=True)  # noqa: T201


def _repeat_sources(arguments: list[str]) -> list[str]:
    """`--data a b c`, as a shell makes it of a bare `*`, becomes `--data a --data b --data c`.

    Only behind the command's own argument (`tagreel train RECIPE --data ...`), so that it is not swallowed.
    """
    if len(arguments) < 2 or arguments[1].startswith("-"):
        return arguments
    repeated, option, taken = arguments[:2], "", 0
    for argument in arguments[2:]:
        if argument.startswith("-"):
            option, taken = argument, 0
        elif option in ("--data", "--validate", "--target"):
            if taken:
                repeated.append(option)
            taken += 1
        repeated.append(argument)
    return repeated


def _recipe(
    name: str,
    settings: Sequence[str],
    trust: Sequence[str],
    *,
    epochs: float | None = None,
    steps: int | None = None,
) -> Recipe:
    from dataclasses import replace

    from tagreel import recipe as recipes

    _look_here(trust)
    recipe = recipes.find(name, trust=tuple(trust))
    for setting in settings:
        recipe = recipes.override(recipe, setting, trust=tuple(trust))
    if epochs is not None and steps is not None:
        raise RecipeError("--epochs and --steps both say how long; give one of them")
    if epochs is not None:
        return replace(recipe, training=replace(recipe.training, epochs=epochs, steps=None))
    if steps is not None:
        return replace(recipe, training=replace(recipe.training, steps=steps))
    return recipe


def _end_training(
    outcome: Outcome,
    out: Path,
    say: Callable[[str], None],
    as_json: bool,
    *,
    next_commands: Sequence[str],
) -> None:
    """Say how it ended and what comes next; raises `typer.Exit` with code 130 when it was stopped."""
    _list_damaged(say, [str(error) for error in outcome.damaged])
    if outcome.interrupted:
        say(f"stopped at step {outcome.step:,}, saved; go on with the same command and --resume")
        _finish(as_json, {"run": str(out), "step": outcome.step, "interrupted": True})
        raise typer.Exit(130)
    say(f"\ndone: {out} at step {outcome.step:,}")
    for number, command in enumerate(next_commands):
        say(f"{'next:' if number == 0 else '     '} {command}")
    scores = {"best": outcome.best} if outcome.best else {}
    _finish(as_json, {"run": str(out), "step": outcome.step, "damaged": len(outcome.damaged), **scores})


def _look_here(trust: Sequence[str]) -> None:
    """A trusted package may be a file in the current folder, as with `python -m`."""
    if trust and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _source(
    paths: Sequence[str],
    *,
    check_crc: bool = True,
    whole_videos: bool = False,
    say: Callable[[str], None] | None = None,
) -> Source:
    from tagreel.source import Source

    source = Source(paths, check_crc=check_crc, whole_videos=whole_videos)
    if source.ignored and say is not None:
        shown = ", ".join(source.ignored[:3]) + (" ..." if len(source.ignored) > 3 else "")
        say(f"no feature files, left out: {shown} ({len(source.ignored):,} in all)")
    return source


def _model(run: Path, checkpoint: str, device: str, trust: tuple[str, ...]) -> Tagger:
    from tagreel.checkpoint import load
    from tagreel.runtime import pick_device

    _look_here(trust)
    return load(run, checkpoint=checkpoint, device=pick_device(device), trust=trust)


def _evaluate(
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
    trust: tuple[str, ...] = (),
    best: dict[str, float] | None = None,
    damaged: list[str] | None = None,
) -> Report:
    from tagreel.checkpoint import facts, find
    from tagreel.evaluate import evaluate as evaluate_model
    from tagreel.evaluate import make_report, scoring_loader
    from tagreel.log import read_log
    from tagreel.runtime import pick_device

    folder = find(run, checkpoint)
    model = _model(folder, checkpoint, device, trust)
    loader = scoring_loader(model, source, batch_size=batch_size, threads=threads, skip_damaged=skip_damaged)
    with progress("evaluating", len(source)) as advance:
        result = evaluate_model(model, loader, device=pick_device(device), on_batch=advance)
    if damaged is not None:
        damaged += [str(error) for error in loader.damaged.values()]
    return make_report(
        model,
        result,
        title=title,
        data=source,
        checkpoint=folder,
        facts=facts(folder),
        log=read_log(run),
        best=best,
    )


def _list_damaged(say: Callable[[str], None], damaged: Sequence[str]) -> None:
    if damaged:
        say(f"{len(damaged):,} damaged records were left out:")
        for line in damaged[:LISTED]:
            say(f"  {line}")
        if len(damaged) > LISTED:
            say(f"  ... and {len(damaged) - LISTED:,} more (tagreel check lists them by file)")


def _leaves(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every setting of a recipe's JSON with the path that --set takes."""
    if isinstance(node, dict) and set(node) == {"class", "options"}:
        yield path, node["class"]
        for name, value in node["options"].items():
            yield from _leaves(value, f"{path}.{name}")
    elif isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{path}.{name}" if path else name)
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{path}.{index}")
    else:
        yield path, json.dumps(node)
