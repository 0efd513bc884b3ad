"""The published ensembles: who is in them, how much each counts, and how large they are."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tagreel.batch import Batch
from tagreel.compress import recipe_size
from tagreel.inference import RepeatedSampling
from tagreel.recipe import ensemble_from_json, ensembles, find, find_ensemble, names, to_json
from tagreel.tagger import build, count_parameters

ENSEMBLES = ensembles()
PUBLISHED = [name for name, ensemble in ENSEMBLES.items() if ensemble.about.paper]
every_ensemble = pytest.mark.parametrize("name", ENSEMBLES)
every_published = pytest.mark.parametrize("name", PUBLISHED)

# Members, trainable parameters of all together, published figures.
TABLE = {
    "cmu-final": (35, 21_103_811_338, (0.84662, 0.84675, 0.5401, 0.772)),
    "willow-ens7": (7, 1_270_145_936, (0.84688,)),
    "nlvlad-ens-14": (2, 183_519_956, (0.8752,)),
    "nlvlad-ens-12": (2, 280_045_736, (0.8778,)),
    "nlvlad-ens-16": (2, 218_424_588, (0.8782, 0.8790)),
    "nlvlad-ens-146": (3, 246_986_080, (0.8800,)),
    "nlvlad-ens-1246": (4, 372_073_352, (0.8820,)),
    "nlvlad-ens-12346": (5, 483_771_204, (0.8839, 0.88678)),
    "nlvlad-ens-123456": (6, 521_109_696, (0.8842,)),
    "nlvlad-final-r1": (6, 521_109_696, (0.8842,)),
    "nlvlad-final-r5": (6, 521_109_696, (0.8846, 0.88756)),
    "nlvlad-final-r10": (6, 521_109_696, (0.8847, 0.88763, 0.88704)),
    "thu-ens16": (4, 316_339_444, (0.83477, 0.83470)),
    "thu-ens36": (6, 362_924_740, (0.83670, 0.83662)),
}
NONLOCAL = [
    "nlvlad-lfnl-netvlad-avg",
    "nlvlad-lfnl-netrvlad-avg",
    "nlvlad-efnl-netvlad-avg",
    "nlvlad-softbof-4k-avg",
    "nlvlad-softbof-8k-avg",
    "nlvlad-gru-avg",
]


@every_published
def test_it_is_as_published(name):
    ensemble = ENSEMBLES[name]
    members, parameters, published = TABLE[name]
    assert len(ensemble.members) == members
    assert sum(recipe.about.parameters for recipe in ensemble.members.values()) == parameters
    assert tuple(ensemble.about.published.values()) == published
    assert ensemble.about.name == name
    assert ensemble.about.summary


@every_published
def test_every_member_is_a_recipe_that_is_found_by_its_name(name):
    """But for how it is scored in the ensemble."""
    known = names()
    for member, recipe in ENSEMBLES[name].members.items():
        scored = {"inference": recipe.inference, "evaluation_sampling": recipe.evaluation_sampling}
        assert to_json(recipe) == to_json(replace(known[member], **scored))
        assert recipe.about.name == member


@every_ensemble
def test_every_member_builds_with_the_features_and_classes_of_the_others(name):
    features, classes = set(), set()
    for recipe in ENSEMBLES[name].members.values():
        with torch.device("meta"):
            model = build(recipe)
        features |= set(model.features.items())
        classes.add(model.classes)
    assert len(classes) == 1
    if name in PUBLISHED:
        assert features == {("rgb", 1024), ("audio", 128)}


@every_ensemble
def test_it_travels_as_json(name):
    text = json.dumps(to_json(ENSEMBLES[name]))
    again = ensemble_from_json(json.loads(text))
    assert to_json(again) == to_json(ENSEMBLES[name])
    assert again.shares == ENSEMBLES[name].shares
    assert again.about == ENSEMBLES[name].about
    member = next(iter(again.members))
    assert count_parameters(again.members[member]) == count_parameters(ENSEMBLES[name].members[member])


# ---------------------------------------------------------------------- Willow


def test_willows_seven_are_the_released_ones_alike_in_weight_by_their_50_best():
    ensemble = find_ensemble("willow-ens7")
    released = [name for name in names() if name.startswith("willow-rel-")]
    assert sorted(ensemble.members) == sorted(released)
    assert ensemble.weights is None
    assert list(ensemble.shares.values()) == [pytest.approx(1 / 7)] * 7
    assert ensemble.top_k == 50


# ---------------------------------------------------------------------- NeXtVLAD


def test_the_size_of_the_nextvlad_mixture():
    """The paper's 944 MB are three branches and their statistics, without gate, scales and counters."""
    branch = find("nextvlad-single-460k")
    with torch.device("meta"):
        state = build(branch).state_dict()
    floats = count_parameters(branch) + sum(
        tensor.numel() for name, tensor in state.items() if name.endswith(("running_mean", "running_var"))
    )
    assert floats == 78_714_274
    assert 3 * floats * 4 / 1e6 == pytest.approx(944.57, abs=0.005)
    gate = 2 * 1152 + 1152 * 3 + 3 + 2 * 1152
    scales_and_counters = 3 * 1024 * 4 + (3 * 6 + 1) * 8
    total = recipe_size(find("nextvlad-mix3-t3-460k"))
    assert total == (3 * floats + gate) * 4 + scales_and_counters
    assert total / 1e6 == pytest.approx(944.62, abs=0.005)


# ---------------------------------------------------------------------- Non-local NetVLAD


@pytest.mark.parametrize("name", [name for name in ENSEMBLES if name.startswith("nlvlad-ens-")])
def test_the_numbers_in_a_name_are_those_of_the_models(name):
    numbers = name.removeprefix("nlvlad-ens-")
    assert list(ENSEMBLES[name].members) == [NONLOCAL[int(number) - 1] for number in numbers]
    assert ENSEMBLES[name].weights is None
    assert ENSEMBLES[name].top_k is None


@pytest.mark.parametrize("name", NONLOCAL)
def test_an_averaged_model_is_the_single_one_with_its_other_score(name):
    averaged, single = find(name), find(name.removesuffix("-avg"))
    assert to_json(replace(averaged, about=single.about)) == to_json(single)
    label = "GAP@20 (validation, averaged checkpoints)"
    assert averaged.about.published == {label: single.about.published[label]}


def test_the_final_six_in_bfloat16_are_under_a_gigabyte_as_the_authors_count_it():
    final = find_ensemble("nlvlad-final-r10")
    assert final.storage == "bfloat16"
    parameters = sum(count_parameters(recipe) for recipe in final.members.values())
    assert parameters * 2 / 2**20 == pytest.approx(993.9, abs=0.05)
    size = sum(recipe_size(recipe, final.storage) for recipe in final.members.values())
    assert size / 2**20 == pytest.approx(994.1, abs=0.05)
    assert size / 1e6 == pytest.approx(1_042, abs=0.5)


@pytest.mark.parametrize("times", [1, 5, 10])
def test_the_final_six_draw_random_frames_as_often_as_the_name_says(times):
    ensemble = find_ensemble(f"nlvlad-final-r{times}")
    assert list(ensemble.members) == NONLOCAL
    for name, recipe in ensemble.members.items():
        first, second = (recipe.evaluation_sampling()(200, (draw,)) for draw in range(2))
        if name == "nlvlad-gru-avg":
            assert recipe.inference is None
            assert first == second
            continue
        assert (recipe.inference.func, recipe.inference.keywords) == (RepeatedSampling, {"times": times})
        assert len(first) == len(second) == 300
        assert (first != second).any()


# ---------------------------------------------------------------------- Tsinghua


@pytest.mark.parametrize(("name", "starts", "predictions"), [("thu-ens16", 5, 16), ("thu-ens36", 7, 36)])
def test_tsinghuas_is_the_mean_of_predictions_cut_to_20_tags(name, starts, predictions):
    """Against a loop over the predictions; the score of a class is a number that the frames seen decide."""
    F, C = 320, 60
    rng = torch.Generator().manual_seed(1)
    ensemble = find_ensemble(name)
    taste = {member: torch.rand(F, C, generator=rng) for member in ensemble.members}

    def probability(member, frames):
        return (taste[member][frames].sum(0) * 17).frac()

    lists = []
    for member in ensemble.members:
        crops = [list(range(s, F, 5))[:45] for s in range(starts)]
        for frames in [list(range(300))] if member.endswith("full") else crops:
            scores = probability(member, frames).tolist()
            best = sorted(range(C), key=lambda c: -scores[c])[:20]
            lists.append([scores[c] if c in best else 0.0 for c in range(C)])
    assert len(lists) == predictions
    expected = [sum(column) / predictions for column in zip(*lists, strict=True)]

    none = torch.zeros(0, dtype=torch.int64)
    video = Batch(
        ids=["v"],
        streams={"rgb": torch.arange(F, dtype=torch.float32).view(1, F, 1)},
        num_frames={"rgb": torch.tensor([F])},
        label_ids=none,
        label_counts=torch.zeros(1, dtype=torch.int64),
    )
    found = torch.zeros(1, C)
    for member, recipe in ensemble.members.items():

        def scores(batch, member=member):
            seen = batch.streams["rgb"][0, : int(batch.num_frames["rgb"][0]), 0].long()
            return probability(member, seen)[None]

        found += ensemble.shares[member] * recipe.inference()(scores, None, video)
    torch.testing.assert_close(found[0], torch.tensor(expected))


def test_what_is_published_of_no_ensembles_members_is_left_out():
    """Of CMU's growing ensembles and Willow's 25 only the number of members is known."""
    assert set(PUBLISHED) == set(TABLE)
