"""From one model to a system: what does each step add to the best single model?

    python benchmarks/systems.py --data train.npz --validate dev.npz --out runs/systems
    python benchmarks/systems.py --data 'bal_train*' --validate 'eval-0000[01]*' --out runs/systems-audioset

The first is video-level YouTube-8M, the second AudioSet; which of them it is, the first record tells. A tenth
of the training videos is held out: members are trained on the rest, weights and numbers of members are
chosen on that tenth, and everything is scored on the validation files. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagreel import recipe as recipes
from tagreel.average import average
from tagreel.checkpoint import checkpoints, find, load, model_files
from tagreel.compress import measure
from tagreel.evaluate import evaluate, scoring_loader
from tagreel.extract_branch import extract_branch
from tagreel.files import write_json
from tagreel.fit_ensemble import find_method, fit_ensemble
from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.heads.mixture_of_residual_experts import MixtureOfResidualExperts
from tagreel.layers.dropout import Dropout
from tagreel.layers.latent_concepts import LatentConcepts
from tagreel.layers.mixture import Mixture
from tagreel.layers.residual_mlp import ResidualMLP
from tagreel.model import Model
from tagreel.panel import By
from tagreel.recipe import Recipe
from tagreel.remember import remember
from tagreel.sampling import RandomFrames
from tagreel.source import Source
from tagreel.tagger import set_inference
from tagreel.train import train

CPU = torch.device("cpu")
HELD_OUT = 10
"""One training video in so many is held out, by the hash of its id."""


@dataclass(frozen=True)
class Member:
    """A model to train; with `every` steps kept, its checkpoints can be averaged."""

    recipe: Recipe
    seed: int = 0
    every: int | None = None


def youtube8m() -> dict[str, Member]:
    """Video-level models that differ in width, depth and head."""
    mlp = recipes.find("youtube8m-video-mlp")
    raw = replace(mlp, training=replace(mlp.training, ema=0.0))
    drop = (partial(Dropout, rate=0.3),)
    short = replace(mlp.training, epochs=8)
    flat = partial(MixtureOfExperts, experts=4, null_expert=False, prior=1e-3)
    residual = partial(MixtureOfResidualExperts, experts=4, hidden=512, prior=1e-3)
    concepts = partial(LatentConcepts, concepts=512, output="classwise")
    half = (
        partial(Dropout, rate=0.4),
        partial(ResidualMLP, width=1024, blocks=1, dropout=0.5),
        partial(Dropout, rate=0.6),
    )
    small = replace(mlp, body=half, training=replace(mlp.training, epochs=10))
    return {
        "mlp-0": Member(mlp),
        "mlp-1": Member(mlp, seed=1),
        "more": Member(replace(mlp, body=drop, head=residual, training=short)),
        "moe-lc": Member(replace(mlp, body=drop, head=flat, output=(concepts,), training=short)),
        "small": Member(small),
        "small-mix3-t0": Member(replace(small, mixture=partial(Mixture, branches=3, temperature=0.0))),
        "small-mix3-t3": Member(replace(small, mixture=partial(Mixture, branches=3, temperature=3.0))),
        "mlp-raw": Member(raw, every=100),
    }


def audioset() -> dict[str, Member]:
    """Frame-level models that differ in their pools."""
    nextvlad, mean_std = recipes.find("audioset-nextvlad"), recipes.find("audioset-mean-std")
    raw = replace(mean_std, training=replace(mean_std.training, ema=0.0))
    drawn = partial(RandomFrames, frames=6)
    thin = (partial(ResidualMLP, width=512, blocks=1, dropout=0.4),)
    small = replace(mean_std, body=thin)
    return {
        "nextvlad-0": Member(nextvlad),
        "attention": Member(recipes.find("audioset-attention")),
        "netvlad": Member(recipes.find("audioset-netvlad")),
        "mean-std": Member(mean_std),
        "mean-std-raw": Member(raw, every=80),
        "mean-std-drawn": Member(replace(mean_std, sampling=drawn, evaluation_sampling=drawn)),
        "small": Member(small),
        "small-mix3-t0": Member(replace(small, mixture=partial(Mixture, branches=3, temperature=0.0))),
        "small-mix3-t3": Member(replace(small, mixture=partial(Mixture, branches=3, temperature=3.0))),
    }


def held_out(video: str) -> bool:
    """Whether a training video is kept for fitting."""
    return hashlib.blake2b(video.encode(), digest_size=8).digest()[0] % HELD_OUT == 0


def split(paths: list[str], out: Path) -> tuple[Path, Path]:
    """The training files as those that members learn from and those that weights are fitted on."""
    folders = out / "data" / "learn", out / "data" / "fit"
    if folders[1].exists():
        return folders
    for folder in folders:
        folder.with_suffix(".partial").mkdir(parents=True, exist_ok=True)
    source = Source(paths)
    for number, path in enumerate(source.paths):
        kept = np.array([held_out(video) for video in _ids(source, number)])
        for folder, chosen in zip(folders, (~kept, kept), strict=True):
            _copy(Path(path), folder.with_suffix(".partial") / Path(path).name, chosen)
    for folder in folders:
        folder.with_suffix(".partial").rename(folder)
    return folders


def _ids(source: Source, shard: int) -> Iterator[str]:
    opened = source.open(shard)
    return (opened[index].id for index in range(len(opened)))


def _copy(path: Path, target: Path, chosen: np.ndarray) -> None:
    """The chosen records of an .npz of video-level features, or of a TFRecord file."""
    if path.suffix == ".npz":
        arrays = dict(np.load(path))
        counts = np.diff(arrays.pop("label_offsets"))
        labels = arrays.pop("labels")[np.repeat(chosen, counts)]
        arrays = {name: array[chosen] for name, array in arrays.items()}
        np.savez(target, **arrays, labels=labels, label_offsets=np.cumsum([0, *counts[chosen]]))
        return
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        data = file.read()
    at, records = 0, []
    while at < len(data):
        size = struct.unpack_from("<Q", data, at)[0] + 16
        records.append(data[at : at + size])
        at += size
    with target.with_suffix("").open("wb") if path.suffix == ".gz" else target.open("wb") as file:
        file.writelines(record for record, wanted in zip(records, chosen, strict=True) if wanted)


def train_members(members: dict[str, Member], data: Source, validation: Source, out: Path) -> None:
    """Train those that are not there yet."""
    for name, member in members.items():
        folder, done = out / "members" / name, out / "members" / f"{name}.done"
        if done.exists():
            continue
        outcome = train(
            member.recipe,
            data=data,
            validation=validation,
            out=folder,
            seed=member.seed,
            resume=True,
            keep=1000 if member.every else 1,
            validate_every=member.every or 1 << 30,
            log_every=1 << 30,
        )
        if outcome.interrupted:
            raise SystemExit(130)
        done.touch()
        print(f"{name}: {shown(outcome.best or {})}", flush=True)


def shown(scores: dict[str, Any]) -> str:
    """GAP@20 and mAP."""
    return f"GAP@20 {scores['gap@20']:.4f}   mAP {scores['map']:.4f}"


class Steps:
    """The steps of a system, each scored on the validation files and noted once it is."""

    def __init__(self, members: dict[str, Member], splits: tuple[Source, Source, Source], out: Path) -> None:
        self.members, self.out = members, out
        self.learn, self.fit, self.dev = splits
        self.file = out / "steps.json"
        self.noted: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        first = next(iter(members.values())).recipe
        self.by: By = "gap@20" if first.training.best_by == "gap@20" else "map"

    def folder(self, name: str) -> Path:
        """Where a member's model lies."""
        return find(self.out / "members" / name, "last")

    def score(self, group: str, name: str, folder: Path, *settings: str, model: Model | None = None) -> None:
        """Score a model on the validation files, with settings of its inference."""
        if name in self.noted:
            return
        if model is None:
            model = load(folder)
            set_inference(model, settings)
        found = evaluate(model, scoring_loader(model, self.dev, batch_size=256), device=CPU)
        size = sum(path.stat().st_size for path in model_files(folder))
        self.note(group, name, {"gap@20": found.metrics["gap@20"], "map": found.metrics["map"]}, size)

    def note(self, group: str, name: str, scores: dict[str, float], size: int) -> None:
        """Write down what a step reached."""
        self.noted[name] = {"group": group, **scores, "bytes": size}
        write_json(self.file, self.noted)
        print(f"{name:<44} {shown(scores)}   {size / 1e6:8.1f} MB", flush=True)

    def made(self, name: str, make: Callable[[Path], object]) -> Path:
        """A folder that is made where it is not there yet."""
        folder = self.out / "made" / name
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            make(folder)
        return folder


def take_steps(
    steps: Steps, pool: list[str], *, raw: str, drawn: str | None, student: str, pair: tuple[str, ...] = ()
) -> None:
    """Every way of making more of the same models, from one model to systems of all.

    `raw` was trained without averaged weights, `drawn` with random frames; `student` learns from the greedy
    ensemble, and a `pair` is small enough for a system of a few megabytes.
    """
    for name in steps.members:
        steps.score("single models", name, steps.folder(name))
    best = max(pool, key=lambda name: steps.noted[name][steps.by])

    # Of the last third of the steps: before, the rate is still high.
    every = checkpoints(steps.out / "members" / raw)
    late = every[len(every) * 2 // 3 :]
    averaged = steps.made("averaged", lambda out: average(late, out, data=steps.learn))
    steps.score("one run", f"{raw}: mean of {len(late)} checkpoints", averaged)
    kept = steps.made("averaged-last", lambda out: average(late, out, batch_norm="last"))
    steps.score("one run", f"{raw}: the same, statistics of the last", kept)
    for name in ("small-mix3-t0", "small-mix3-t3"):
        branch = steps.made(f"{name}-branch", lambda out, name=name: extract_branch(_run(steps, name), out))
        steps.score("mixtures", f"{name}: one branch", branch)
    if drawn is not None:
        for times in (1, 5, 10):
            setting = "inference=tagreel.inference.RepeatedSampling", f"inference.times={times}"
            steps.score("views", f"{drawn}: {times} draws", steps.folder(drawn), *setting)
        setting = "inference=tagreel.inference.SegmentedInference"
        steps.score("views", f"{best}: segmented", steps.folder(best), setting)
    remembering = steps.made(f"{best}-memory", lambda out: remember(_run(steps, best), steps.learn, out))
    steps.score("views", f"{best}: remembering", remembering)

    def fitted(name: str, method: str, names: list[Path]) -> Path:
        return steps.made(
            f"ensemble-{name}",
            lambda out: fit_ensemble(names, steps.fit, out, method=find_method(method), by=steps.by),
        )

    alone = [_run(steps, name) for name in pool]
    for method in ("uniform", "greedy", "leave-one-out", "growth", "learned"):
        steps.score("ensembles", f"ensemble: {method}", fitted(method, method, alone))
    # The memory asks the training videos alone, so the videos to fit on are new to it.
    memories = [
        steps.made(f"{name}-memory", lambda out, name=name: remember(_run(steps, name), steps.learn, out))
        for name in pool
    ]
    system = fitted("remembering", "greedy", [*alone, *memories])
    steps.score("systems", "greedy, remembering models among them", system)

    greedy = steps.out / "made" / "ensemble-greedy"
    alone_recipe = steps.members[student].recipe
    light = [steps.folder(student)]
    for share in (0.5, 0.9):
        taught = replace(alone_recipe, training=replace(alone_recipe.training, distill=share))
        folder = steps.out / "members" / f"student-{share}"
        train(taught, data=steps.learn, out=folder, teacher=greedy, resume=True, keep=1, log_every=1 << 30)
        light.append(find(folder))
        steps.score("students", f"{student}, {share:.0%} taught by the greedy ensemble", light[-1])

    compressed = {"system": system, student: light[0], "student 50%": light[1], "student 90%": light[2]}
    if len(pair) > 1:
        compressed[" and ".join(pair)] = fitted("light", "uniform", [_run(steps, name) for name in pair])
    for name, folder in compressed.items():
        model = load(folder)
        loader = scoring_loader(model, steps.dev, batch_size=256)
        for storage in ("bfloat16", "int8"):
            if f"{name} in {storage}" not in steps.noted:
                row = measure(model, storage, loader=loader, device=CPU)
                scores = {key: row.metrics[key] for key in ("gap@20", "map")}
                steps.note("compressed", f"{name} in {storage}", scores, row.size)


def _run(steps: Steps, name: str) -> Path:
    return steps.folder(name)


def table(steps: Steps) -> str:
    """The steps as Markdown."""
    lines = ["| step | GAP@20 | mAP | MB |", "|---|---:|---:|---:|"]
    for name, row in steps.noted.items():
        lines.append(f"| {name} | {row['gap@20']:.4f} | {row['map']:.4f} | {row['bytes'] / 1e6:,.1f} |")
    return "\n".join(lines) + "\n"


def draw(steps: Steps, path: Path) -> None:
    """A bar a step, by group."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(steps.noted.items())[::-1]
    groups = list(dict.fromkeys(row["group"] for row in steps.noted.values()))
    colours = dict(zip(groups, plt.get_cmap("tab10").colors, strict=False))
    values = [row[steps.by] for _, row in rows]
    low = sorted(values)[len(values) // 10]
    low -= 0.3 * (max(values) - low)
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.27 * len(rows)), layout="constrained")
    axes.barh(range(len(rows)), values, color=[colours[row["group"]] for _, row in rows], alpha=0.7)
    for y, value in enumerate(values):
        axes.text(max(value, low), y, f" {value:.4f}", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.set_xlim(low, max(values) + 0.1 * (max(values) - low))
    axes.set_xlabel({"gap@20": "GAP@20", "map": "mAP"}[steps.by])
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[group], alpha=0.7) for group in groups]
    figure.legend(handles, groups, fontsize=8, loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Split, train, combine, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--validate", nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/systems"))
    parser.add_argument("--table", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--chart", type=Path, help="draw the chart here, as SVG or PNG")
    options = parser.parse_args()
    learn, fit = split(options.data, options.out)
    data, fitting = Source([str(learn)]), Source([str(fit)])
    of_videos = "mean_rgb" in data.first().streams
    members = youtube8m() if of_videos else audioset()
    print(f"{len(data):,} videos to learn from, {len(fitting):,} to fit on")
    train_members(members, data, fitting, options.out)
    steps = Steps(members, (data, fitting, Source(options.validate)), options.out)
    if of_videos:
        pool = ["mlp-0", "mlp-1", "more", "moe-lc"]
        take_steps(steps, pool, raw="mlp-raw", drawn=None, student="small")
    else:
        pool = ["nextvlad-0", "netvlad", "attention", "mean-std"]
        pair = ("attention", "mean-std")
        take_steps(steps, pool, raw="mean-std-raw", drawn="mean-std-drawn", student="attention", pair=pair)
    print(table(steps))
    if options.table:
        options.table.write_text(table(steps), encoding="utf-8")
    if options.chart:
        draw(steps, options.chart)


if __name__ == "__main__":
    main()
