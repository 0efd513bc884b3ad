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

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tagreel import checkpoint
from tagreel.batch import frame_mask
from tagreel.errors import DataError, RecipeError
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.mixture import Mixture
from tagreel.loader import Loader, collate
from tagreel.log import read_log
from tagreel.pools.batch_norm_lstm import BatchNormLSTM
from tagreel.pools.gru import GRU
from tagreel.pools.layer_norm_lstm import LayerNormLSTM
from tagreel.pools.lstm import LSTM
from tagreel.pools.mean import Mean
from tagreel.pools.netvlad import NetVLAD
from tagreel.pools.zoneout_lstm import ZoneoutLSTM
from tagreel.pretrain import FramePredictor, pretrain, validate
from tagreel.recipe import Stream, to_json
from tagreel.sampling import Crop
from tagreel.schedule import Staircase
from tagreel.source import Source
from tagreel.tagger import build
from tagreel.train import train
from tests.conftest import REPOSITORY, InMemory, payload_damaged, video, with_training

BOTH = ("rgb", "audio")


@pytest.fixture
def seeing(tiny):
    """A recipe whose one stream looks at the picture alone."""
    pool = partial(LSTM, units=(10,), bidirectional=True)
    return replace(tiny, streams={"rgb": Stream(pool=pool)}, joint_l2_norm=True)


@pytest.fixture
def busy(seeing):
    """A recipe with everything that a step may draw or keep besides weights."""
    streams = {
        "frames": Stream(inputs=BOTH, pool=partial(LSTM, units=(6, 5), readout="attention")),
        "rgb": Stream(
            transforms=(partial(MaskedBatchNorm),), pool=partial(GRU, units=(4,), readout="states")
        ),
    }
    recipe = replace(seeing, streams=streams, sampling=partial(Crop, starts=4, stride=2, frames=9))
    options = {"optimizer": partial(torch.optim.AdamW, lr=1e-2), "ema": 0.8, "mixup": 0.5, "head_l2": 1e-3}
    return with_training(recipe, batch_size=9, accumulate=2, steps=9, **options)


def short(recipe, data, out, **options):
    chosen = {"target": BOTH, "device": "cpu", "log_every": 1, "save_minutes": 0} | options
    return pretrain(recipe, data=data, out=out, **chosen)


def files(run):
    """All files of the last checkpoint."""
    return {path.name: path.read_bytes() for path in sorted(checkpoint.checkpoints(run)[-1].iterdir())}


def rows(run, event="train"):
    return [row for row in read_log(run) if row["event"] == event]


def ragged(count=5, *, longest=7, **missing):
    """Videos of 1 to `longest` frames of bytes."""
    rng = np.random.default_rng(0)
    widths = {"rgb": 12, "audio": 6}
    examples = []
    for index in range(count):
        frames = 1 + index * (longest - 1) // max(count - 1, 1)
        streams = {name: rng.integers(0, 256, (frames, width), np.uint8) for name, width in widths.items()}
        examples.append(video(f"{index}", **streams))
    return examples


def batch_of(model, examples):
    return collate(examples, features=model.features)


def naive_error(model, examples):
    """Σ over videos, frames and numbers of (prediction - target)², and how many numbers there are."""
    total, numbers = 0.0, 0
    for example in examples:
        floats = {name: frames * (4 / 255) + (4 / 512 - 2) for name, frames in example.streams.items()}
        for t in range(len(floats["rgb"])):
            length = math.sqrt(sum(float((floats[name][t] ** 2).sum()) for name in floats))
            for name in floats:
                floats[name][t] /= length
        (branch,) = model.streams.values()
        frames = torch.tensor(floats["rgb"], dtype=torch.float32)[None]
        outputs = branch.pool.outputs(frames)[0]
        for t, output in enumerate(outputs):
            target = np.concatenate([floats[name][t] for name in model.target])
            for d, number in enumerate(target):
                weight, bias = model.prediction.weight[d], model.prediction.bias[d]
                total = total + ((weight * output).sum() + bias - float(number)) ** 2
                numbers += 1
    return total, numbers


# ---------------------------------------------------------------------- what is learnt


@pytest.mark.parametrize("target", [("audio",), BOTH, ("audio", "rgb")])
def test_the_error_is_that_of_a_loop_over_videos_frames_and_numbers(target, seeing):
    torch.manual_seed(0)
    model, examples = FramePredictor(seeing, target=target), ragged()
    expected, numbers = naive_error(model, examples)
    batch = batch_of(model, examples)
    errors, targets = model.compare(batch)
    assert errors.shape == targets.shape == (5, 7, sum(model.features[name] for name in target))
    assert int(model.counts(batch).sum()) == numbers
    squares = errors.square().sum()
    torch.testing.assert_close(squares, expected, rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(squares, list(model.parameters()))
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_loss_of_a_step_is_the_mean_over_its_real_frames(seeing, tmp_path):
    examples = ragged(10)
    recipe = with_training(
        seeing, optimizer=partial(torch.optim.SGD, lr=0.0), steps=1, batch_size=4, accumulate=3
    )
    short(recipe, InMemory(examples), tmp_path / "run", target=["audio"])
    torch.manual_seed(1)  # the weights come from the run
    model = FramePredictor(recipe, target=["audio"])
    model.load_state_dict(load_file(checkpoint.find(tmp_path / "run") / "model.safetensors"))
    total, numbers = naive_error(model, examples)
    assert rows(tmp_path / "run")[0]["loss"] == pytest.approx(total.item() / numbers, rel=1e-5)


@pytest.mark.parametrize("pool", [LSTM, GRU, LayerNormLSTM, ZoneoutLSTM, BatchNormLSTM])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_outputs_of_a_pool_end_in_what_it_gives_for_the_video(pool, bidirectional):
    torch.manual_seed(0)
    module = pool(4, units=(3, 5), bidirectional=bidirectional).eval()
    frames, lengths = torch.randn(3, 6, 4), torch.tensor([6, 1, 4])
    mask = frame_mask(lengths, 6)
    outputs, last = module.outputs(frames, mask), module(frames, mask)
    assert outputs.shape == (3, 6, last.shape[1])
    assert not outputs[~mask].any()
    torch.testing.assert_close(outputs[torch.arange(3), lengths - 1, :5], last[:, :5])
    torch.testing.assert_close(outputs[:, 0, 5:], last[:, 5:])  # backwards it ends at the beginning
    alone = torch.cat([module.outputs(frames[i : i + 1, :n])[0] for i, n in enumerate(lengths)])
    torch.testing.assert_close(outputs[mask], alone)


@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(training, busy):
    torch.manual_seed(0)
    model = FramePredictor(busy, target=BOTH).train(training)
    examples = ragged()
    batch = batch_of(model, examples)
    longer = batch_of(model, examples)
    for name, frames in batch.streams.items():
        noise = torch.randint(0, 256, (5, 4, frames.shape[2]), dtype=torch.uint8)
        padded = torch.cat([frames, noise], dim=1)
        for row, count in zip(padded, batch.num_frames[name], strict=True):
            row[count:] = 255
        longer.streams[name] = padded
    results = []
    for given in (batch, longer):
        model.zero_grad()
        errors, _ = model.compare(given)
        errors.square().sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((errors[:, :7], gradients))
        assert not errors[:, 7:].any()
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
    # Nor do neighbours, where nothing is normalised over the batch.
    if not training:
        alone = [model.compare(batch_of(model, [example]))[0][0] for example in examples]
        for video_errors, expected in zip(results[0][0], alone, strict=True):
            torch.testing.assert_close(video_errors[: len(expected)], expected, rtol=1e-5, atol=1e-6)


def test_a_feature_that_a_video_lacks_counts_nothing(seeing):
    model = FramePredictor(replace(seeing, optional=("audio",)), target=["audio"])
    examples = ragged(3)
    batch = batch_of(model, [replace(examples[0], streams={"rgb": examples[0].streams["rgb"]}), examples[2]])
    errors, targets = model.compare(batch)
    assert not errors[0].any()
    assert not targets[0].any()
    assert int(model.counts(batch).sum()) == 7 * 6


def test_two_half_batches_are_one_step_of_a_whole_one(seeing, training_data, tmp_path):
    for name, batch_size, accumulate in (("whole", 28, 1), ("halves", 14, 2)):
        options = {"optimizer": partial(torch.optim.SGD, lr=1.0), "clip": "none", "steps": 4}
        recipe = with_training(seeing, batch_size=batch_size, accumulate=accumulate, **options)
        short(recipe, training_data, tmp_path / name)
    whole, halves = ([row["loss"] for row in rows(tmp_path / name)] for name in ("whole", "halves"))
    assert halves == pytest.approx(whole, rel=1e-6)
    weights = [load_file(checkpoint.find(tmp_path / n) / "model.safetensors") for n in ("whole", "halves")]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)


def test_it_learns_to_do_better_than_the_mean_frame(seeing, training_data, test_data, tmp_path):
    recipe = with_training(seeing, schedule=partial(Staircase), steps=150)
    outcome = short(recipe, training_data, tmp_path / "run", validation=test_data, save_minutes=60)
    model = FramePredictor(recipe, target=BOTH)
    loader = Loader(test_data, features=model.features, classes=120, batch_size=50)
    (_, batch), *_ = loader.epoch()
    frames = torch.cat([model.compare(batch)[1][i, :n] for i, n in enumerate(batch.num_frames["rgb"])])
    of_mean = (frames - frames.mean(0)).square().mean().item()
    first = validate(model, loader, device=torch.device("cpu"))
    assert outcome.best["error"] < 0.5 * of_mean < of_mean < first["error"]
    assert outcome.best["explained"] == pytest.approx(1 - outcome.best["error"] / of_mean, abs=1e-5)
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    assert losses[-1] < 0.5 * of_mean


def test_a_validation_looks_at_every_frame_once(busy, training_data):
    torch.manual_seed(0)
    model = FramePredictor(busy, target=BOTH).train()
    results = []
    for batch_size in (7, 100):
        loader = Loader(training_data, features=model.features, classes=120, batch_size=batch_size)
        results.append(validate(model, loader, device=torch.device("cpu")))
        assert model.training
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_what_never_changes_is_not_explained(seeing):
    model = FramePredictor(replace(seeing, joint_l2_norm=False), target=["audio"])
    still = [
        video(f"{i}", rgb=np.ones((3, 12), np.float32), audio=np.ones((3, 6), np.float32)) for i in range(4)
    ]
    loader = Loader(InMemory(still), features=model.features, classes=1, batch_size=4)
    assert validate(model, loader, device=torch.device("cpu"))["explained"] == 0.0


def test_labels_are_not_looked_at(seeing, tmp_path):
    recipe = with_training(replace(seeing, classes=None), batch_size=4, epochs=1)
    examples = ragged(8)
    for name, labels in (("none", []), ("some", [3, 1_000_000])):
        shard = [replace(example, labels=np.array(labels, np.int64)) for example in examples]
        short(recipe, InMemory(shard), tmp_path / name, validation=InMemory(shard))
    assert files(tmp_path / "none") == files(tmp_path / "some")


# ---------------------------------------------------------------------- a tagger that starts from it


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_tagger_starts_with_those_very_weights(ema, busy, training_data, test_data, tmp_path):
    recipe = with_training(busy, ema=ema)
    short(recipe, training_data, tmp_path / "pretrained", validation=test_data, seed=3)
    events = []
    still = with_training(recipe, optimizer=partial(torch.optim.SGD, lr=0.0), steps=1, ema=0.0)
    options = {"start_from": tmp_path / "pretrained", "device": "cpu", "on_event": events.append}
    train(still, data=training_data, out=tmp_path / "tagger", **options)
    before = load_file(checkpoint.find(tmp_path / "pretrained") / "model.safetensors")
    after = checkpoint.load(tmp_path / "tagger").state_dict()
    shared = [name for name in before if name.startswith("streams.") and "running" not in name]
    shared = [name for name in shared if not name.endswith(".batches")]  # a step moves statistics
    assert set(after) >= set(shared)
    assert len(shared) >= 8
    assert all(torch.equal(after[name], before[name]) for name in shared)
    assert set(before) - set(after) == {"prediction.weight", "prediction.bias"}
    assert events[0]["taken"] == len([name for name in before if name.startswith("streams.")])
    torch.manual_seed(3)
    assert not any(
        torch.equal(build(recipe).state_dict()[name], before[name]) for name in shared if "kernel" in name
    )


def test_the_run_of_a_pretraining_is_no_tagger(seeing, training_data, tmp_path):
    short(with_training(seeing, steps=1), training_data, tmp_path / "run")
    with pytest.raises(DataError, match="the file belongs to another model") as caught:
        checkpoint.load(tmp_path / "run")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- stop, resume


class StopError(Exception):
    """Ends a training as a kill would, at an event."""


def stopping(event, step):
    def on_event(row):
        if row["event"] == event and row["step"] == step:
            raise StopError

    return on_event


@pytest.mark.parametrize("changes", [{}, {"ema": 0.0, "accumulate": 1}, {"precision": "bfloat16"}], ids=str)
@pytest.mark.parametrize(
    ("event", "step", "from_step"),
    [("train", 1, 0), ("train", 4, 3), ("validate", 6, 5), ("checkpoint", 7, 7)],
)
def test_a_stopped_and_resumed_run_ends_in_the_same_bits(
    changes, event, step, from_step, busy, training_data, test_data, tmp_path
):
    recipe = with_training(busy, **changes)
    options = {"validation": test_data, "validate_every": 3}
    short(recipe, training_data, tmp_path / "whole", **options)
    out = tmp_path / "stopped"
    with pytest.raises(StopError):
        short(recipe, training_data, out, on_event=stopping(event, step), **options)
    assert [int(found.name[5:]) for found in checkpoint.checkpoints(out)][-1:] == [from_step][:from_step]
    outcome = short(recipe, training_data, out, resume=True, threads=2, **options)
    assert (outcome.step, outcome.interrupted) == (9, False)
    assert files(out) == files(tmp_path / "whole")
    assert (out / "best.json").read_bytes() == (tmp_path / "whole" / "best.json").read_bytes()
    assert [row["step"] for row in rows(out)] == list(range(1, 10))
    assert [row["step"] for row in rows(out, "validate")] == [3, 6, 9]
    assert [row["loss"] for row in rows(out)] == [row["loss"] for row in rows(tmp_path / "whole")]


SCRIPT = """
import sys
from pathlib import Path
from tagreel.pretrain import pretrain
from tagreel.recipe import load
from tagreel.source import Source

recipe, data, out = sys.argv[1:]
options = {"target": ["rgb", "audio"], "device": "cpu", "save_minutes": 0, "resume": True, "log_every": 1}
pretrain(load(Path(recipe)), data=Source(data), out=Path(out), **options)
"""


def test_a_killed_and_resumed_run_ends_in_the_same_bits(busy, shards, training_data, tmp_path):
    recipe, killed = with_training(busy, steps=12), tmp_path / "killed"
    (tmp_path / "busy.json").write_text(json.dumps(to_json(recipe)))
    arguments = [tmp_path / "busy.json", f"{shards}/train*.tfrecord", killed]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, arguments)], env=environment)
    deadline = time.monotonic() + 120

    def being_written() -> list[int]:
        found = (killed / "checkpoints").glob("step-*.partial/model.safetensors")
        return [int(path.parent.name[5:13]) for path in found]

    while max(being_written(), default=0) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = int(checkpoint.checkpoints(killed)[-1].name[5:])
    assert 4 <= before < 12
    short(recipe, training_data, killed, resume=True)
    assert rows(killed, "start")[-1]["step"] == before
    short(recipe, training_data, tmp_path / "whole")
    assert files(killed) == files(tmp_path / "whole")
    assert not list((killed / "checkpoints").glob("*.partial*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_returns(number, busy, training_data, tmp_path):
    def interrupt(row):
        if row["event"] == "train" and row["step"] == 3:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    outcome = short(busy, training_data, tmp_path / "run", save_minutes=60, on_event=interrupt)
    assert (outcome.step, outcome.interrupted) == (3, True)
    assert [found.name for found in checkpoint.checkpoints(tmp_path / "run")] == ["step-00000003"]
    assert signal.getsignal(number) is before
    assert not short(busy, training_data, tmp_path / "run", resume=True).interrupted
    short(busy, training_data, tmp_path / "whole")
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_the_best_on_validation_is_the_one_with_the_lowest_error(seeing, training_data, test_data, tmp_path):
    # It runs away after a good beginning.
    staircase = partial(Staircase, factor=30.0, every=300)
    recipe = with_training(seeing, optimizer=partial(torch.optim.SGD, lr=3.0), schedule=staircase, epochs=6)
    outcome = short(recipe, training_data, tmp_path / "run", validation=test_data)
    found = {row["step"]: row["error"] for row in rows(tmp_path / "run", "validate")}
    best = min(found, key=found.__getitem__)
    assert best not in (min(found), max(found))
    assert (outcome.best["step"], outcome.best["error"]) == (best, found[best])
    assert checkpoint.find(tmp_path / "run").name == f"step-{best:08d}"


def test_a_log_line_holds_what_the_terminal_shows(busy, training_data, tmp_path):
    seen = []
    short(busy, training_data, tmp_path / "run", on_event=seen.append)
    assert seen == read_log(tmp_path / "run")
    for row in rows(tmp_path / "run"):
        assert 0 < row["loss"] < 10
        assert 0 <= row["waiting"] <= 1
        assert row["videos_per_second"] > 0
    assert rows(tmp_path / "run")[-1]["eta_seconds"] == 0
    facts = json.loads(files(tmp_path / "run")["model.json"])["facts"]
    assert (facts["step"], facts["target"]) == (9, ["rgb", "audio"])


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "target", "message"),
    [
        ({}, ["sound"], r"target: expected features of the recipe \(rgb, audio\), found 'sound'"),
        ({}, ["audio", "sound"], "found 'sound'"),
        ({}, [], "found none"),
        (
            {"streams": {"a": Stream(inputs=BOTH, pool=partial(NetVLAD))}},
            ["rgb"],
            r"streams\.a\.pool: NetVLAD has no output for each frame",
        ),
        ({"mixture": partial(Mixture)}, ["rgb"], "mixture: pretraining is for recipes of one network"),
    ],
    ids=str,
)
def test_what_cannot_be_learnt_is_one_line_and_touches_nothing(
    change, target, message, seeing, training_data, tmp_path
):
    with pytest.raises(RecipeError, match=message) as caught:
        short(replace(seeing, **change), training_data, tmp_path / "run", target=target)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_data_without_the_target_are_one_line(seeing, tmp_path):
    silent = InMemory([video(f"{i}", rgb=np.ones((2, 12), np.float32)) for i in range(20)])
    with pytest.raises(DataError, match=r"shard0, record \d+: no 'audio' \(it has: rgb\)") as caught:
        short(seeing, silent, tmp_path / "run", target=["audio"])
    assert "\n" not in str(caught.value)


def test_resuming_with_other_settings_is_refused(seeing, training_data, test_data, tmp_path):
    out = tmp_path / "run"
    recipe = with_training(seeing, steps=2)
    short(recipe, training_data, out)
    before = files(out)
    with pytest.raises(RecipeError, match="already holds a run; go on with it by --resume"):
        short(recipe, training_data, out)
    for change, reason in [
        ({"target": ["audio"]}, "was started with --target rgb, audio, now it is audio"),
        ({"recipe": with_training(recipe, batch_size=4)}, "training.batch_size = 16, now it is 4"),
        ({"seed": 3}, "was started with --seed 0, now it is 3"),
        ({"data": test_data}, "was trained on other files"),
        ({"validation": test_data}, "was validated on other files"),
    ]:
        options = {"recipe": recipe, "data": training_data, "out": out} | change
        with pytest.raises((RecipeError, DataError), match=reason) as caught:
            short(**options, resume=True)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="not the position of a training"):
        train(recipe, data=training_data, out=out, resume=True, device="cpu")
    assert files(out) == before


def test_a_loss_that_is_not_finite_is_one_line_and_not_saved(seeing, training_data, tmp_path):
    recipe = with_training(seeing, optimizer=partial(torch.optim.SGD, lr=1e30), clip="none", epochs=10)
    with pytest.raises(RecipeError, match=r"the loss is (nan|inf) at step \d+; a lower learning rate"):
        short(recipe, training_data, tmp_path / "run")
    for folder in checkpoint.checkpoints(tmp_path / "run"):
        assert all(tensor.isfinite().all() for tensor in load_file(folder / "model.safetensors").values())


def test_damaged_records_are_listed_and_the_rest_is_used(seeing, shards, tmp_path):
    with payload_damaged(shards / "train1.tfrecord", 4), payload_damaged(shards / "test0.tfrecord", 9):
        sources = [Source(f"{shards}/{name}*.tfrecord") for name in ("train", "test")]
        outcome = short(seeing, sources[0], tmp_path / "run", validation=sources[1], skip_damaged=5)
        with pytest.raises(DataError, match=r"test0\.tfrecord, record 9"):
            short(seeing, training := Source(f"{shards}/train0*"), tmp_path / "b", validation=sources[1])
    found = [(error.path.rpartition("/")[2], error.record) for error in outcome.damaged]
    assert found == [("train1.tfrecord", 4), ("test0.tfrecord", 9)]
    assert rows(tmp_path / "run")[-1]["examples"] == 2 * 99
    # What is wrong with the validation set cost no training.
    assert len(rows(tmp_path / "b")) == -(-len(training) // 16)
    assert checkpoint.checkpoints(tmp_path / "b")[-1].name == f"step-{len(rows(tmp_path / 'b')):08d}"


def test_a_data_set_with_everything_damaged_ends_with_an_error(seeing, training_data, tmp_path):
    bad = InMemory([DataError("the checksum is wrong", path="shard0", record=index) for index in range(30)])
    with pytest.raises(DataError, match="shard0: no record could be read"):
        short(seeing, bad, tmp_path / "a", skip_damaged=1000)
    with pytest.raises(DataError, match="shard0: no frame of what is to be predicted could be read"):
        short(seeing, training_data, tmp_path / "b", validation=bad, skip_damaged=1000)


def test_pools_that_read_no_order_are_refused_beside_one_that_does(seeing):
    streams = {**seeing.streams, "audio": Stream(pool=partial(Mean))}
    with pytest.raises(RecipeError, match=r"streams\.audio\.pool: Mean has no output for each frame"):
        FramePredictor(replace(seeing, streams=streams), target=["audio"])
