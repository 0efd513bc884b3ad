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
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tagreel import recipe as recipes
from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.heads.mixture_of_residual_experts import MixtureOfResidualExperts
from tagreel.layers.dropout import Dropout
from tagreel.layers.latent_concepts import LatentConcepts
from tagreel.layers.mixture import Mixture
from tagreel.layers.residual_mlp import ResidualMLP
from tagreel.recipe import Recipe
from tagreel.sampling import RandomFrames
from tagreel.source import Source
from tagreel.train import train

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
    wide = (
        partial(Dropout, rate=0.4),
        partial(ResidualMLP, width=3072, blocks=1, dropout=0.5),
        partial(Dropout, rate=0.6),
    )
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
        "wide": Member(replace(mlp, body=wide)),
        "moe": Member(replace(mlp, body=drop, head=flat, training=short)),
    }


def audioset() -> dict[str, Member]:
    """Frame-level models that differ in their pools."""
    nextvlad, netvlad = recipes.find("audioset-nextvlad"), recipes.find("audioset-netvlad")
    raw = replace(nextvlad, training=replace(nextvlad.training, ema=0.0))
    drawn = partial(RandomFrames, frames=10)
    thin = (
        partial(Dropout, rate=0.5),
        partial(ResidualMLP, width=512, blocks=1, dropout=0.5),
        partial(Dropout, rate=0.3),
    )
    small = replace(netvlad, body=thin)
    return {
        "nextvlad-0": Member(nextvlad),
        "nextvlad-1": Member(nextvlad, seed=1),
        "attention": Member(recipes.find("audioset-attention")),
        "netvlad": Member(netvlad),
        "mean-std": Member(recipes.find("audioset-mean-std")),
        "small": Member(small),
        "small-mix3-t0": Member(replace(small, mixture=partial(Mixture, branches=3, temperature=0.0))),
        "small-mix3-t3": Member(replace(small, mixture=partial(Mixture, branches=3, temperature=3.0))),
        "nextvlad-raw": Member(raw, every=80),
        "nextvlad-drawn": Member(replace(nextvlad, sampling=drawn, evaluation_sampling=drawn)),
        "transformer": Member(recipes.find("audioset-transformer")),
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


def main() -> None:
    """Split, train, combine, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--validate", nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/systems"))
    options = parser.parse_args()
    learn, fit = split(options.data, options.out)
    data, fitting = Source([str(learn)]), Source([str(fit)])
    members = youtube8m() if "mean_rgb" in data.first().streams else audioset()
    print(f"{len(data):,} videos to learn from, {len(fitting):,} to fit on")
    train_members(members, data, fitting, options.out)


if __name__ == "__main__":
    main()
