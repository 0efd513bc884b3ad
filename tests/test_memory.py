from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tagreel import memory
from tagreel import recipe as recipes
from tagreel.batch import Example
from tagreel.errors import RecipeError
from tagreel.memory import Estimate, _free_in_container, available, estimate
from tagreel.pools.mean import Mean
from tests.conftest import REPOSITORY, with_training

CPU = torch.device("cpu")
GB = 10**9

# Trains a few steps on videos made up on the spot, in a process of its own, and prints what was estimated
# before and what the system counted as the most.
MEASURE = """
import contextlib, json, os, re, sys, tempfile
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from tagreel import recipe as recipes
from tagreel.batch import Example
from tagreel.memory import estimate
from tagreel.train import train

recipe = recipes.find(sys.argv[1])
for setting in sys.argv[3:]:
    recipe = recipes.override(recipe, setting)
frames, B = int(sys.argv[2]), recipe.training.batch_size
def video(i):
    streams = {n: np.random.rand(1, d).astype(np.float32) if "mean" in n else
               np.random.randint(0, 255, (frames, d), np.uint8) for n, d in recipe.features.items()}
    return Example(id=str(i), labels=np.array([i % 100]), streams=streams)
class Shard:
    path = "made up"
    def __len__(self): return 4 * B * recipe.training.accumulate
    def __getitem__(self, i): return video(i)
class Data:
    paths, counts, label_names, provenance = ["made up"], [len(Shard())], None, None
    def __len__(self): return len(Shard())
    def open(self, index): return Shard()
    def first(self): return video(0)
    def fingerprint(self): return ""
    def fetching(self, needs): return contextlib.nullcontext(lambda step: None)
found = estimate(recipe, video(0), device=torch.device("cpu"), frames=frames)
status = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = status()
with tempfile.TemporaryDirectory() as out:
    train(recipe, data=Data(), out=Path(out) / "run", device="cpu")
print(json.dumps([found.total, status(), before]))
"""

STEPS = "training.steps=2"
TRAININGS = {
    "starter-moe-video": ("1", STEPS, "training.batch_size=512"),
    "youtube8m-video-mlp": ("1", STEPS, "streams.mean_rgb.transforms=()", "body.1.width=4000"),
    "smoke": ("300", STEPS, "features.rgb=256", "streams.rgb.pool.clusters=64"),
    "willow-netvlad-256": (
        *("60", STEPS, "training.batch_size=16", "streams.rgb.pool.clusters=48"),
        *("streams.audio.pool.clusters=16", "sampling.frames=60"),
    ),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures with Linux's /proc")
@pytest.mark.parametrize("name", TRAININGS)
def test_the_estimate_is_what_a_training_takes(name):
    command = [sys.executable, "-c", MEASURE, name, *TRAININGS[name]]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr
    estimated, measured, before = json.loads(ended.stdout)
    assert measured > 1.3 * before
    assert estimated == pytest.approx(measured, rel=0.25)


def example(recipe: recipes.Recipe) -> Example:
    streams = {
        name: np.zeros((1, width or 64), np.float32)
        if "mean" in name
        else np.zeros((5, width or 64), np.uint8)
        for name, width in recipe.features.items()
    }
    return Example(id="a", labels=np.zeros(0, np.int64), streams=streams)


def estimated(recipe: recipes.Recipe, **options) -> Estimate:
    return estimate(recipe, example(recipe), device=CPU, **options)


def settled(recipe: recipes.Recipe) -> recipes.Recipe:
    features = {name: width or 64 for name, width in recipe.features.items()}
    return replace(recipe, features=features, classes=recipe.classes or 50)


def one_of_each() -> list[str]:
    """Recipes until every class that some recipe is made of has come."""
    known: set[str] = set()
    chosen = []
    for name, recipe in recipes.names().items():
        parts = set(re.findall(r"'class': '(tagreel\.[^']+)'", str(recipes.to_json(recipe))))
        if not parts <= known:
            known |= parts
            chosen.append(name)
    return chosen


@pytest.mark.parametrize("name", one_of_each())
def test_every_part_of_a_recipe_takes_tensors_without_content(name):
    recipe = with_training(settled(recipes.names()[name]), batch_size=2)
    found = estimated(recipe, frames=6)
    assert found.gradients >= found.weights * 0.5 > 0
    assert found.activations > 0
    assert found.complete


def test_weights_gradients_and_averages_are_counted_to_the_byte(tiny):
    numbers = (12 + 6) * 120 + 120
    found = estimated(with_training(tiny, ema=0.9))
    assert found.weights == found.gradients == found.average == 4 * numbers
    assert found.optimizer == 2 * 4 * numbers + 2 * 4  # and AdamW's two counts of steps
    assert found.saving == found.optimizer + found.average
    assert estimated(tiny).average == 0
    assert estimated(tiny).saving == found.optimizer


@pytest.mark.parametrize(
    ("optimizer", "of_matrix", "of_vector"),
    [
        (partial(torch.optim.SGD, lr=0.1), 0, 0),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), 18 * 120, 120),
        (partial(torch.optim.Adagrad, lr=0.1), 18 * 120 + 1, 120 + 1),
        (partial(torch.optim.Adam, lr=0.1), 2 * 18 * 120 + 1, 2 * 120 + 1),
        (partial(torch.optim.Adam, lr=0.1, amsgrad=True), 3 * 18 * 120 + 1, 3 * 120 + 1),
        (partial(torch.optim.Adafactor, lr=0.1), 18 + 120 + 1, 120 + 1),
    ],
)
def test_each_optimizer_keeps_what_it_keeps(optimizer, of_matrix, of_vector, tiny):
    found = estimated(with_training(tiny, optimizer=optimizer))
    assert found.optimizer == 4 * (of_matrix + of_vector)
    assert found.optimizer_name == optimizer.func.__name__
    # Adafactor makes its update before it adds it; the others work in place.
    assert (found.update > 4 * 18 * 120) == (optimizer.func is torch.optim.Adafactor)


def test_activations_grow_with_the_batch_and_the_frames(tiny):
    base, wide, long = (
        estimated(with_training(tiny, batch_size=size), frames=frames).activations
        for size, frames in ((64, 100), (128, 100), (64, 200))
    )
    frame_bytes = 64 * 100 * (12 + 6) * 4
    assert frame_bytes < base < 6 * frame_bytes
    assert wide == pytest.approx(2 * base, rel=0.01)
    assert 1.5 * base < long < 2 * base


def test_gradients_that_wait_are_counted_beside_the_next_batch(tiny):
    wide = replace(tiny, classes=20_000)
    once, twice = (estimated(with_training(wide, accumulate=n)) for n in (1, 2))
    assert twice.activations > once.activations


def test_half_precision_holds_less(tiny):
    wide = replace(with_training(tiny, batch_size=256), classes=20_000)
    half = with_training(wide, precision="bfloat16")
    assert estimated(half).activations < estimated(wide).activations


def test_nothing_is_allocated(tiny):
    huge = replace(tiny, features={"rgb": 10**7, "audio": 6}, classes=10**4)
    found = estimated(huge)
    assert found.weights == 4 * (10**7 + 7) * 10**4
    assert found.total > 1600 * GB


class Peeking(Mean):
    def forward(self, frames, mask=None):
        return super().forward(frames, mask) * frames.sum().item()


def test_a_part_that_looks_at_its_tensors_leaves_a_lower_bound(tiny):
    stream = replace(tiny.streams["rgb"], pool=partial(Peeking))
    found = estimated(replace(tiny, streams={**tiny.streams, "rgb": stream}))
    assert not found.complete
    assert found.text(None).startswith("needs more than ")
    assert found.weights == estimated(tiny).weights


def test_an_optimizer_that_cannot_be_made_is_the_users_to_mend(tiny):
    with pytest.raises(RecipeError, match=r"training\.optimizer"):
        estimated(with_training(tiny, optimizer=partial(torch.optim.Adam, lr=-1.0)))


def test_the_line_adds_up_what_lies_side_by_side():
    found = Estimate(
        optimizer_name="Adam",
        process=GB // 2,
        weights=3 * GB,
        optimizer=6 * GB,
        average=0,
        batches=GB // 100,
        gradients=3 * GB,
        activations=2 * GB,
        update=GB,
        saving=GB,
    )
    parts = "weights 3.0, Adam 6.0, PyTorch 0.5, gradients 3.0, activations 2.0"
    assert found.text(24 * GB) == f"needs about 14.5 GB ({parts}); this machine has 24.0"
    assert found.text(None) == f"needs about 14.5 GB ({parts})"
    saving = replace(found, saving=6 * GB)
    parts = "weights 3.0, Adam 6.0, PyTorch 0.5, copies for the checkpoint 6.0"
    assert saving.text(None) == f"needs about 15.5 GB ({parts})"
    assert replace(found, update=3 * GB).text(None).endswith("gradients 3.0, update 3.0)")


def test_what_there_is_includes_what_this_process_has():
    assert 0 < memory._resident() < available(CPU)


def test_a_machine_that_does_not_say_gives_no_number(monkeypatch):
    monkeypatch.setattr(memory, "_free_in_machine", lambda: None)
    monkeypatch.setattr(memory, "_free_in_container", lambda: None)
    assert available(CPU) is None


def group(folder: Path, limit: str, used: int, cached: int, *, version: int) -> None:
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


@pytest.mark.parametrize(("version", "line"), [(1, "4:memory:/a/b"), (2, "0::/a/b")])
def test_the_tightest_group_of_a_container_binds(version, line, tmp_path):
    listed = tmp_path / "cgroup"
    listed.write_text(f"{line}\n3:cpu:/c\n")
    root = tmp_path / "root"
    top = root / "memory" if version == 1 else root
    assert _free_in_container(listed, root) is None
    group(top, "1000", 100, 0, version=version)
    assert _free_in_container(listed, root) == 900
    group(top / "a", "500", 450, 30, version=version)
    assert _free_in_container(listed, root) == 80
    group(top / "a" / "b", "9999999", 450, 30, version=version)
    assert _free_in_container(listed, root) == 80
    assert _free_in_container(tmp_path / "nothing", root) is None


def test_a_group_without_a_limit_does_not_bind(tmp_path):
    listed = tmp_path / "cgroup"
    listed.write_text("0::/\n")
    group(tmp_path, "max", 100, 0, version=2)
    assert _free_in_container(listed, tmp_path) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_says_what_it_has(tiny):
    device = torch.device("cuda")
    total = torch.cuda.get_device_properties(device).total_memory
    assert 0 < available(device) <= total
    assert estimate(tiny, example(tiny), device=device).saving == 0
