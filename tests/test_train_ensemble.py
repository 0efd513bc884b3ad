from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import tagreel
from tagreel import train_ensemble as stage
from tagreel.batch import Batch
from tagreel.errors import RecipeError, TagreelError
from tagreel.evaluate import scoring_loader
from tagreel.files import write_json
from tagreel.layers.neighbours import Neighbours
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.recipe import Ensemble, Stream, to_json
from tagreel.train import train
from tests.conftest import payload_damaged, with_training


@pytest.fixture
def system(tiny):
    return Ensemble(members={"a": tiny, "b": with_training(tiny, epochs=1.0)}, weights={"a": 3, "b": 1})


def _first(model, data) -> Batch:
    return scoring_loader(model, data, batch_size=8).batch(0, 0)


def test_the_ensemble_is_the_weighted_mean_of_models_trained_alone(system, training_data, tmp_path):
    trained = stage.train_ensemble(system, data=training_data, out=tmp_path / "all", seed=5, device="cpu")
    assert trained.members == ["a", "b"]
    assert not trained.interrupted
    expected = 0
    for number, (name, recipe) in enumerate(system.members.items()):
        train(recipe, data=training_data, out=tmp_path / name, seed=5 + number, device="cpu")
        alone = tagreel.load(tmp_path / name)
        expected = expected + system.shares[name] * alone.probabilities(_first(alone, training_data))
    model = tagreel.load(tmp_path / "all")
    torch.testing.assert_close(model.probabilities(_first(model, training_data)), expected)


def test_members_of_the_same_recipe_differ_by_their_seeds(tiny, training_data, tmp_path):
    system = Ensemble(members={"a": tiny, "b": tiny})
    stage.train_ensemble(system, data=training_data, out=tmp_path / "all", device="cpu")
    first, second = tagreel.load(tmp_path / "all").members
    assert not torch.equal(first.head.linear.weight, second.head.linear.weight)


def test_it_is_stored_as_the_ensemble_says_and_cuts_lists(system, training_data, tmp_path):
    system = replace(system, storage="float16", top_k=5)
    stage.train_ensemble(system, data=training_data, out=tmp_path / "all", device="cpu")
    stored = json.loads((tmp_path / "all" / "members" / "b" / "model.json").read_text())["storage"]
    assert stored == "float16"
    assert tagreel.load(tmp_path / "all").top_k == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "all.runs"]


def test_a_member_with_a_memory_remembers_the_training_videos(tiny, training_data, tmp_path):
    memory = partial(Neighbours, neighbours=7)
    system = Ensemble(members={"plain": tiny, "asking": replace(tiny, memory=memory)})
    stage.train_ensemble(system, data=training_data, out=tmp_path / "all", device="cpu")
    plain, asking = tagreel.load(tmp_path / "all").members
    assert plain.memory is None
    assert (asking.memory.neighbours, len(asking.memory.keys)) == (7, len(training_data))


def test_a_member_that_does_not_fit_the_data_is_found_before_the_first_is_trained(
    tiny, training_data, tmp_path
):
    only = replace(tiny, features={"rgb": 12}, streams={"rgb": tiny.streams["rgb"]})
    for wrong, reason in (
        (replace(only, features={"rgb": 13}), "'rgb' is 12 wide, the model expects 13"),
        (replace(only, features={"rgb": 12, "words": 5}), "no 'words'"),
        (
            replace(only, streams={"rgb": Stream(pool=partial(NeXtVLAD, groups=7))}),
            "NeXtVLAD cannot be built",
        ),
    ):
        system = Ensemble(members={"fits": replace(only, features={"rgb": None}), "wrong": wrong})
        with pytest.raises(TagreelError, match=reason):
            stage.train_ensemble(system, data=training_data, out=tmp_path / "all", device="cpu")
        assert not stage.runs_of(tmp_path / "all").exists()


def test_what_a_member_remembers_may_be_damaged_as_far_as_its_training_may(tiny, training_data, tmp_path):
    system = Ensemble(members={"asking": replace(tiny, memory=partial(Neighbours))})
    options = {"data": training_data, "device": "cpu", "skip_damaged": 1}
    with payload_damaged(Path(training_data.paths[0]), 3):
        outcome = stage.train_ensemble(system, out=tmp_path / "all", **options)
    assert len(outcome.damaged) == 1
    assert len(tagreel.load(tmp_path / "all").members[0].memory.keys) == len(training_data) - 1


def test_a_stopped_training_goes_on_with_the_members_that_are_missing(
    system, training_data, tmp_path, monkeypatch
):
    begun = []

    def stops_at_b(row):
        if row["event"] == "member":
            begun.append(row["name"])
            if row["name"] == "b":
                raise KeyboardInterrupt

    options = {"data": training_data, "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        stage.train_ensemble(system, out=tmp_path / "all", on_event=stops_at_b, **options)
    assert not (tmp_path / "all").exists()
    with pytest.raises(RecipeError, match="already holds a run; go on with it by --resume"):
        stage.train_ensemble(system, out=tmp_path / "all", **options)
    steps = []
    stage.train_ensemble(
        system,
        out=tmp_path / "all",
        resume=True,
        on_event=lambda row: steps.append(row["step"]) if row["event"] == "train" else None,
        **options,
    )
    assert len(steps) == 7  # those of b; a had all of its own
    stage.train_ensemble(system, out=tmp_path / "whole", **options)
    resumed, whole = (tagreel.load(tmp_path / name).state_dict() for name in ("all", "whole"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_by_command(cli, system, shards, tmp_path):
    write_json(tmp_path / "system.json", to_json(system))
    arguments = ("train", tmp_path / "system.json", "--data", f"{shards}/train*", "--steps", 2)
    code, out, err = cli(*arguments, "--out", tmp_path / "all")
    assert code == 0, err
    assert "member 2 of 2: b" in out
    assert "2 members" in out
    code, out, err = cli("evaluate", tmp_path / "all", "--data", f"{shards}/test*", "--json")
    assert code == 0, err
    assert 0 < json.loads(out)["gap@20"] <= 1
    code, _, err = cli(*arguments, "--out", tmp_path / "all")
    assert (code, err) == (
        2,
        f"tagreel: --out {tmp_path / 'all'}: exists; expected the name of a new folder\n",
    )
    code, _, err = cli(*arguments, "--out", tmp_path / "other", "--teacher", tmp_path / "all")
    assert code == 2
    assert (
        "is an ensemble; --start-from, --teacher and --shard are for one recipe, such as its member a" in err
    )
