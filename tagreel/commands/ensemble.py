"""`tagreel ensemble`: several models as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagreel.commands._shared import (
    BatchSize,
    Data,
    Device,
    Json,
    NoCrc,
    SkipDamaged,
    Threads,
    Trust,
    WholeVideos,
    finish,
    list_damaged,
    look_here,
    printer,
    source_of,
)
from tagreel.display import progress

if TYPE_CHECKING:
    from tagreel.fit_ensemble import FittedEnsemble

_SPLITS = ("--data", "--score")
_FOLDER = Path(__file__).parents[1] / "ensembles"
_METHODS = ", ".join(sorted(path.stem.replace("_", "-") for path in _FOLDER.glob("[!_]*.py")))

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Make one model of several that scores better than each, or show what such a one is made of.",
)


@app.command("fit")
def fit(
    members: Annotated[
        list[Path],
        typer.Argument(
            metavar="MEMBER...",
            help="Runs, checkpoints, ensembles, or prediction files of any origin (.parquet, .jsonl, .csv).",
        ),
    ],
    data: Data,
    out: Annotated[Path, typer.Option(metavar="ENSEMBLE", help="The folder to write; it must be new.")],
    score: Annotated[
        list[str],
        typer.Option(
            "--score", metavar="SRC", help="Other labelled videos, to see what the weights are worth."
        ),
    ] = [],  # noqa: B006
    method: Annotated[str, typer.Option(help=f"How the weights are found: {_METHODS}.")] = "greedy",
    settings: Annotated[
        list[str], typer.Option("--set", metavar="OPTION=VALUE", help="Of the method: --set members=7.")
    ] = [],  # noqa: B006
    by: Annotated[str, typer.Option(help="What the weights are to raise: gap@20 or map.")] = "gap@20",
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Of each member only a video's K best tags count; default: all."),
    ] = None,
    listed: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            min=20,
            help="Tags a member and video that are looked at in fitting; default: all of up to 1,000 classes,"
            " 100 of more.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names of the classes, where all members are prediction files."),
    ] = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = 1,
    skip_damaged: SkipDamaged = 0,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Fit the weights of several models and write them as one.

    --data are labelled videos that no member was trained on. Each member scores them once, then a method
    finds the weights of their mean: greedy begins with the best model and adds the one that helps most until
    none does; leave-one-out weighs by what is lost without a model, growth does so in a large pool; learned
    descends the loss; weighted takes yours (--set weights=3,2,1). What that is worth shows on --score, videos
    that nothing was fitted on. ENSEMBLE holds copies of the members that have a weight, and `evaluate`,
    `predict` and `tagreel.load` take it like a run.

    Example: tagreel ensemble fit tagreel-demo/run/checkpoints/* --data tagreel-demo/data/validate*
    --score tagreel-demo/data/test* --out tagreel-demo/ensemble
    """
    from tagreel.errors import RecipeError
    from tagreel.fit_ensemble import SHOWN, find_method, fit_ensemble
    from tagreel.vocabulary import read_label_names

    say = printer(as_json)
    if by not in SHOWN:
        raise RecipeError(f"--by {by}: there are: {', '.join(SHOWN)}")
    look_here(trust)
    part = find_method(method, settings)
    source = source_of(data, check_crc=not no_crc, whole_videos=whole_videos, say=say)
    other = source_of(score, check_crc=not no_crc, whole_videos=whole_videos, say=say) if score else None
    with progress("listening", len(source) + (0 if other is None else len(other))) as advance:
        result = fit_ensemble(
            members,
            source,
            out,
            method=part,
            score_on=other,
            by=by,  # type: ignore[arg-type]
            top_k=top_k,
            listed=listed,
            label_names=None if labels is None else read_label_names(labels),
            batch_size=batch_size,
            device=device,
            threads=threads,
            skip_damaged=skip_damaged,
            trust=tuple(trust),
            on_batch=advance,
        )
    _say_members(say, [vars(each) for each in result.candidates], SHOWN[by])
    _say_gain(say, result, SHOWN[by])
    list_damaged(say, [str(error) for error in result.damaged])
    say(f"\nwrote {out} and a picture of it, {out / 'report' / 'ensemble.html'}")
    say(f"next: tagreel evaluate {out} --data SRC")
    finish(
        as_json,
        {
            "out": str(out),
            "by": by,
            "size": result.size,
            "scores": result.scores,
            "best_single": [result.best(split).scores[split] for split in range(len(result.scores))],
            "members": [vars(each) for each in result.candidates],
            "damaged": len(result.damaged),
        },
    )


@app.command("show")
def show(
    ensemble: Annotated[
        Path, typer.Argument(metavar="ENSEMBLE", help="A folder that `tagreel ensemble fit` wrote.")
    ],
    as_json: Json = False,
) -> None:
    """Show an ensemble: its members with sizes, weights and scores, and how the weights were found.

    Example: tagreel ensemble show tagreel-demo/ensemble
    """
    from tagreel.checkpoint import ensemble_weights, facts
    from tagreel.errors import DataError, TagreelError

    weights, noted = ensemble_weights(ensemble), facts(ensemble)
    try:
        result = _say_ensemble(printer(as_json), ensemble, weights, noted)
    except TagreelError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        path = str(ensemble / "ensemble.json")
        raise DataError(f"not an ensemble as tagreel writes it: {error!r}", path=path) from error
    finish(as_json, result)


def _say_ensemble(
    say: Callable[[str], None], ensemble: Path, weights: Mapping[str, float], noted: Mapping[str, Any]
) -> dict[str, Any]:
    """Print what is known of an ensemble, and return it for `--json`."""
    from tagreel.checkpoint import member_size
    from tagreel.fit_ensemble import SHOWN

    candidates = {each["name"]: each for each in noted.get("candidates", [])}
    kept = [
        {**candidates.get(name, {}), "name": name, "weight": weight, "size": member_size(ensemble, name)}
        for name, weight in sorted(weights.items(), key=lambda each: -each[1])
    ]
    kept.sort(key=lambda each: [*candidates, each["name"]].index(each["name"]))  # as they joined
    left_out = [each for name, each in candidates.items() if name not in weights]
    _say_members(say, [*kept, *left_out], SHOWN.get(noted.get("by", ""), ""))
    size = sum(each["size"] for each in kept)
    say(f"\n{len(kept):,} members, {size / 1e6:,.2f} MB ({size / 2**20:,.2f} MiB)")
    if "method" in noted:
        options = ", ".join(f"{name}={value}" for name, value in noted["options"].items())
        say(f"weights by {noted['method']}({options})")
    for name, split in zip(_SPLITS, noted.get("splits", []), strict=False):
        files = ", ".join(Path(path).name for path in split["data"][:3])
        more = f" and {len(split['data']) - 3:,} more files" if len(split["data"]) > 3 else ""
        say(f"{SHOWN[noted['by']]} {split['score']:.4f} on {name}: {split['videos']:,} videos, {files}{more}")
    shown = {**noted, "size": size, "members": kept}
    return {key: value for key, value in shown.items() if key not in ("candidates", "train_counts")}


def _say_members(say: Callable[[str], None], members: Sequence[Mapping[str, Any]], metric: str) -> None:
    """A table of members; of those left out the weight is 0."""
    splits = _SPLITS[: max(len(each.get("scores", ())) for each in members)]
    rows = [("member", "what it is", "MB", "weight", *(f"{metric} on {name}" for name in splits))]
    for each in members:
        weight = f"{each['weight']:.4f}" if each["weight"] else "left out"
        scores = [f"{score:.4f}" for score in each.get("scores", ())]
        rows.append((each["name"], each.get("model", ""), f"{each['size'] / 1e6:,.2f}", weight, *scores))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for name, model, *numbers in rows:
        aligned = (f"{number:>{width}}" for number, width in zip(numbers, widths[2:], strict=True))
        say("   ".join((f"{name:<{widths[0]}}", f"{model:<{widths[1]}}", *aligned)).rstrip())


def _say_gain(say: Callable[[str], None], result: FittedEnsemble, metric: str) -> None:
    """The ensemble beside the best single model, which may be another one on each split."""
    kept = sum(each.weight > 0 for each in result.candidates)
    say(f"\nensemble of {kept:,}, {result.size / 1e6:,.2f} MB ({result.size / 2**20:,.2f} MiB)")
    for number, (name, score) in enumerate(zip(_SPLITS, result.scores, strict=False)):
        best = result.best(number)
        gain = score - best.scores[number]
        verdict = "" if gain > 0 else ": the ensemble is no better than that model alone"
        say(
            f"{metric} on {name:<7}   {score:.4f}   {gain:+.4f} over the best single model, {best.name} "
            f"{best.scores[number]:.4f}{verdict}"
        )
