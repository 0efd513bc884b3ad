"""Training the rows of a paper's table: figures beside the paper's, and which of its claims they bear out.

    OUT/setting.json            the scale and the data, which hold for all that is in the folder
    OUT/runs/ROW/seed-0/        a training under way
    OUT/models/ROW/seed-0/      a trained model, which rows that differ in inference alone and ensembles share
    OUT/TABLE.json .md .png     what came of it

Scores are those after the last step: no checkpoint is chosen on the videos that are scored.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from tagreel import checkpoint
from tagreel import recipe as recipes
from tagreel.claims import TABLES, Table
from tagreel.ensemble import EnsembleTagger
from tagreel.errors import RecipeError
from tagreel.evaluate import evaluate, scoring_loader
from tagreel.files import read_json, write_json, write_text
from tagreel.log import Row, read_log
from tagreel.model import Model
from tagreel.recipe import About, Ensemble, Recipe
from tagreel.runtime import pick_device
from tagreel.smaller import facts_of, smaller
from tagreel.source import Source
from tagreel.tagger import Tagger
from tagreel.train import train
from tagreel.trials import METRICS
from tagreel.verdicts import judged, markdown

Scale = Literal["small", "paper"]
LOG_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What all rows are trained and scored with."""

    data: Source
    validation: Source
    out: Path
    label_names: Sequence[str] | None
    device: str
    threads: int
    skip_damaged: int
    on_event: Callable[[Row], None]

    @property
    def target(self) -> torch.device:
        return pick_device(self.device)


def table_of(name: str) -> Table:
    """A table by its name; raises `RecipeError` where there is none."""
    if name not in TABLES:
        raise RecipeError(f"no table {name!r}; there are: {', '.join(TABLES)}")
    return TABLES[name]


def reproduce(
    name: str,
    *,
    data: Source,
    validation: Source,
    out: Path,
    scale: Scale = "small",
    seeds: int = 3,
    rows: Sequence[str] = (),
    label_names: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    device: str = "auto",
    threads: int = 1,
    skip_damaged: int = 0,
    command: str = "",
    on_event: Callable[[Row], None] = lambda row: None,
) -> dict[str, Any] | None:
    """Train what is missing of a table and write what there is; None where somebody stopped it.

    `rows` are those to train (none: all), each `seeds` times; `settings` (PATH=VALUE) hold for every row.
    `command` is noted in what is written. `on_event` is told what `train` tells, which row begins, and how
    each scored. Raises `RecipeError` for a folder that holds other data or another scale, for rows and
    settings that there are not, and as `train` does.
    """
    table = table_of(name)
    for row in rows:
        if row not in table.rows:
            raise RecipeError(f"no row {row!r} in {name}; there are: {', '.join(table.rows)}")
    if table.repeats and seeds > len(table.repeats):
        raise RecipeError(f"{name} has {len(table.repeats)} disjoint sets; expected as many seeds or fewer")
    label_names = label_names or data.label_names
    entries = _entries(table, data, scale, label_names, settings)
    _settle(out, scale, data, validation, label_names, settings)
    trainings = _trainings(entries)
    bench = _Bench(
        data=data,
        validation=validation,
        out=out,
        label_names=label_names,
        device=device,
        threads=threads,
        skip_damaged=skip_damaged,
        on_event=on_event,
    )
    path = out / f"{name}.json"
    result: dict[str, Any] = read_json(path) if path.exists() else {"rows": {}}
    result |= {
        "table": name,
        "title": table.title,
        "scale": scale,
        "command": command,
        "data": _described(data),
        "validation": _described(validation),
        "classes": len(label_names) if label_names else None,
    }
    todo = [(row, seed) for seed in range(seeds) for row in (rows or table.rows)]
    for number, (row, seed) in enumerate(todo):
        noted = result["rows"].setdefault(row, {})
        if str(seed) in noted:
            continue
        on_event({"event": "row", "name": row, "seed": seed, "number": number + 1, "rows": len(todo)})
        entry = entries[table.recipes(row)[seed % len(table.recipes(row))]]
        scored = _run(entry, trainings, seed, bench)
        if scored is None:
            return None
        noted[str(seed)] = scored
        write_json(path, result)
        on_event({"event": "scored", "name": row, "seed": seed, **scored})
    result["rows"] = {row: runs for row in table.rows if (runs := result["rows"].get(row))}
    result["claims"] = judged(result, _same(table, entries))
    write_json(path, result)
    write_text(out / f"{name}.md", markdown(result, picture=f"{name}.png"))
    return result


def _entries(
    table: Table,
    data: Source,
    scale: Scale,
    label_names: Sequence[str] | None,
    settings: Sequence[str],
) -> dict[str, Recipe | Ensemble]:
    """The recipes of all rows by name, at this scale."""
    if scale == "small" and label_names is None:
        raise RecipeError("the number of classes is not known; give their names with --labels FILE")
    facts = facts_of(data, len(label_names or ())) if scale == "small" else None

    def scaled(recipe: Recipe) -> Recipe:
        return recipe if facts is None else smaller(recipe, facts)

    entries: dict[str, Recipe | Ensemble] = {}
    for row in table.rows:
        for name in table.recipes(row):
            found = recipes.find_any(name)
            if isinstance(found, Ensemble):
                members = {member: _with(found.members[member], settings) for member in found.members}
                entries[name] = replace(found, members={m: scaled(recipe) for m, recipe in members.items()})
            else:
                entries[name] = scaled(_with(found, settings))
    return entries


def _with(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    for setting in settings:
        recipe = recipes.override(recipe, setting)
    return recipe


def _settle(
    out: Path,
    scale: Scale,
    data: Source,
    validation: Source,
    label_names: Sequence[str] | None,
    settings: Sequence[str],
) -> None:
    """Note what holds for all that is in the folder; raises `RecipeError` where something else did."""
    now = {
        "scale": scale,
        "data": data.fingerprint(),
        "validate": validation.fingerprint(),
        "labels": list(label_names or ()),
        "set": list(settings),
    }
    path = out / "setting.json"
    if not path.exists() and out.exists() and any(out.iterdir()):
        raise RecipeError(f"--out {out}: is not empty, and no table; expected the name of a new folder")
    if not (out / "models").exists() and not (out / "runs").exists():  # nothing was trained yet
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, now)
        return
    before = read_json(path)
    for option, value in now.items():
        if before.get(option) != value:
            raise RecipeError(
                f"{out}: was started with another --{option}; go on with the same, or choose another folder"
            )


def _trainings(entries: Mapping[str, Recipe | Ensemble]) -> dict[str, str]:
    """The first name of each training: models that differ in inference alone are trained once."""
    first: dict[str, str] = {}
    for name, entry in entries.items():
        members = entry.members if isinstance(entry, Ensemble) else {name: entry}
        for member, recipe in members.items():
            first.setdefault(_training(recipe), member)
    return first


def _training(recipe: Recipe) -> str:
    """What of a recipe says how its weights come about."""
    aside = ("about", "inference", "evaluation_sampling")
    return json.dumps({key: value for key, value in recipes.to_json(recipe).items() if key not in aside})


def _same(table: Table, entries: Mapping[str, Recipe | Ensemble]) -> Callable[[str, str], bool]:
    def plain(row: str) -> str:
        entry = entries[table.recipes(row)[0]]
        return json.dumps(recipes.to_json(replace(entry, about=About())))

    return lambda a, b: plain(a) == plain(b)


def _run(
    entry: Recipe | Ensemble, trainings: Mapping[str, str], seed: int, bench: _Bench
) -> dict[str, Any] | None:
    """Train what a row needs and does not have, and score it; None where somebody stopped it."""
    members = entry.members if isinstance(entry, Ensemble) else {"": entry}
    models: dict[str, Model] = {}
    minutes = 0.0
    for member, recipe in members.items():
        folder = _train(recipe, f"{trainings[_training(recipe)]}/seed-{seed}", seed, bench)
        if folder is None:
            return None
        model = checkpoint.load(folder, device=bench.target)
        assert isinstance(model, Tagger)
        if _training(model.recipe) != _training(recipe):
            raise RecipeError(f"{folder}: was trained with other settings; remove it to train it again")
        model.recipe = recipe
        models[member] = model
        minutes += checkpoint.facts(folder)["minutes"]
    model = next(iter(models.values()))
    if isinstance(entry, Ensemble):
        shares = [entry.shares[member] for member in models]
        model = EnsembleTagger(models, shares, top_k=entry.top_k).to(bench.target).eval()
    loader = scoring_loader(model, bench.validation, threads=bench.threads, skip_damaged=bench.skip_damaged)

    def on_batch(done: int) -> None:
        bench.on_event({"event": "scoring", "videos": done, "all": len(bench.validation)})

    scores = evaluate(model, loader, device=bench.target, on_batch=on_batch).metrics
    subset = None if isinstance(entry, Ensemble) else entry.training.subset
    return {
        "scores": {metric: scores[metric] for metric in METRICS},
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "videos": len(bench.data) if subset is None else subset[0],
        "minutes": round(minutes, 2),
    }


def _train(recipe: Recipe, name: str, seed: int, bench: _Bench) -> Path | None:
    """The folder of the trained model, which may be there already; None where somebody stopped it."""
    folder, run = bench.out / "models" / name, bench.out / "runs" / name
    if folder.exists():
        return folder
    outcome = train(
        recipe,
        data=bench.data,
        out=run,
        label_names=bench.label_names,
        seed=seed,
        device=bench.device,
        resume=True,
        threads=bench.threads,
        keep=1,
        log_every=LOG_EVERY,
        skip_damaged=bench.skip_damaged,
        on_event=bench.on_event,
    )
    if outcome.interrupted:
        return None
    _keep(run, folder)
    return folder


def _keep(run: Path, folder: Path) -> None:
    """Keep of a finished training its model alone, with the minutes that it took."""
    last = checkpoint.find(run, "last")
    model = checkpoint.load(last)
    assert isinstance(model, Tagger)
    lines = [line for line in read_log(run) if line["event"] == "train"]
    seen = [0, *(line["examples"] for line in lines)]
    seconds = sum(
        (after - before) / line["videos_per_second"]
        for before, after, line in zip(seen, seen[1:], lines, strict=False)
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save_model(folder, model, facts={**checkpoint.facts(last), "minutes": seconds / 60})
    shutil.rmtree(run)


def _described(source: Source) -> dict[str, Any]:
    first, last = (Path(source.paths[index]).name for index in (0, -1))
    return {"videos": len(source), "files": first if first == last else f"{first} to {last}"}
