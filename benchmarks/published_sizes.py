"""One training step of every recipe at its published size: that it fits, how long it takes, how much memory.

    python benchmarks/published_sizes.py [RECIPE ...]

Random frames, 4 videos of 20 to 30 seconds, on the CPU; each model in a process of its own, whose peak memory
is read, and recipes that share a model once. What a whole batch needs besides, `tagreel train` says. Finished
rows are noted in docs/results/published_sizes.json and not run again.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagreel.batch import Example
from tagreel.files import write_json
from tagreel.loader import collate
from tagreel.optimization import Optimization
from tagreel.recipe import find, names, to_json
from tagreel.tagger import build
from tagreel.train import training_loss

RESULTS = Path("docs/results/published_sizes.json")
TEXT = """# One training step of every published model at its published size

Four videos of random frames, forward, backward and one step of the recipe's optimizer on one CPU core beside
other work: that each model builds, fits and learns at the size that its paper has. Seconds and peak memory
are those of building it and the step; a loss is the sum over all classes of a model that has just been made.
Recipes that share a model, and differ in training or inference alone, share a row.

    python benchmarks/published_sizes.py
"""


def step(name: str) -> dict[str, Any]:
    """Build a recipe's model and train it for one step."""
    recipe = find(name)
    rng, videos = np.random.default_rng(0), []
    features = {feature: width or 128 for feature, width in recipe.features.items()}
    for number in range(4):
        frames = 1 if all(feature.startswith("mean_") for feature in features) else 20 + 3 * number
        streams = {f: rng.integers(0, 256, (frames, width), np.uint8) for f, width in features.items()}
        videos.append(Example(id=str(number), labels=np.array([number]), streams=streams))
    began = time.perf_counter()
    model = build(recipe, features=features).train()
    optimization = Optimization(model, recipe.training)
    loss, _, _ = training_loss(model, recipe.loss(), collate(videos, features=features))
    loss.backward()
    optimization.step(1, examples=0, total_examples=1)
    return {
        "recipe": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": float(loss.detach()),
        "seconds": time.perf_counter() - began,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def model_of(name: str) -> str:
    """What of a recipe makes its model: two that differ in their training alone are one here."""
    aside = ("about", "training", "sampling", "evaluation_sampling", "inference", "loss")
    return json.dumps({key: value for key, value in to_json(find(name)).items() if key not in aside})


def main() -> None:
    """Run what is missing, print the table, and write it."""
    chosen: dict[str, list[str]] = {}
    for name in sys.argv[1:] or names():
        chosen.setdefault(model_of(name), []).append(name)
    noted: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    context = multiprocessing.get_context("spawn")
    for shared in chosen.values():
        if known := next((name for name in shared if name in noted), None):
            noted[known]["same"] = [name for name in shared if name != known]
            continue
        with context.Pool(1) as pool:
            row = pool.apply(step, (shared[0],))
        assert np.isfinite(row["loss"]), json.dumps(row)
        noted[shared[0]] = row | {"same": shared[1:]}
        write_json(RESULTS, noted)
        print(line(noted[shared[0]]), flush=True)
    table = [
        "| recipe | parameters | loss | seconds | GB | the same model |",
        "|---|---:|---:|---:|---:|---|",
    ]
    write_json(RESULTS, noted)
    RESULTS.with_suffix(".md").write_text("\n".join([TEXT, *table, *map(line, noted.values())]) + "\n")


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    numbers = f"{row['parameters']:,} | {row['loss']:,.1f} | {row['seconds']:.1f} | {row['gigabytes']:.1f}"
    return f"| `{row['recipe']}` | {numbers} | {', '.join(f'`{name}`' for name in row['same'])} |"


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
