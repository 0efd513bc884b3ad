from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import tagreel
from tagreel import checkpoint
from tagreel.errors import RecipeError
from tagreel.evaluate import evaluate
from tagreel.extract_branch import extract_branch, recipe_of_branch
from tagreel.heads.chained_experts import ChainedExperts
from tagreel.heads.deep_mixture_of_experts import DeepMixtureOfExperts
from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.inference import RepeatedSampling
from tagreel.layers.context_gating import ContextGating
from tagreel.layers.dropout import Dropout
from tagreel.layers.latent_concepts import LatentConcepts
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.mixture import Mixture
from tagreel.layers.projection import Projection
from tagreel.loader import Loader
from tagreel.pools.batch_norm_lstm import BatchNormLSTM
from tagreel.pools.gru import GRU
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.recipe import Stream, find, from_json, to_json
from tagreel.sampling import RandomFrames
from tagreel.tagger import build, count_parameters
from tagreel.train import train
from tests.conftest import with_training

MIX = partial(Mixture, branches=3)
KINDS = {
    "nextvlad": lambda tiny: replace(
        tiny,
        streams={name: Stream(pool=partial(NeXtVLAD, clusters=4, groups=2)) for name in ("rgb", "audio")},
        body=(partial(Dropout), partial(Projection, width=8), partial(MaskedBatchNorm)),
        joint_l2_norm=True,
    ),
    "recurrent": lambda tiny: replace(
        tiny, streams={"both": Stream(inputs=("rgb", "audio"), pool=partial(GRU, units=(6, 6)))}
    ),
    "normed recurrent": lambda tiny: replace(
        tiny, streams={"both": Stream(inputs=("rgb", "audio"), pool=partial(BatchNormLSTM, units=(6,)))}
    ),
    "experts": lambda tiny: replace(
        tiny, head=partial(MixtureOfExperts, experts=2), output=(partial(ContextGating),)
    ),
    "chained experts": lambda tiny: replace(tiny, head=partial(ChainedExperts, links=1, width=4)),
    "deep experts": lambda tiny: replace(tiny, head=partial(DeepMixtureOfExperts, hidden=4)),
    "latent concepts": lambda tiny: replace(tiny, output=(partial(LatentConcepts, concepts=4),)),
    "late": lambda tiny: with_training(
        replace(tiny, late=(partial(LatentConcepts, concepts=4),)), late_epochs=0.5, ema=0.9
    ),
}


def loader(model, data):
    return Loader(data, features=model.features, classes=model.classes, batch_size=16)


@pytest.mark.parametrize("kind", KINDS)
def test_any_recipe_trains_as_a_mixture_and_a_branch_scores_as_it_did_there(
    kind, tiny, training_data, test_data, planted, tmp_path
):
    recipe = replace(KINDS[kind](tiny), mixture=MIX)
    run, out = tmp_path / "run", tmp_path / "models" / "out"
    train(recipe, data=training_data, out=run, label_names=planted.label_names, device="cpu")
    mixture = tagreel.load(run)
    result = extract_branch(run, out, branch=1)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.safetensors"]

    model = tagreel.load(out)
    assert to_json(model.recipe) == to_json(replace(recipe, mixture=None, about=model.recipe.about))
    assert model.label_names == mixture.label_names
    assert evaluate(model, loader(model, test_data), device=torch.device("cpu")).videos == 50
    one, gate = sum(p.numel() for p in model.parameters()), 2 * 18 + 18 * 3 + 3
    assert (result.parameters, result.whole) == (one, 3 * one + gate)
    with torch.inference_mode():
        for _, batch in loader(model, test_data).epoch():
            streams, masks = batch.packed()
            frames = mixture.frames(streams, masks)
            found = model.probabilities(batch)
            for index, network in enumerate(mixture.networks):
                theirs = torch.sigmoid(network.classify(network.pool(frames, masks)))
                assert torch.equal(found, theirs) == (index == 1)


def test_a_branch_of_the_submitted_mixture_is_the_single_model_of_the_paper():
    """PAPERS: 237M and 79M, of which the exact numbers are derived."""
    mixture, single = find("nextvlad-mix3-t3-460k"), find("nextvlad-single-460k")
    branch = recipe_of_branch(mixture, 2)
    assert count_parameters(branch) == count_parameters(single) == 78_643_170
    assert count_parameters(mixture) == 235_935_273
    with torch.device("meta"):
        whole, alone = build(mixture), build(branch)
    shapes = {name: tensor.shape for name, tensor in whole.branches[2].state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in alone.state_dict().items()}
    assert branch.about.name == "nextvlad-mix3-t3-460k-branch-2"
    assert (branch.about.published, branch.about.parameters) == ({}, None)
    assert to_json(from_json(to_json(branch))) == to_json(branch)


def saved(recipe, run: Path, *, fired: bool = True) -> Path:
    torch.manual_seed(0)
    model = build(recipe)
    model.fire(fired)
    for step in (7, 9):
        weights = {name: tensor + step for name, tensor in model.state_dict().items()}
        facts = {"step": step, "train_counts": [1] * 120, "validation": {"gap@20": 0.5}}
        checkpoint.save(run, step, model, weights, facts=facts)
    return run


def test_what_was_noted_goes_along_but_for_the_scores_of_the_whole(tiny, tmp_path):
    recipe = replace(
        tiny,
        mixture=MIX,
        late=(partial(LatentConcepts, concepts=4),),
        inference=partial(RepeatedSampling, times=2),
        evaluation_sampling=partial(RandomFrames, frames=4),
    )
    run = saved(recipe, tmp_path / "run", fired=False)
    for step in (7, 9):
        extract_branch(run, tmp_path / str(step), checkpoint=f"step-{step}")
        model = checkpoint.load(tmp_path / str(step))
        wanted = checkpoint.load(run, checkpoint=f"step-{step}").networks[0]
        assert torch.equal(model.head.linear.bias, wanted.head.linear.bias)
        assert not model.fired
        assert to_json(model.recipe)["inference"] == to_json(recipe)["inference"]
        noted = checkpoint.facts(tmp_path / str(step))
        assert noted == {"step": step, "train_counts": [1] * 120, "branch": 0, "validation": None}


def test_what_has_no_such_branch_is_refused(tiny, run, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RecipeError, match="run: is one network already; expected a recipe with a mixture"):
        extract_branch(run, out)
    mixed = saved(replace(tiny, mixture=MIX), tmp_path / "mixed")
    for branch in (-1, 3):
        with pytest.raises(RecipeError, match=rf"--branch is {branch}; .*mixed has 3, expected 0 to 2"):
            extract_branch(mixed, out, branch=branch)
    assert not list(tmp_path.glob("out*"))
    extract_branch(mixed, out)
    with pytest.raises(RecipeError, match=r"--out .*out: exists"):
        extract_branch(mixed, out)
    with pytest.raises(RecipeError, match="out: is one network already"):
        extract_branch(out, tmp_path / "again")


def test_the_command_says_what_it_wrote(tiny, tmp_path, cli):
    mixed = saved(replace(tiny, mixture=MIX), tmp_path / "mixed")
    code, said, err = cli("extract-branch", mixed, "--branch", 2, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert f"wrote {tmp_path}/out: branch 2, 2,280 of 6,933 parameters" in said
    code, _, err = cli("extract-branch", mixed, "--branch", 3, "--out", tmp_path / "other")
    assert code == 2
    assert err.count("\n") == 1


def test_what_a_killed_one_left_is_no_hindrance(tiny, tmp_path):
    left = tmp_path / "out.partial" / "checkpoints" / "step-00000009"
    left.mkdir(parents=True)
    (left / "model.json").write_text("{}")
    extract_branch(saved(replace(tiny, mixture=MIX), tmp_path / "mixed"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixed", "out"]
