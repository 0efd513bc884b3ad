from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import tagreel
from tagreel import checkpoint
from tagreel.average import average, between
from tagreel.errors import DataError, RecipeError
from tagreel.evaluate import evaluate
from tagreel.heads.chained_experts import ChainedExperts
from tagreel.layers.dropout import Dropout
from tagreel.layers.latent_concepts import LatentConcepts
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.projection import Projection
from tagreel.layers.reverse_whitening import ReverseWhitening
from tagreel.loader import Loader
from tagreel.pools.batch_norm_lstm import BatchNormLSTM
from tagreel.pools.netvlad import NetVLAD
from tagreel.recipe import Recipe, Stream
from tagreel.sampling import RandomFrames
from tagreel.tagger import build
from tagreel.train import train
from tests.conftest import InMemory, payload_damaged, video, with_training

CPU = torch.device("cpu")


@pytest.fixture
def normed(tiny) -> Recipe:
    """The tiny recipe with batch norm over frames and over videos, dropout before both, and a fixed scale."""
    return replace(
        tiny,
        streams={
            "rgb": Stream(transforms=(partial(ReverseWhitening),), pool=partial(NetVLAD, clusters=2)),
            "audio": Stream(pool=partial(NetVLAD, clusters=2)),
        },
        body=(partial(Dropout, rate=0.5), partial(Projection, width=10), partial(MaskedBatchNorm)),
    )


def saved(recipe: Recipe, run: Path, steps, *, fired: bool = True) -> list[dict[str, torch.Tensor]]:
    """Checkpoints of random weights and statistics, one after the other."""
    weights = []
    for step in steps:
        torch.manual_seed(step)
        model = build(recipe)
        model.fire(fired)
        weights.append({name: _random(tensor, step) for name, tensor in model.state_dict().items()})
        checkpoint.save(run, step, model, weights[-1], facts={"step": step, "validation": {"gap@20": 1.0}})
    return weights


def _random(tensor: torch.Tensor, step: int) -> torch.Tensor:
    return torch.rand_like(tensor) if tensor.is_floating_point() else torch.full_like(tensor, step)


def by_hand(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The mean of each number, added up one by one."""
    columns = zip(*(tensor.flatten().tolist() for tensor in tensors), strict=True)
    return torch.tensor([math.fsum(column) / len(column) for column in columns]).view(tensors[0].shape)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [3, 5, 20, 100]),
        ({"from_step": 5}, [5, 20, 100]),
        ({"from_step": 4, "to_step": 99}, [5, 20]),
        ({"to_step": 20}, [3, 5, 20]),
    ],
)
def test_weights_are_the_mean_and_all_else_is_of_the_last(options, steps, normed, tmp_path):
    weights = dict(zip((3, 5, 20, 100), saved(normed, tmp_path / "run", (3, 5, 20, 100)), strict=True))
    folders = between(tmp_path / "run", **options)
    assert average(folders, tmp_path / "out", batch_norm="last", device="cpu").steps == steps
    model = checkpoint.load(tmp_path / "out")
    trained = dict(model.named_parameters())
    assert {"head.linear.weight", "body.2.weight"} <= set(trained)
    for name, tensor in model.state_dict().items():
        expected = by_hand([weights[step][name] for step in steps]) if name in trained else None
        if expected is None:
            assert torch.equal(tensor, weights[steps[-1]][name])
        else:
            torch.testing.assert_close(tensor, expected, rtol=1e-7, atol=0)
    noted = checkpoint.facts(tmp_path / "out")
    assert noted == {"step": steps[-1], "averaged": steps, "batch_norm": "last", "validation": None}


def test_the_mean_of_equal_weights_is_those_to_the_bit(normed, tmp_path):
    torch.manual_seed(0)
    model = build(normed)
    for step in range(1, 8):
        checkpoint.save(tmp_path / "run", step, model, model.state_dict(), facts={})
    average(between(tmp_path / "run"), tmp_path / "out", batch_norm="last", device="cpu")
    found = checkpoint.load(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


@torch.no_grad()
def statistics(recipe, weights, batches):
    """The mean over the batches of what each norm sees of real rows, its inputs normalised as in training."""
    model = build(recipe)
    model.load_state_dict(weights)
    layers = {name: norm for name, norm in model.named_modules() if isinstance(norm, MaskedBatchNorm)}
    found = {name: ([], []) for name in layers}

    def look(name, norm, x, mask=None):
        rows = (
            [row for row, real in zip(x.flatten(0, -2), mask.flatten(), strict=True) if real]
            if isinstance(mask, torch.Tensor)
            else list(x)
        )
        n = len(rows)
        mean = sum(rows) / n
        var = sum((row - mean) ** 2 for row in rows)
        found[name][0].append(mean)
        found[name][1].append(var / (n - 1))
        return (x - mean) / torch.sqrt(var / n + norm.eps) * norm.weight + norm.bias

    for name, norm in layers.items():
        norm.forward = partial(look, name, norm)
    model.eval()
    for batch in batches:
        model.logits(batch)
    return {name: tuple(sum(values) / len(values) for values in pair) for name, pair in found.items()}


@pytest.mark.parametrize("videos", [None, 30])
def test_statistics_are_those_of_a_plain_pass_over_ragged_videos(videos, normed, training_data, tmp_path):
    recipe = replace(normed, sampling=partial(RandomFrames, frames=5))
    assert len({len(training_data.open(0)[i].streams["rgb"]) for i in range(40)} - {5}) > 1
    saved(recipe, tmp_path / "run", (1, 2))
    told: list[int] = []
    result = average(
        between(tmp_path / "run"),
        tmp_path / "out",
        data=training_data,
        videos=videos,
        batch_size=16,
        device="cpu",
        on_batch=told.append,
    )
    seen = 100 if videos is None else 32
    assert (result.videos, told[-1]) == (seen, seen)
    model = checkpoint.load(tmp_path / "out")
    loader = Loader(
        training_data,
        features=model.features,
        classes=120,
        batch_size=16,
        sampling=recipe.sampling(),
        shuffle=True,
    )
    batches = [batch for _, batch in loader.epoch()][: -(-seen // 16)]
    expected = statistics(recipe, model.state_dict(), batches)
    assert len(expected) == 3
    for name, (mean, var) in expected.items():
        norm = model.get_submodule(name)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-4, atol=1e-5)
        assert norm.batches == len(batches)
    noted = checkpoint.facts(tmp_path / "out")["batch_norm"]
    assert noted == {"data": [str(path) for path in training_data.paths], "videos": seen}


def test_the_norms_between_the_steps_of_a_recurrence_are_taken_anew_as_well(tiny, training_data, tmp_path):
    """As by a model in training, of which nothing but its norms differs from one that scores."""
    recipe = replace(
        tiny, streams={"both": Stream(inputs=("rgb", "audio"), pool=partial(BatchNormLSTM, units=(6,)))}
    )
    saved(recipe, tmp_path / "run", (1, 2))
    average(between(tmp_path / "run"), tmp_path / "out", data=training_data, device="cpu")
    model = checkpoint.load(tmp_path / "out")
    taught = build(replace(recipe, batch_norm_momentum=1e-9))
    last = checkpoint.load(tmp_path / "run", checkpoint="last").state_dict()
    taught.load_state_dict(model.state_dict() | {n: t for n, t in last.items() if ".running_" in n})
    for norm in taught.modules():
        if isinstance(norm, MaskedBatchNorm):
            norm.batches.zero_()
    loader = Loader(training_data, features=model.features, classes=120, batch_size=16, shuffle=True)
    for _, batch in loader.epoch():
        taught.logits(batch)
    statistics = [name for name in last if ".running_" in name]
    assert len(statistics) == 6
    for name in statistics:
        torch.testing.assert_close(model.state_dict()[name], taught.state_dict()[name])
        assert not torch.equal(model.state_dict()[name], last[name])


def test_every_batch_counts_alike_however_many_there_are(tiny, tmp_path):
    """In training the share of a new batch never falls below the momentum; over 130 that would show."""
    data = InMemory(
        [
            video(f"v{i}", rgb=np.full((1, 12), i, np.float32), audio=np.full((1, 6), i, np.float32))
            for i in range(260)
        ]
    )
    recipe = replace(tiny, body=(partial(MaskedBatchNorm),))
    saved(recipe, tmp_path / "run", (1, 2))
    average(between(tmp_path / "run"), tmp_path / "out", data=data, batch_size=2, device="cpu")
    norm = checkpoint.load(tmp_path / "out").body[0]
    torch.testing.assert_close(norm.running_mean, torch.full((18,), 129.5), rtol=1e-5, atol=0)
    assert norm.batches == 130


def test_a_finished_run_is_averaged_and_taken_like_a_run(
    finished, shards, training_data, test_data, tmp_path, cli
):
    run, out = finished, tmp_path / "models" / "out"
    code, said, err = cli(
        "average", run, "--out", out, "--data", f"{shards}/train*.tfrecord", "--videos", 64, "--from-step", 4
    )
    assert (code, err) == (0, "")
    assert "averaging 4 checkpoints: steps 4, 6, 8, 10" in said
    assert "batch norm's statistics over 64 videos" in said
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.safetensors"]
    model = tagreel.load(out)
    assert model.label_names == tagreel.load(run).label_names
    loader = Loader(test_data, features=model.features, classes=model.classes, batch_size=16)
    assert evaluate(model, loader, device=CPU).videos == 50
    assert checkpoint.facts(out)["train_counts"] == checkpoint.facts(checkpoint.find(run))["train_counts"]


@pytest.fixture
def finished(normed, tiny, training_data, planted, tmp_path) -> Path:
    """A finished run that kept a checkpoint every two of its ten steps."""
    recipe = with_training(replace(normed, streams=tiny.streams), steps=10)
    train(
        recipe,
        data=training_data,
        validation=training_data,
        label_names=planted.label_names,
        out=tmp_path / "run",
        validate_every=2,
        keep=100,
        save_minutes=1000,
        device="cpu",
    )
    return tmp_path / "run"


def test_dropout_and_further_losses_rest_while_statistics_are_taken(normed, training_data, tmp_path):
    """So that the same call gives the same bits, and no chain keeps what only a training asks for."""
    recipe = replace(normed, head=partial(ChainedExperts, links=1, width=4))
    saved(recipe, tmp_path / "run", (1, 2))
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        average(between(tmp_path / "run"), tmp_path / name, data=training_data, device="cpu")
    found = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert found[0] == found[1]


def test_checkpoints_from_before_and_after_late_parts_joined_do_not_mix(tiny, training_data, tmp_path):
    recipe = replace(tiny, late=(partial(LatentConcepts, concepts=4),))
    run = tmp_path / "run"
    before = saved(recipe, run, (1, 2), fired=False)
    saved(recipe, run, (3, 4))
    with pytest.raises(RecipeError, match=r"step-00000001: is from before .*, step-00000004 from after"):
        average(between(run), tmp_path / "out", batch_norm="last", device="cpu")
    assert not (tmp_path / "out").exists()
    average(between(run, 3), tmp_path / "late", data=training_data, device="cpu")
    average(between(run, 1, 2), tmp_path / "early", data=training_data, device="cpu")
    assert [checkpoint.load(tmp_path / name).fired for name in ("early", "late")] == [False, True]
    # Nothing passed there, and their statistics are what they were.
    norm = checkpoint.load(tmp_path / "early").late[0].mine_norm
    assert torch.equal(norm.running_mean, before[1]["late.0.mine_norm.running_mean"])


def test_damaged_records_are_left_out(normed, shards, training_data, tmp_path):
    saved(normed, tmp_path / "run", (1, 2))
    folders = between(tmp_path / "run")
    with payload_damaged(shards / "train1.tfrecord", 3):
        with pytest.raises(DataError, match=r"train1.tfrecord, record 3"):
            average(folders, tmp_path / "out", data=training_data, device="cpu")
        assert not (tmp_path / "out").exists()
        written = average(folders, tmp_path / "out", data=training_data, device="cpu", skip_damaged=1)
    assert written.videos == 99
    assert [(Path(error.path).name, error.record) for error in written.damaged] == [("train1.tfrecord", 3)]


def test_too_few_checkpoints_are_refused(normed, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(
        DataError, match="run: holds no checkpoints; expected the folder that `tagreel train`"
    ):
        between(run)
    saved(normed, run, (3, 5))
    with pytest.raises(
        DataError, match=r"has 1 checkpoints from step 4 to 5; .* step-00000003, step-00000005"
    ):
        between(run, 4)
    with pytest.raises(DataError, match="has 0 checkpoints from step 0 to 2"):
        between(run, None, 2)
    with pytest.raises(DataError, match="holds no checkpoints"):
        between(run / "checkpoints" / "step-00000003")


def test_what_is_to_become_of_batch_norm_must_be_said_once(normed, tiny, training_data, tmp_path):
    out = tmp_path / "out"
    saved(normed, tmp_path / "normed", (1, 2))
    saved(tiny, tmp_path / "plain", (1, 2))
    for run, options, message in (
        ("normed", {}, r"--data SRC, or take the last checkpoint's, --batch-norm last"),
        ("normed", {"data": training_data, "batch_norm": "last"}, "two ways to the same statistics"),
        ("normed", {"batch_norm": "first"}, "--batch-norm is 'first'; expected last"),
        ("plain", {"data": training_data}, "--data: there is no batch norm in this model"),
        ("plain", {"batch_norm": "last"}, "--batch-norm: there is no batch norm in this model"),
    ):
        with pytest.raises(RecipeError, match=message):
            average(between(tmp_path / run), out, device="cpu", **options)
    with pytest.raises(DataError, match="no record could be read"):
        average(between(tmp_path / "normed"), out, data=InMemory([]), device="cpu")
    assert not list(tmp_path.glob("out*"))
    average(between(tmp_path / "plain"), out, device="cpu")
    with pytest.raises(RecipeError, match=r"--out .*out: exists"):
        average(between(tmp_path / "plain"), out, device="cpu")


def test_a_damaged_checkpoint_is_named(normed, tmp_path):
    saved(normed, tmp_path / "run", (1, 2, 3))
    path = tmp_path / "run" / "checkpoints" / "step-00000002" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"step-00000002/model.safetensors: "):
        average(between(tmp_path / "run"), tmp_path / "out", batch_norm="last", device="cpu")


def test_what_a_killed_one_left_is_no_hindrance(tiny, tmp_path):
    left = tmp_path / "out.partial" / "checkpoints" / "step-00000009"
    left.mkdir(parents=True)
    (left / "model.json").write_text("{}")
    saved(tiny, tmp_path / "run", (1, 2))
    average(between(tmp_path / "run"), tmp_path / "out", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
