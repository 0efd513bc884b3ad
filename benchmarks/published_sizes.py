"""One training step of every recipe at its published size: that it fits, how long it takes, how much memory.

    python benchmarks/published_sizes.py [RECIPE ...]

Random frames, 4 videos of 20 to 30 seconds, on the CPU; each model in a process of its own, whose peak memory
is read, and recipes that share a model once. What a whole batch needs besides, `tagreel train` says.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time
from typing import Any

import numpy as np
import torch

from tagreel.batch import Example
from tagreel.loader import collate
from tagreel.model import build
from tagreel.optimization import Optimization
from tagreel.recipe import find, names, to_json
from tagreel.train import training_loss


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
    """Print the table."""
    chosen: dict[str, str] = {}
    for name in sys.argv[1:] or names():
        chosen.setdefault(model_of(name), name)
    print(f"{'recipe':<34} {'parameters':>12} {'loss':>10} {'seconds':>8} {'GB':>6}")
    context = multiprocessing.get_context("spawn")
    for name in chosen.values():
        with context.Pool(1) as pool:
            row = pool.apply(step, (name,))
        print(
            f"{row['recipe']:<34} {row['parameters']:>12,} {row['loss']:>10.2f} {row['seconds']:>8.1f} "
            f"{row['gigabytes']:>6.1f}",
            flush=True,
        )
        assert np.isfinite(row["loss"]), json.dumps(row)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
