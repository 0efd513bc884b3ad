"""Train the rows of a table with several seeds, and draw what came of it. For pooling.py and heads.py.

A row is a recipe. A finished run is noted in the file of results and not trained again, one that was killed
goes on where it was; so a table may be interrupted, and two processes may share it with `--part 1/2`. Scores
are those after the last epoch: no checkpoint is chosen on the data that is scored. The chart needs matplotlib
(`pip install "tagreel[bench]"`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tagreel.files import write_json
from tagreel.recipe import Recipe
from tagreel.source import Source
from tagreel.tagger import count_parameters
from tagreel.train import train
from tagreel.trials import METRICS, bars, cell, pyplot


@dataclass(frozen=True)
class Row:
    """A line of the table: the group it is drawn in, and the recipe that is trained."""

    group: str
    recipe: Recipe


def arguments(description: str, *, out: str) -> argparse.Namespace:
    """The options that every comparison has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--validate", nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs") / out, help="the folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="*", help="only these")
    parser.add_argument("--part", default="1/1", help="2/3: every third run, from the second on")
    results = Path("docs/results") / f"{out}.json"
    parser.add_argument("--results", type=Path, default=results, help="the file of finished runs")
    parser.add_argument("--table", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--chart", type=Path, help="draw the chart here, as SVG or PNG")
    parser.add_argument("--by", choices=METRICS, default="map", help="what the chart shows")
    return parser.parse_args()


def compare(rows: Mapping[str, Row], options: argparse.Namespace) -> None:
    """Train what is missing, then print the table of what is there."""
    chosen = {name: row for name, row in rows.items() if not options.rows or name in options.rows}
    part, parts = map(int, options.part.split("/"))
    # All rows once before any of them again: an unfinished table is a whole one of fewer seeds.
    runs = [(name, seed) for seed in range(options.seeds) for name in chosen]
    data, validation = Source(options.data), Source(options.validate)
    for name, seed in runs[part - 1 :: parts]:
        if str(seed) in _noted(options.results).get(name, {}):
            continue
        result = _run(chosen[name].recipe, options.out / name / f"seed-{seed}", seed, data, validation)
        shown = "   ".join(f"{METRICS[metric]} {value:.4f}" for metric, value in result["scores"].items())
        print(f"{name}, seed {seed}   {shown}   {result['minutes']:.1f} min", flush=True)
        noted = _noted(options.results)
        noted.setdefault(name, {})[str(seed)] = result
        write_json(options.results, noted)
    noted = _noted(options.results)
    found = {name: list(noted[name].values()) for name in rows if name in noted}
    text = table(rows, found)
    print(text)
    if options.table:
        options.table.write_text(text, encoding="utf-8")
    if options.chart:
        draw(rows, found, options.chart, by=options.by)


def _noted(results: Path) -> dict[str, dict[str, Any]]:
    return json.loads(results.read_text()) if results.exists() else {}


def _run(recipe: Recipe, folder: Path, seed: int, data: Source, validation: Source) -> dict[str, Any]:
    began = time.perf_counter()
    outcome = train(
        recipe,
        data=data,
        validation=validation,
        out=folder,
        seed=seed,
        resume=True,
        keep=1,
        # After the last step alone; and a log line costs the running GAP of the batches before it.
        validate_every=1 << 30,
        log_every=1 << 30,
        on_event=lambda row: None,
    )
    if outcome.interrupted:
        raise SystemExit(130)
    last = json.loads((folder / "checkpoints" / f"step-{outcome.step:08d}" / "model.json").read_text())
    shutil.rmtree(folder)
    return {
        "scores": {name: last["facts"]["validation"][name] for name in METRICS},
        "parameters": count_parameters(recipe),
        "minutes": (time.perf_counter() - began) / 60,
    }


def table(rows: Mapping[str, Row], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The results in Markdown, means over the seeds with half their 95 % intervals."""
    lines = [
        f"| | {' | '.join(METRICS.values())} | parameters | minutes | seeds |",
        f"|---|{'---:|' * (len(METRICS) + 3)}",
    ]
    for name, runs in found.items():
        cells = []
        for metric in METRICS:
            cells.append(cell([run["scores"][metric] for run in runs]))
        minutes = np.median([run["minutes"] for run in runs])
        summary = rows[name].recipe.about.summary
        label = f"`{name}` {summary}".strip()
        cells += [f"{runs[0]['parameters'] / 1e6:.2f}M", f"{minutes:.1f}", str(len(runs))]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(
    rows: Mapping[str, Row], found: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, *, by: str
) -> None:
    """Every run a dot, every mean a bar with its 95 % interval, grouped."""
    plt = pyplot()
    groups = list(dict.fromkeys(row.group for row in rows.values()))
    palette = dict(zip(groups, plt.get_cmap("tab10").colors, strict=False))
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.27 * len(found)), layout="constrained")
    scores = {name: [run["scores"][by] for run in runs] for name, runs in found.items()}
    label = f"{METRICS[by]}: runs, their mean and its 95 % interval"
    bars(axes, scores, {name: palette[rows[name].group] for name in found}, label=label)
    handles = [plt.Rectangle((0, 0), 1, 1, color=palette[group], alpha=0.6) for group in groups]
    figure.legend(handles, groups, fontsize=8, loc="outside upper center", ncols=len(groups))
    figure.savefig(path, dpi=150)


def at_budget(recipe: Recipe, parameters: int) -> Recipe:
    """The recipe with its body's first `width` chosen so that it has about so many parameters."""
    place = next(i for i, part in enumerate(recipe.body) if "width" in part.keywords)

    def sized(width: int) -> Recipe:
        part = recipe.body[place]
        changed = type(part)(part.func, **{**part.keywords, "width": width})
        return replace(recipe, body=(*recipe.body[:place], changed, *recipe.body[place + 1 :]))

    low, high = 8, 8192
    while high - low > 1:
        middle = (low + high) // 2
        count = count_parameters(sized(middle))
        assert count is not None
        low, high = (middle, high) if count <= parameters else (low, middle)
    return sized(low)
