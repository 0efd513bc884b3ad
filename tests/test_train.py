from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tagreel import checkpoint
from tagreel.ensemble import EnsembleTagger
from tagreel.errors import DataError, RecipeError
from tagreel.layers.context_gating import ContextGating
from tagreel.layers.mixture import Mixture
from tagreel.layers.neighbours import Neighbours
from tagreel.layers.reverse_whitening import ReverseWhitening
from tagreel.loader import collate
from tagreel.log import read_log
from tagreel.loop import Outcome
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.mean import Mean
from tagreel.recipe import Recipe, Stream, find
from tagreel.runtime import seed_everything
from tagreel.schedule import Cosine, Staircase
from tagreel.source import Source
from tagreel.tagger import build
from tagreel.train import train
from tests.conftest import REPOSITORY, InMemory, payload_damaged, video, with_training

BUSY = """
from dataclasses import replace
from functools import partial
from torch.optim import Adagrad, Adam, AdamW
from tagreel.heads.logistic import Logistic
from tagreel.layers.context_gating import ContextGating
from tagreel.layers.dropout import Dropout
from tagreel.layers.latent_concepts import LatentConcepts
from tagreel.layers.projection import Projection
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.netvlad import NetVLAD
from tagreel.recipe import Recipe, Stream, Training
from tagreel.sampling import AllFrames, RandomFrames
from tagreel.schedule import Cosine, Staircase

busy = Recipe(
    features={"rgb": 12, "audio": 6},
    classes=120,
    streams={
        "rgb": Stream(pool=partial(NetVLAD, clusters=4)),
        "audio": Stream(pool=partial(NetVLAD, clusters=2)),
    },
    body=(partial(Dropout, rate=0.4), partial(Projection, width=256), partial(ContextGating)),
    head=partial(Logistic),
    loss=partial(CrossEntropy),
    sampling=partial(RandomFrames, frames=9),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(AdamW, lr=3e-3, weight_decay=0.01),
        schedule=partial(Cosine, warmup=60),
        batch_size=8,
        epochs=3,
        accumulate=2,
        mixup=0.4,
        ema=0.9,
        head_l2=1e-4,
    ),
)
stairs = replace(
    busy,
    training=Training(
        optimizer=partial(Adagrad, lr=0.05), schedule=partial(Staircase, every=50), batch_size=8, epochs=2
    ),
)
late = replace(
    stairs,
    late=(partial(LatentConcepts, concepts=16),),
    training=replace(stairs.training, optimizer=partial(AdamW, lr=1e-2), ema=0.9, late_epochs=1),
)
"""


@pytest.fixture(scope="session")
def recipes_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "mine.py"
    path.write_text(BUSY)
    return path


@pytest.fixture
def busy(recipes_file) -> Recipe:
    from tagreel.recipe import find

    return find(f"{recipes_file}:busy")


def files(run: Path) -> dict[str, bytes]:
    """All files of the last checkpoint."""
    return {path.name: path.read_bytes() for path in sorted(checkpoint.checkpoints(run)[-1].iterdir())}


def rows(run: Path, event: str = "train") -> list[dict]:
    return [row for row in read_log(run) if row["event"] == event]


class StopError(Exception):
    """Ends a training as a kill would, at an event."""


def stopping(event: str, step: int):
    def on_event(row):
        if row["event"] == event and row["step"] == step:
            raise StopError

    return on_event


def short(recipe: Recipe, data: Source | InMemory, out: Path, **options) -> Outcome:
    chosen = {"device": "cpu", "log_every": 1, "save_minutes": 0} | options
    return train(recipe, data=data, out=out, **chosen)


# ---------------------------------------------------------------------- kill and resume


def command(recipe: str, shards: Path, run: Path, *more: str) -> list[str]:
    data = ["--data", f"{shards}/train*.tfrecord", "--validate", f"{shards}/test*.tfrecord"]
    options = ["--out", str(run), "--device", "cpu", "--save-minutes", "0", "--log-every", "1"]
    return ["train", recipe, *data, *options, "--validate-every", "5", *more]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-m", "tagreel", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], happened) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def saved(run: Path, step: int):
    return lambda: (run / "checkpoints" / f"step-{step:08d}").exists()


def half_written(run: Path, step: int):
    """True while a checkpoint of that step or later is being written."""

    def happened() -> bool:
        found = (run / "checkpoints").glob("step-*.partial/model.safetensors")
        return any(int(path.parent.name[5:13]) >= step for path in found)

    return happened


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("busy", [(half_written, 2), (saved, 9), (half_written, 12)]),
        ("stairs", [(saved, 3), (half_written, 16)]),
        # 13 steps an epoch: before, at and after the step at which the late layer joins.
        ("late", [(saved, 11), (half_written, 13), (saved, 15)]),
    ],
)
def test_a_killed_and_resumed_run_ends_in_the_same_bits(name, moments, recipes_file, shards, tmp_path, cli):
    recipe = f"{recipes_file}:{name}"
    code, _, err = cli(*command(recipe, shards, tmp_path / "whole"))
    assert code == 0, err
    killed = tmp_path / "killed"
    for kind, step in moments:
        process = start(command(recipe, shards, killed, "--resume"))
        wait_for(process, kind(killed, step))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    before = checkpoint.checkpoints(killed)[-1]
    assert step - 3 <= int(before.name[5:]) < rows(tmp_path / "whole")[-1]["step"]
    code, out, err = cli(*command(recipe, shards, killed, "--resume"))
    assert code == 0, err
    assert f"resuming at step {int(before.name[5:])}" in out
    assert files(killed) == files(tmp_path / "whole")
    assert (killed / "best.json").read_bytes() == (tmp_path / "whole" / "best.json").read_bytes()
    assert not list((killed / "checkpoints").glob("*.partial*"))

    def without_clocks(run: Path) -> list[dict]:
        clocks = ("videos_per_second", "waiting", "eta_seconds", "seconds", "path", "gap@20", "loss")
        logged = [*rows(run), *rows(run, "validate")]
        return [{k: v for k, v in row.items() if k not in clocks} for row in logged]

    assert without_clocks(killed) == without_clocks(tmp_path / "whole")
    losses = [[row["loss"] for row in rows(run)] for run in (killed, tmp_path / "whole")]
    assert losses[0] == losses[1]


def test_sigterm_saves_and_says_how_to_go_on(recipes_file, shards, tmp_path, cli):
    recipe, run = f"{recipes_file}:busy", tmp_path / "run"
    process = start([*command(recipe, shards, run), "--save-minutes", "60", "--validate-every", "1000"])
    wait_for(process, lambda: len(rows(run)) >= 4)
    process.terminate()
    output = process.communicate()[0]
    assert process.returncode == 130, output
    assert "go on with the same command and --resume" in output
    (only,) = checkpoint.checkpoints(run)
    assert int(only.name[5:]) == rows(run)[-1]["step"] >= 4
    assert cli(*command(recipe, shards, run, "--resume"))[0] == 0
    assert cli(*command(recipe, shards, tmp_path / "whole"))[0] == 0
    assert files(run)["model.safetensors"] == files(tmp_path / "whole")["model.safetensors"]


VARIANTS = {
    "adam": {"optimizer": partial(torch.optim.Adam, lr=1e-2), "schedule": partial(Staircase, every=40)},
    "adagrad": {"optimizer": partial(torch.optim.Adagrad, lr=0.1)},
    "adamw": {"optimizer": partial(torch.optim.AdamW, lr=1e-2), "ema": 0.8, "mixup": 0.5},
    "momentum": {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9), "accumulate": 3},
    "bfloat16": {"precision": "bfloat16", "clip": "global"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("event", "step", "from_step"),
    [("train", 1, 0), ("train", 3, 2), ("validate", 6, 5), ("checkpoint", 7, 7), ("train", 8, 7)],
)
def test_a_stopped_and_resumed_run_ends_in_the_same_bits(
    variant, event, step, from_step, busy, training_data, test_data, tmp_path
):
    recipe = with_training(busy, steps=9, **({"accumulate": 1, "batch_size": 25} | VARIANTS[variant]))
    options = {"validation": test_data, "validate_every": 3}
    short(recipe, training_data, tmp_path / "whole", **options)
    out = tmp_path / "stopped"
    with pytest.raises(StopError):
        short(recipe, training_data, out, on_event=stopping(event, step), **options)
    assert [int(found.name[5:]) for found in checkpoint.checkpoints(out)][-1:] == [from_step][:from_step]
    outcome = short(recipe, training_data, out, resume=True, threads=2, **options)
    assert outcome.step == 9
    assert not outcome.interrupted
    assert files(out) == files(tmp_path / "whole")
    steps = [row["step"] for row in rows(out)]
    assert steps == list(range(1, 10))
    assert [row["step"] for row in rows(out, "validate")] == [3, 6, 9]
    assert [row["loss"] for row in rows(out)] == [row["loss"] for row in rows(tmp_path / "whole")]


def test_ctrl_c_ends_the_step_saves_and_returns(tiny, training_data, tmp_path):
    def interrupt(row):
        if row["event"] == "train" and row["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    outcome = short(tiny, training_data, tmp_path / "run", save_minutes=60, on_event=interrupt)
    assert (outcome.step, outcome.interrupted) == (3, True)
    assert [found.name for found in checkpoint.checkpoints(tmp_path / "run")] == ["step-00000003"]
    assert signal.getsignal(signal.SIGINT) is before
    assert not short(tiny, training_data, tmp_path / "run", resume=True).interrupted
    short(tiny, training_data, tmp_path / "whole")
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(tiny, training_data, test_data, tmp_path):
    out = tmp_path / "run"
    first = short(tiny, training_data, out, validation=test_data)
    before = files(out)
    (out / "best.json").unlink()  # as a kill right before it was written would leave it
    again = short(tiny, training_data, out, validation=test_data, resume=True)
    assert (again.step, again.best, again.interrupted) == (first.step, first.best, False)
    assert files(out) == before
    assert json.loads((out / "best.json").read_text())["step"] == first.best["step"]


def test_a_resumed_run_may_be_longer(tiny, training_data, tmp_path):
    recipe = with_training(tiny, schedule=partial(Staircase))
    short(with_training(recipe, steps=4), training_data, tmp_path / "run")
    short(with_training(recipe, steps=9), training_data, tmp_path / "run", resume=True)
    short(with_training(recipe, steps=9), training_data, tmp_path / "whole")
    names = ("model.safetensors", "training.safetensors")
    for name in names:
        assert files(tmp_path / "run")[name] == files(tmp_path / "whole")[name]


def test_what_a_killed_run_left_half_written_is_cleared_away(tiny, training_data, tmp_path):
    half = tmp_path / "run" / "checkpoints" / "step-00000002.partial"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    short(tiny, training_data, tmp_path / "run", resume=True)
    assert not half.exists()


def test_what_joins_late_is_as_if_it_were_not_there_before(recipes_file, training_data, test_data, tmp_path):
    late = find(f"{recipes_file}:late")
    without = replace(late, late=(), training=replace(late.training, late_epochs=0))
    short(without, training_data, tmp_path / "without", validation=test_data, validate_every=1)
    short(late, training_data, tmp_path / "late", validation=test_data, validate_every=1)
    losses = {name: [row["loss"] for row in rows(tmp_path / name)] for name in ("without", "late")}
    # The layer draws its first weights after all others, so that these are the same.
    assert losses["late"][:13] == losses["without"][:13]
    assert losses["late"][13] != losses["without"][13]
    scores = {
        name: [row["gap@20"] for row in rows(tmp_path / name, "validate")] for name in ("without", "late")
    }
    assert scores["late"][:13] == scores["without"][:13]
    assert scores["late"][13] != scores["without"][13]
    assert checkpoint.load(tmp_path / "late", checkpoint="last").fired


def test_a_tagger_saved_before_its_late_parts_joined_is_loaded_without_them(
    recipes_file, training_data, test_data, tmp_path
):
    late = find(f"{recipes_file}:late")
    with pytest.raises(StopError):
        short(late, training_data, tmp_path / "run", on_event=stopping("checkpoint", 13))
    model = checkpoint.load(tmp_path / "run")
    assert not model.fired
    assert len(model.late) == 1


def test_late_parts_join_whatever_the_optimizer(recipes_file, training_data, tmp_path):
    late = find(f"{recipes_file}:late")
    for name, optimizer in (
        ("momentum", partial(torch.optim.SGD, lr=0.01, momentum=0.9)),
        ("adagrad", partial(torch.optim.Adagrad, lr=0.01)),
        ("rmsprop", partial(torch.optim.RMSprop, lr=1e-3)),
    ):
        recipe = with_training(late, optimizer=optimizer, steps=15)
        assert short(recipe, training_data, tmp_path / name).step == 15


def test_late_parts_that_would_never_join_are_refused(recipes_file, training_data, tmp_path):
    late = with_training(find(f"{recipes_file}:late"), steps=13)
    with pytest.raises(RecipeError, match="would join at step 13, and the run ends at 13"):
        short(late, training_data, tmp_path / "run")
    with pytest.raises(RecipeError, match="late_epochs is 1, but there are no late parts"):
        replace(late, late=())


def test_a_memory_is_not_trained(tiny, training_data, tmp_path):
    with pytest.raises(RecipeError, match="memory: is filled by `tagreel remember`"):
        short(replace(tiny, memory=partial(Neighbours)), training_data, tmp_path / "run")


# ---------------------------------------------------------------------- starting from another run


def first_weights(recipe, data, out, **options):
    """The weights that a training begins with."""
    short(with_training(recipe, optimizer=partial(torch.optim.SGD, lr=0.0), steps=1), data, out, **options)
    return checkpoint.load(out).state_dict()


def test_a_run_may_start_from_the_weights_of_another(run, tiny, training_data, planted, tmp_path):
    before = checkpoint.load(run).state_dict()
    events = []
    options = {"start_from": run, "label_names": planted.label_names, "on_event": events.append}
    after = first_weights(tiny, training_data, tmp_path / "same", **options)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert events[0]["taken"] == len(before)


def test_of_other_classes_nothing_is_taken_that_knows_them(run, tiny, training_data, tmp_path):
    recipe = replace(tiny, body=(partial(ContextGating),))
    options = {"label_names": [f"other {n}" for n in range(120)]}
    with pytest.raises(DataError, match="no tensor of it fits this recipe's model"):
        first_weights(recipe, training_data, tmp_path / "none", start_from=run, **options)
    first_weights(recipe, training_data, tmp_path / "other", seed=1, **options)
    named = {"label_names": [f"another {n}" for n in range(120)], "start_from": tmp_path / "other"}
    after = first_weights(recipe, training_data, tmp_path / "body", seed=2, **named)
    before = checkpoint.load(tmp_path / "other").state_dict()
    assert torch.equal(after["body.0.weight"], before["body.0.weight"])
    assert not torch.equal(after["head.linear.weight"], before["head.linear.weight"])


def test_a_file_named_now_wins_over_what_another_run_read(tiny, training_data, tmp_path):
    for name, value in (("one", 4.0), ("two", 9.0)):
        np.save(tmp_path / f"{name}.npy", np.full(12, value, np.float32))

    def whitened(name):
        part = partial(ReverseWhitening, eigenvalues=str(tmp_path / f"{name}.npy"))
        return replace(tiny, streams={**tiny.streams, "rgb": Stream(transforms=(part,), pool=partial(Mean))})

    first_weights(whitened("one"), training_data, tmp_path / "first")
    after = first_weights(whitened("two"), training_data, tmp_path / "next", start_from=tmp_path / "first")
    assert after["streams.rgb.transforms.0.scale"].tolist() == pytest.approx([3.0001] * 12)


# ---------------------------------------------------------------------- refusals


def test_a_folder_with_a_run_is_not_overwritten(tiny, training_data, tmp_path):
    short(with_training(tiny, steps=2), training_data, tmp_path / "run")
    before = files(tmp_path / "run")
    with pytest.raises(RecipeError, match=r"already holds a run; go on with it by --resume"):
        short(tiny, training_data, tmp_path / "run")
    assert files(tmp_path / "run") == before


def test_a_run_that_never_got_to_a_checkpoint_may_be_started_anew(tiny, training_data, tmp_path):
    with pytest.raises(DataError, match="the model expects 7"):
        short(Recipe(**{**vars(tiny), "features": {"rgb": 7, "audio": 6}}), training_data, tmp_path / "run")
    assert short(with_training(tiny, steps=2), training_data, tmp_path / "run").step == 2
    assert len(rows(tmp_path / "run")) == 2


def test_resuming_with_other_settings_is_refused(tiny, training_data, test_data, tmp_path):
    out = tmp_path / "run"
    short(with_training(tiny, steps=2), training_data, out)
    before = files(out)
    for change, reason in [
        ({"recipe": with_training(tiny, steps=2, batch_size=4)}, "training.batch_size = 16, now it is 4"),
        (
            {"recipe": with_training(tiny, optimizer=partial(torch.optim.AdamW, lr=1.0))},
            r"training.optimizer.options.lr = 0.01, now it is 1.0",
        ),
        ({"seed": 3}, "was started with --seed 0, now it is 3"),
        ({"data": test_data}, "was trained on other files"),
    ]:
        options = {"recipe": with_training(tiny, steps=2), "data": training_data, "out": out} | change
        with pytest.raises((RecipeError, DataError), match=reason) as caught:
            short(**options, resume=True)
        assert "\n" not in str(caught.value)
    assert files(out) == before


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"step": 1}', b"\xff\xfe"])
@pytest.mark.parametrize("name", ["training.json", "recipe.json"])
def test_a_damaged_position_is_one_line(name, damage, tiny, training_data, tmp_path):
    out = tmp_path / "run"
    short(with_training(tiny, steps=1), training_data, out)
    folder = checkpoint.checkpoints(out)[-1] if name == "training.json" else out
    (folder / name).write_bytes(damage)
    with pytest.raises(DataError, match=name) as caught:
        short(with_training(tiny, steps=1), training_data, out, resume=True)
    assert "\n" not in str(caught.value)


def test_classes_left_open_need_names_or_a_number(tiny, training_data, planted, tmp_path):
    recipe = Recipe(**{**vars(tiny), "classes": None})
    with pytest.raises(RecipeError, match=r"--labels FILE, or their number with --set classes=N"):
        short(recipe, training_data, tmp_path / "none")
    short(with_training(recipe, steps=1), training_data, tmp_path / "run", label_names=planted.label_names)
    assert checkpoint.load(tmp_path / "run").label_names == planted.label_names


def test_widths_left_open_come_from_the_data(tiny, training_data, tmp_path):
    recipe = Recipe(**{**vars(tiny), "features": {"rgb": None, "audio": None}})
    short(with_training(recipe, steps=1), training_data, tmp_path / "run")
    assert checkpoint.load(tmp_path / "run").features == {"rgb": 12, "audio": 6}


def test_an_optimizer_that_refuses_its_options_is_one_line(tiny, training_data, tmp_path):
    recipe = with_training(tiny, optimizer=partial(torch.optim.AdamW, lr=-1.0))
    with pytest.raises(RecipeError, match=r"training.optimizer: Invalid learning rate: -1.0"):
        short(recipe, training_data, tmp_path / "run")


@pytest.mark.parametrize("log_every", [1, 50])
@pytest.mark.parametrize("validate", [False, True])
def test_a_loss_that_is_not_finite_is_one_line_and_not_saved(
    log_every, validate, tiny, training_data, test_data, tmp_path
):
    recipe = with_training(tiny, optimizer=partial(torch.optim.SGD, lr=1e38), clip="none", epochs=10)
    out = tmp_path / "run"
    with pytest.raises(RecipeError, match=r"the loss is (nan|inf) at step \d+; a lower learning rate"):
        short(
            recipe,
            training_data,
            out,
            log_every=log_every,
            validation=test_data if validate else None,
            validate_every=2,
        )


class Breaking(torch.nn.Module):
    """A loss that is NaN, and so are its gradients, from the third time on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, logits, labels, weights=None):
        self.calls += 1
        return (logits - labels).square().mean() * (1.0 if self.calls < 3 else math.nan)


@pytest.mark.parametrize("log_every", [1, 50])
@pytest.mark.parametrize("validate_every", [None, 1])
def test_weights_behind_a_broken_loss_are_not_saved(
    log_every, validate_every, tiny, training_data, test_data, tmp_path
):
    recipe = with_training(Recipe(**{**vars(tiny), "loss": partial(Breaking)}), epochs=10)
    options = {"validation": test_data, "validate_every": validate_every, "log_every": log_every}
    with pytest.raises(RecipeError, match=r"the loss is nan at step [23];"):
        short(recipe, training_data, tmp_path / "run", **options)
    last = checkpoint.checkpoints(tmp_path / "run")[-1]
    assert last.name == "step-00000002"
    assert all(tensor.isfinite().all() for tensor in load_file(last / "model.safetensors").values())


def test_a_data_set_with_everything_damaged_ends_with_an_error(tiny, tmp_path):
    bad = [DataError("the checksum is wrong", path="shard0", record=index) for index in range(30)]
    with pytest.raises(DataError, match="shard0: no record could be read"):
        short(tiny, InMemory(bad), tmp_path / "run", skip_damaged=1000)


def test_damaged_records_are_listed_and_the_rest_is_used(tiny, shards, tmp_path):
    with payload_damaged(shards / "train1.tfrecord", 4), payload_damaged(shards / "test0.tfrecord", 9):
        outcome = short(
            tiny,
            Source(f"{shards}/train*.tfrecord"),
            tmp_path / "run",
            validation=Source(f"{shards}/test*.tfrecord"),
            skip_damaged=5,
        )
    found = [(Path(error.path).name, error.record) for error in outcome.damaged]
    assert found == [("train1.tfrecord", 4), ("test0.tfrecord", 9)]
    assert rows(tmp_path / "run")[-1]["examples"] == 2 * 99


def test_without_tensorboard_the_folder_is_left_alone(tiny, training_data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RecipeError, match=r"pip install 'tagreel\[track\]'"):
        short(tiny, training_data, tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- what a step does


def test_the_staircase_is_the_one_of_the_papers(tiny, training_data, tmp_path):
    schedule = partial(Staircase, factor=0.5, every=40, warmup=30)
    recipe = with_training(tiny, schedule=schedule, epochs=3)
    short(recipe, training_data, tmp_path / "run")
    logged = rows(tmp_path / "run")
    seen = [0, *(row["examples"] for row in logged)]
    assert (
        seen
        == [
            0,
            16,
            32,
            48,
            64,
            80,
            96,
            100,
            116,
            132,
            148,
            164,
            180,
            196,
            200,
            216,
            *range(232, 297, 16),
            300,
        ][: len(seen)]
    )
    for examples, row in zip(seen, logged, strict=False):
        warm = min((examples + 1) / 31, 1)
        assert row["lr"] == pytest.approx(1e-2 * warm * 0.5 ** (examples // 40), rel=1e-12)


def test_the_cosine_ends_at_its_floor(tiny, training_data, tmp_path):
    schedule = partial(Cosine, floor=0.1, warmup=20)
    short(with_training(tiny, schedule=schedule, epochs=3), training_data, tmp_path / "run")
    logged = rows(tmp_path / "run")
    seen = [0, *(row["examples"] for row in logged)]
    assert seen[-1] == 300
    for examples, row in zip(seen, logged, strict=False):
        share = max(examples - 20, 0) / 280
        cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2
        assert row["lr"] == pytest.approx(1e-2 * min((examples + 1) / 21, 1) * cosine, rel=1e-12)


class Recording(torch.optim.SGD):
    """Notes the norm of each gradient that it is given."""

    norms: list[list[float]]

    def __init__(self, params, lr: float = 0.5):
        super().__init__(params, lr=lr)
        Recording.norms = []

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        Recording.norms.append([p.grad.norm().item() for p in parameters])
        return super().step(closure)


class Drawing(torch.optim.SGD):
    """Notes what torch's generator gives at each step."""

    drawn: list[float]

    def __init__(self, params, lr: float = 0.5):
        super().__init__(params, lr=lr)
        Drawing.drawn = []

    def step(self, closure=None):
        Drawing.drawn.append(torch.rand(()).item())
        return super().step(closure)


def test_each_step_draws_anew_and_again_the_same(tiny, training_data, tmp_path):
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        short(with_training(tiny, optimizer=partial(Drawing)), training_data, tmp_path / name, seed=seed)
        drawn.append(Drawing.drawn)
    assert drawn[0] == drawn[1]
    assert len({*drawn[0], *drawn[2]}) == 28


@pytest.mark.parametrize("clip", ["none", "tensor", "global"])
def test_clipping_bounds_the_gradient(clip, tiny, training_data, tmp_path):
    bound = 0.01
    recipe = with_training(tiny, optimizer=partial(Recording), clip=clip, clip_norm=bound)
    short(recipe, training_data, tmp_path / "run")
    largest = max(max(norms) for norms in Recording.norms)
    whole = max(math.hypot(*norms) for norms in Recording.norms)
    assert min(len(norms) for norms in Recording.norms) > 1
    if clip == "none":
        assert largest > 2 * bound
    elif clip == "tensor":
        assert largest == pytest.approx(bound, rel=1e-3)
        assert whole > 1.1 * bound
    else:
        assert whole == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize("head_l2", [0.0, 0.3])
def test_two_half_batches_are_one_step_of_a_whole_one(head_l2, tiny, training_data, tmp_path):
    options = {"optimizer": partial(torch.optim.SGD, lr=1.0), "head_l2": head_l2}
    short(with_training(tiny, batch_size=28, **options), training_data, tmp_path / "whole")
    short(with_training(tiny, batch_size=14, accumulate=2, **options), training_data, tmp_path / "halves")
    whole, halves = (rows(tmp_path / name) for name in ("whole", "halves"))
    # An epoch ends with 16 videos: fourteen and two, which must not weigh the same.
    assert len(whole) == len(halves) == 8
    assert [row["examples"] for row in whole] == [row["examples"] for row in halves]
    for ours, theirs in zip(halves, whole, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    weights = [
        load_file(checkpoint.checkpoints(tmp_path / name)[-1] / "model.safetensors")
        for name in ("whole", "halves")
    ]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)


def test_head_l2_adds_its_share_of_the_weights_to_the_gradient(tiny, training_data, tmp_path):
    options = {"optimizer": partial(torch.optim.SGD, lr=0.1), "clip": "none", "steps": 1}
    options["schedule"] = partial(Staircase)
    for name, head_l2 in (("without", 0.0), ("with", 0.5)):
        short(with_training(tiny, head_l2=head_l2, **options), training_data, tmp_path / name)
    seed_everything(0)
    first = build(tiny).state_dict()
    without, with_ = (
        load_file(checkpoint.checkpoints(tmp_path / name)[-1] / "model.safetensors")
        for name in ("without", "with")
    )
    matrices = 0
    for name, tensor in first.items():
        share = 0.1 * 0.5 if name.startswith("head.") and tensor.ndim > 1 else 0.0
        torch.testing.assert_close(with_[name], without[name] - share * tensor)
        matrices += share > 0
    assert matrices == 1


def test_the_average_of_the_weights_is_the_one_computed_by_hand(busy, training_data, tmp_path):
    recipe = with_training(busy, ema=0.6, steps=8, accumulate=1)
    short(recipe, training_data, tmp_path / "run", keep=100)
    seed_everything(0)
    average = {name: tensor.double() for name, tensor in build(recipe).state_dict().items()}
    for step, folder in enumerate(checkpoint.checkpoints(tmp_path / "run"), start=1):
        raw = load_file(folder / "training.safetensors")
        decay = min(0.6, (1 + step) / (10 + step))
        for name, tensor in average.items():
            weights = raw[f"weights.{name}"]
            mixed = decay * tensor + (1 - decay) * weights.double()
            average[name] = mixed if weights.is_floating_point() else weights.double()
        kept = load_file(folder / "model.safetensors")
        torch.testing.assert_close(
            {name: tensor.double() for name, tensor in kept.items()}, average, rtol=1e-5, atol=1e-6
        )
    assert step == 8


def test_the_averaged_weights_are_those_that_are_validated(busy, training_data, test_data, tmp_path):
    from tagreel.evaluate import evaluate
    from tagreel.loader import Loader

    outcome = short(with_training(busy, steps=6), training_data, tmp_path / "run", validation=test_data)
    model = checkpoint.load(tmp_path / "run", checkpoint="last")
    loader = Loader(test_data, features=model.features, classes=120, batch_size=8)
    found = evaluate(model, loader, device=torch.device("cpu"))
    assert found.metrics["gap@20"] == pytest.approx(outcome.best["gap@20"], abs=1e-9)


def test_bfloat16_trains(busy, training_data, tmp_path):
    for precision in ("float32", "bfloat16"):
        recipe = with_training(busy, precision=precision, mixup=0.0, epochs=6)
        short(recipe, training_data, tmp_path / precision, save_minutes=60)
    full, half = ([row["loss"] for row in rows(tmp_path / name)] for name in ("float32", "bfloat16"))
    assert half != full
    assert np.mean(half[-5:]) < 0.5 * half[0]
    assert np.mean(half[-5:]) == pytest.approx(np.mean(full[-5:]), rel=0.1)
    kept = load_file(checkpoint.checkpoints(tmp_path / "bfloat16")[-1] / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values() if tensor.is_floating_point()} == {torch.float32}


def test_seeds_give_other_weights_and_the_same_seed_the_same(busy, training_data, tmp_path):
    recipe = with_training(busy, steps=3)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        short(recipe, training_data, tmp_path / name, seed=seed, threads=1 + (name == "b"))
    a, b, c = (files(tmp_path / name)["model.safetensors"] for name in "abc")
    assert a == b
    assert a != c


def test_training_on_rated_segments_looks_at_rated_classes_alone(tmp_path, tiny):
    def segment(index: int, rated: list[int]):
        example = video(f"{index}", rgb=np.ones((2, 12)), audio=np.ones((2, 6)), labels=[0])
        example.rated = np.array(rated)
        return example

    recipe = Recipe(**{**vars(tiny), "classes": 3})
    options = {"optimizer": partial(torch.optim.SGD, lr=1.0), "batch_size": 4, "steps": 3}
    short(
        with_training(recipe, **options),
        InMemory([segment(i, [0, 1]) for i in range(8)]),
        tmp_path / "run",
    )
    seed_everything(0)
    first = build(recipe).state_dict()
    trained = load_file(checkpoint.checkpoints(tmp_path / "run")[-1] / "model.safetensors")
    changed = {
        name: (trained[name] != first[name]).reshape(3, -1).any(1).tolist()
        for name in first
        if name.startswith("head.")
    }
    assert changed
    assert all(rows == [True, True, False] for rows in changed.values())


# ---------------------------------------------------------------------- what is kept and shown


def test_the_last_few_and_the_best_are_kept(tiny, training_data, test_data, tmp_path, monkeypatch):
    from tagreel import train as module

    real, calls = module.evaluate, []

    def scripted(model, loader, *, device):
        found = real(model, loader, device=device)
        calls.append(found)
        found.metrics["gap@20"] = [0.2, 0.9, 0.4, 0.9, 0.3, 0.1, 0.5][len(calls) - 1]
        return found

    monkeypatch.setattr(module, "evaluate", scripted)
    outcome = short(tiny, training_data, tmp_path / "run", validation=test_data, validate_every=2, keep=2)
    names = [folder.name for folder in checkpoint.checkpoints(tmp_path / "run")]
    # Of the two that are equally good the later one.
    assert names == ["step-00000008", "step-00000013", "step-00000014"]
    assert outcome.best["step"] == 8
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert (best["checkpoint"], best["gap@20"]) == ("step-00000008", 0.9)
    assert checkpoint.find(tmp_path / "run").name == "step-00000008"
    assert checkpoint.find(tmp_path / "run", "last").name == "step-00000014"


def test_a_log_line_holds_what_the_terminal_shows(tiny, training_data, tmp_path):
    seen = []
    short(tiny, training_data, tmp_path / "run", on_event=seen.append)
    assert seen == read_log(tmp_path / "run")
    for row in rows(tmp_path / "run"):
        assert 0 < row["loss"] < 100
        assert 0 <= row["gap@20"] <= 1
        assert 0 <= row["waiting"] <= 1
        assert row["videos_per_second"] > 0
    assert rows(tmp_path / "run")[-1]["eta_seconds"] == 0
    counts = json.loads(files(tmp_path / "run")["model.json"])["facts"]["train_counts"]
    expected = np.zeros(120, int)
    for shard, count in enumerate(training_data.counts):
        for record in range(count):
            expected[training_data.open(shard)[record].labels] += 1
    assert counts == expected.tolist()


def test_the_logged_loss_is_the_mean_over_the_videos_since_the_last_line(tiny, training_data, tmp_path):
    for name, every in (("each", 1), ("third", 3)):
        short(tiny, training_data, tmp_path / name, log_every=every)
    each = rows(tmp_path / "each")
    videos = np.diff([0, *(row["examples"] for row in each)])
    for before, row in pairwise([{"step": 0}, *rows(tmp_path / "third")]):
        window = slice(before["step"], row["step"])
        mean = np.average([r["loss"] for r in each[window]], weights=videos[window])
        assert row["loss"] == pytest.approx(mean, rel=1e-6)


def test_the_rate_does_not_count_the_time_between_steps(tiny, training_data, tmp_path, monkeypatch):
    now, passed = time.perf_counter, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now() + passed[0])

    def pass_time(row):
        passed[0] += 1000 * (row["event"] in ("start", "checkpoint"))

    short(tiny, training_data, tmp_path / "run", on_event=pass_time)
    assert min(row["videos_per_second"] for row in rows(tmp_path / "run")) > 1


def test_tensorboard_shows_the_numbers_of_the_log(tiny, training_data, test_data, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    options = {"validation": test_data, "tensorboard": True}
    with pytest.raises(StopError):
        short(tiny, training_data, out, on_event=stopping("validate", 7), **options)
    short(tiny, training_data, out, resume=True, **options)
    events = accumulator.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    for kind, names in (("train", ("loss", "lr", "gap@20")), ("validate", ("gap@20", "map", "perr"))):
        for name in names:
            logged = {row["step"]: row[name] for row in rows(out, kind)}
            events_of = events.Scalars(f"{kind}/{name}")
            assert [event.step for event in events_of] == list(logged)
            shown = {event.step: event.value for event in events_of}
            assert shown == pytest.approx(logged, rel=1e-6)


@pytest.mark.parametrize("tail", [b'{"event": "tra', b"\x00" * 40, b"\xff\xfe\n", b"3\n", b'{"a": 1}\n'])
def test_a_log_cut_by_a_kill_is_read_up_to_there(tmp_path, tail):
    (tmp_path / "log.jsonl").write_bytes(b'{"event": "start", "step": 0}\n' + tail)
    assert read_log(tmp_path) == [{"event": "start", "step": 0}]


# ---------------------------------------------------------------------- what the labels say


def test_mixup_of_rated_segments_keeps_the_loss_of_each(tiny):
    from tagreel.train import training_loss

    torch.manual_seed(0)
    model = build(Recipe(**{**vars(tiny), "classes": 3}))
    examples = []
    for index, rated in enumerate(([0], [1], [2], [0, 2])):
        frames = {"rgb": np.full((2, 12), index, np.float32), "audio": np.ones((2, 6), np.float32)}
        examples.append(replace(video(f"{index}", labels=rated[:1], **frames), rated=np.array(rated)))
    batch = collate(examples, features=model.features)
    labels, rated = batch.labels(3), batch.rated(3)
    torch.manual_seed(5)
    loss, logits, _ = training_loss(model, CrossEntropy(), batch, mixup=0.4)
    torch.manual_seed(5)
    share = torch.distributions.Beta(0.4, 0.4).sample((4, 1))
    other = torch.randperm(4)
    expected = 0.0
    for b in range(4):
        for c in range(3):
            p = torch.sigmoid(logits[b, c])
            for part, y, w in (
                (share[b, 0], labels[b, c], rated[b, c]),
                (1 - share[b, 0], labels[other[b], c], rated[other[b], c]),
            ):
                expected -= part * w * (y * p.log() + (1 - y) * (1 - p).log()) / 4
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-6)


def test_data_without_labels_ends_with_an_error(tiny, training_data, tmp_path):
    unlabelled = InMemory(
        [video(f"{i}", labels=(), rgb=np.ones((2, 12)), audio=np.ones((2, 6))) for i in range(20)]
    )
    with pytest.raises(DataError, match="none of the first 40 videos has a label"):
        short(with_training(tiny, epochs=2), unlabelled, tmp_path / "a", save_minutes=60)
    with pytest.raises(DataError, match="none of the 20 videos has a label, so there is nothing to score"):
        short(tiny, training_data, tmp_path / "b", validation=unlabelled)


def test_a_resumed_run_keeps_names_validation_and_damage(tiny, shards, training_data, test_data, tmp_path):
    names = [f"tag {c}" for c in range(120)]
    out = tmp_path / "run"
    options = {"out": out, "device": "cpu", "save_minutes": 0}
    with payload_damaged(shards / "train0.tfrecord", 3):
        data = Source(f"{shards}/train*.tfrecord")
        long = with_training(tiny, epochs=2)
        train(
            with_training(tiny, epochs=1),
            data=data,
            validation=test_data,
            label_names=names,
            skip_damaged=1,
            **options,
        )
        with pytest.raises(RecipeError, match="was started with other label names"):
            train(
                long,
                data=data,
                validation=test_data,
                label_names=names[::-1],
                resume=True,
                skip_damaged=1,
                **options,
            )
        with pytest.raises(DataError, match="was validated on other files"):
            train(long, data=data, validation=training_data, resume=True, skip_damaged=1, **options)
        position = json.loads((checkpoint.checkpoints(out)[-1] / "training.json").read_text())
        assert [damaged[:2] for damaged in position["damaged"]] == [[0, 3]]
        with pytest.raises(DataError):
            train(long, data=data, validation=test_data, resume=True, skip_damaged=0, **options)
        outcome = train(long, data=data, validation=test_data, resume=True, skip_damaged=1, **options)
    assert len(outcome.damaged) == 1
    assert checkpoint.label_names(out) == names
    assert json.loads((out / "recipe.json").read_text())["training"]["epochs"] == 2


def test_a_damaged_validation_set_costs_no_training(tiny, shards, training_data, tmp_path):
    out = tmp_path / "run"
    options = {"out": out, "device": "cpu", "save_minutes": 60}
    with payload_damaged(shards / "test0.tfrecord", 5):
        held_out = Source(f"{shards}/test*.tfrecord")
        with pytest.raises(DataError, match=r"test0\.tfrecord, record 5"):
            train(tiny, data=training_data, validation=held_out, **options)
        steps = len(rows(out))
        assert checkpoint.checkpoints(out)[-1].name == f"step-{steps:08d}"
        outcome = train(tiny, data=training_data, validation=held_out, resume=True, skip_damaged=1, **options)
    assert outcome.step == 2 * steps
    train(tiny, data=training_data, out=tmp_path / "plain", device="cpu")
    kept = [files(run)["model.safetensors"] for run in (out, tmp_path / "plain")]
    assert kept[0] == kept[1]


# ---------------------------------------------------------------------- a teacher


def answers(path: Path, data: Source | InMemory, probabilities) -> Path:
    """A file of predictions on the data, `probabilities` (N, C) in the order of the videos."""
    ids = [data.open(s)[i].id for s, count in enumerate(data.counts) for i in range(count)]
    best = [sorted(range(len(row)), key=lambda c: -row[c]) for row in probabilities]
    table = {
        "id": pa.array(ids),
        "labels": pa.array(best, pa.list_(pa.int32())),
        "probabilities": pa.array(
            [[row[c] for c in order] for row, order in zip(probabilities, best, strict=True)],
            pa.list_(pa.float32()),
        ),
    }
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture(scope="session")
def two_pictures() -> InMemory:
    """Sixty videos of two kinds, whose one label, of three classes, has nothing to do with the kind."""
    rng = np.random.default_rng(0)
    videos = []
    for i in range(60):
        frames = {
            "rgb": rng.normal(i % 2, 0.1, (2, 12)).astype(np.float32),
            "audio": np.ones((2, 6), np.float32),
        }
        videos.append(video(f"v{i}", labels=[i % 3], **frames))
    return InMemory(videos)


@pytest.fixture
def pupil(tiny) -> Recipe:
    return with_training(replace(tiny, classes=3), batch_size=8)


def test_a_student_learns_what_its_teacher_says(pupil, two_pictures, tmp_path):
    """A teacher that is sure of other labels, alone heard, makes the student of those labels, bit for bit."""
    other = InMemory([replace(v, labels=np.array([i % 2])) for i, v in enumerate(two_pictures.shards[0])])
    path = answers(tmp_path / "t.parquet", two_pictures, np.eye(3)[[i % 2 for i in range(60)]])
    short(with_training(pupil, distill=1.0), two_pictures, tmp_path / "taught", teacher=path)
    short(pupil, other, tmp_path / "labelled")
    short(pupil, two_pictures, tmp_path / "untaught")
    weights = {
        name: files(tmp_path / name)["model.safetensors"] for name in ("taught", "labelled", "untaught")
    }
    assert weights["taught"] == weights["labelled"] != weights["untaught"]
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("taught", "labelled")]
    assert losses[0] == losses[1]
    # How often each class was seen, and the running GAP, are of the true labels.
    counts = checkpoint.facts(checkpoint.find(tmp_path / "taught"))["train_counts"]
    assert counts == [20, 20, 20] != checkpoint.facts(checkpoint.find(tmp_path / "labelled"))["train_counts"]
    gaps = [[row["gap@20"] for row in rows(tmp_path / name)] for name in ("taught", "labelled")]
    assert gaps[0] != gaps[1]
    [said] = rows(tmp_path / "taught", "teacher")
    assert (said["distill"], said["forgiven"]) == (1.0, 0)


@pytest.mark.parametrize("forgive", [0.0, 0.3])
def test_mixup_mixes_what_is_taught(forgive, pupil, two_pictures, tmp_path):
    from tagreel.teacher import Teacher
    from tagreel.train import training_loss

    torch.manual_seed(0)
    model = build(pupil)
    path = answers(tmp_path / "t.parquet", two_pictures, np.random.default_rng(1).random((60, 3)))
    teacher = Teacher(path, classes=3, distill=0.25, forgive=forgive)
    batch = collate([two_pictures.open(0)[i] for i in range(60)], features=model.features)
    teacher.compare([batch] if forgive else [])
    labels, taught, forgiven = batch.labels(3), teacher.probabilities(batch), teacher.forgiven(batch)
    assert bool(forgiven.any()) == bool(forgive)
    torch.manual_seed(5)
    loss, logits, shown = training_loss(model, CrossEntropy(), batch, mixup=0.4, teacher=teacher)
    torch.manual_seed(5)
    share = torch.distributions.Beta(0.4, 0.4).sample((60, 1))
    other = torch.randperm(60)
    p = torch.sigmoid(logits)
    expected = torch.zeros(())
    for part, i in ((share, torch.arange(60)), (1 - share, other)):
        for weight, y in ((0.75 * ~forgiven[i], labels[i]), (0.25, taught[i])):
            expected = expected - (part * weight * (y * p.log() + (1 - y) * (1 - p).log())).sum() / 60
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shown, share * labels + (1 - share) * labels[other])


def test_a_model_teaches_like_the_file_of_its_predictions(run, tiny, training_data, tmp_path):
    from tagreel.evaluate import scoring_loader
    from tagreel.predict import predict

    model = checkpoint.load(run)
    path = tmp_path / "by_hand.parquet"
    predict(model, scoring_loader(model, training_data), path, device=torch.device("cpu"), top_k=100)
    recipe, told = with_training(tiny, distill=0.5, forgive=0.05), []
    short(recipe, training_data, tmp_path / "file", teacher=path)
    short(recipe, training_data, tmp_path / "model", teacher=run, on_asked=told.append)
    assert told[-1] == 100
    found = [files(tmp_path / name)["model.safetensors"] for name in ("file", "model")]
    assert found[0] == found[1]
    assert pq.read_table(tmp_path / "model" / "teacher.parquet").equals(pq.read_table(path))
    [said] = rows(tmp_path / "model", "teacher")
    assert said["distill"] == 0.5
    assert said["forgiven"] > 0


def test_an_ensemble_teaches_by_the_mean_of_its_members(run, tiny, training_data, tmp_path):
    torch.manual_seed(3)
    model = build(tiny, label_names=checkpoint.load(run).label_names)
    checkpoint.save(tmp_path / "other", 1, model, model.state_dict(), facts={})
    sources = {"a": checkpoint.find(run), "b": checkpoint.find(tmp_path / "other")}
    members = {name: checkpoint.load(folder) for name, folder in sources.items()}
    checkpoint.save_ensemble(tmp_path / "both", EnsembleTagger(members, [3, 1]), sources, facts={})
    short(with_training(tiny, distill=0.5), training_data, tmp_path / "out", teacher=tmp_path / "both")
    first = pq.read_table(tmp_path / "out" / "teacher.parquet").to_pylist()[0]
    batch = collate([training_data.open(0)[0]], features=model.features)
    with torch.inference_mode():
        p, q = (torch.sigmoid(member.logits(batch))[0] for member in members.values())
    expected = 0.75 * p + 0.25 * q
    found = dict(zip(first["labels"], first["probabilities"], strict=True))
    assert len(found) == 100
    for label, probability in found.items():
        assert probability == pytest.approx(expected[label].item(), rel=1e-5)


def test_a_taught_run_goes_on_with_the_same_teacher_alone(run, tiny, training_data, tmp_path, monkeypatch):
    recipe = with_training(tiny, distill=0.5, mixup=0.3)
    torch.manual_seed(3)
    other = build(tiny)
    checkpoint.save(tmp_path / "other", 1, other, other.state_dict(), facts={})
    short(recipe, training_data, tmp_path / "whole", teacher=run)
    with pytest.raises(StopError):
        short(recipe, training_data, tmp_path / "cut", teacher=run, on_event=stopping("checkpoint", 5))
    kept = (tmp_path / "cut" / "teacher.parquet").read_bytes()
    for wrong in (tmp_path / "other", answers(tmp_path / "t.parquet", training_data, np.zeros((100, 120)))):
        with pytest.raises(DataError, match="was taught by other files"):
            short(recipe, training_data, tmp_path / "cut", teacher=wrong, resume=True)
    assert (tmp_path / "cut" / "teacher.parquet").read_bytes() == kept
    with pytest.raises(RecipeError, match=r"training\.distill = 0\.5, now it is 0\.2"):
        short(with_training(recipe, distill=0.2), training_data, tmp_path / "cut", teacher=run, resume=True)
    monkeypatch.setattr("tagreel.teacher.predict", None)  # it is not asked again
    short(recipe, training_data, tmp_path / "cut", teacher=run, resume=True)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_teacher_and_what_is_learnt_from_it_belong_together(run, tiny, training_data, tmp_path):
    for recipe, teacher in (
        (tiny, run),
        (with_training(tiny, distill=0.5), None),
        (with_training(tiny, forgive=0.1), None),
    ):
        with pytest.raises(RecipeError, match="give both or neither"):
            short(recipe, training_data, tmp_path / "out", teacher=teacher)
    for share in (-0.1, 1.1):
        with pytest.raises(RecipeError, match=r"training\.distill is .*; expected 0 \(none\) to 1"):
            with_training(tiny, distill=share)
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_did_not_see_all_is_refused(pupil, two_pictures, tmp_path):
    recipe = with_training(pupil, distill=0.5)
    some = InMemory(list(two_pictures.shards[0].examples[:50]))
    path = answers(tmp_path / "t.parquet", some, np.zeros((50, 3)))
    with pytest.raises(DataError, match=r"t\.parquet: scores 50 videos, and there are 60 to train on"):
        short(recipe, two_pictures, tmp_path / "out", teacher=path)
    nowhere = tmp_path / "nowhere"
    with pytest.raises(DataError, match="nowhere: cannot be read: "):
        short(recipe, two_pictures, tmp_path / "out", teacher=nowhere)
    nowhere.mkdir()
    with pytest.raises(DataError, match="nowhere: holds no checkpoint"):
        short(recipe, two_pictures, tmp_path / "out", teacher=nowhere)
    assert not (tmp_path / "out").exists()


def test_every_branch_of_a_mixture_is_taught(pupil, two_pictures, tmp_path):
    recipe = replace(with_training(pupil, distill=1.0), mixture=partial(Mixture, branches=2))
    path = answers(tmp_path / "t.parquet", two_pictures, np.eye(3)[[i % 2 for i in range(60)]])
    short(with_training(recipe, epochs=40), two_pictures, tmp_path / "out", teacher=path, log_every=100)
    model = checkpoint.load(tmp_path / "out")
    batch = collate([two_pictures.open(0)[i] for i in range(60)], features=model.features)
    frames, masks = model.frames(batch.streams, batch.masks()), batch.masks()
    for network in model.networks:
        scores = torch.sigmoid(network.classify(network.pool(frames, masks)))
        assert (scores.argmax(1) == torch.arange(60) % 2).float().mean() > 0.95
        assert scores[:, 2].max() < 0.2


def test_train_asks_a_teacher(run, shards, recipes_file, tmp_path, cli):
    arguments = command(
        f"{recipes_file}:stairs", shards, tmp_path / "out", "--teacher", str(run), "--steps", "6"
    )
    code, _, err = cli(*arguments, "--set", "training.distill=0.3", "--json")
    assert code == 0, err
    assert len(pq.read_table(tmp_path / "out" / "teacher.parquet")) == 100
    code, _, err = cli(*arguments, "--resume")
    assert code == 2
    assert err.count("\n") == 1
    assert "give both or neither" in err
