"""Tsinghua's recurrent models, with the parameters that follow from TensorFlow's cells."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tagreel.recipe import find, override
from tagreel.sampling import AllFrames, Crop
from tagreel.tagger import build, count_parameters

C = 4716


def _lstm(dim, *units, directions=1, norm=False):
    total = 0
    for h in units:
        total += directions * (4 * h * (dim + h) + (10 * h if norm else 4 * h))
        dim = directions * h
    return total


def _logistic(width):
    return width * C + C


def _experts(width):
    """Gates for two experts and the one that says no, without bias; experts with."""
    return width * C * 3 + width * C * 2 + C * 2


BILSTM = _lstm(1152, 1024, 1024, directions=2) + _experts(2048)
LATE_FUSION = (
    _lstm(1024, 512, directions=2, norm=True)
    + _lstm(128, 150, directions=2, norm=True)
    + _lstm(2 * 512 + 2 * 150, 1200, norm=True)
)

# Name, GAP@20 public and private as published, parameters by the formulas above and as a number.
ROWS = [
    ("thu-baseline-mean-lr", (0.74711, 0.74714), _logistic(1152), 5_437_548),
    ("thu-prototype-full-visual", (0.78105, 0.78143), _lstm(1024, 1024, 1024) + _experts(1024), 40_940_760),
    ("thu-prototype-full", (0.80224, 0.80207), _lstm(1152, 1024, 1024) + _experts(1024), 41_465_048),
    ("thu-prototype-crop", (0.80204, 0.80190), _lstm(1152, 1024, 1024) + _experts(1024), 41_465_048),
    (
        "thu-bilstm-lr-ln",
        (0.80761, 0.80736),
        _lstm(1152, 1024, 768, directions=2, norm=True) + _logistic(1536),
        42_411_628,
    ),
    ("thu-bilstm-moe", (0.81055, 0.81067), BILSTM, 91_309_272),
    ("thu-bilstm-moe-attn", (0.81232, 0.81227), BILSTM, 91_309_272),
    ("thu-bilstm-moe-full", (0.81401, 0.81399), BILSTM, 91_309_272),
    ("thu-lstm-lr-ln", (), _lstm(1152, 1024, 1024, norm=True) + _logistic(1024), 22_155_884),
    ("thu-lstm-late-lr", (), LATE_FUSION + _logistic(1200), 24_429_412),
]
every_row = pytest.mark.parametrize(
    ("name", "scores", "formula", "number"), ROWS, ids=[row[0] for row in ROWS]
)


@every_row
def test_parameters_and_scores_are_those_of_the_table(name, scores, formula, number):
    recipe = find(name)
    assert recipe.about.parameters == count_parameters(recipe) == formula == number
    assert tuple(recipe.about.published.values()) == scores


@pytest.mark.parametrize(
    ("name", "settings", "body", "expected"),
    [
        ("thu-prototype-full", [], 17_309_696, 41_465_048),
        ("thu-bilstm-moe", [], 43_008_000, 91_309_272),
        ("thu-bilstm-moe", ["streams.frames.pool.units=(1024, 768)"], 35_141_632, 71_369_944),
        (
            "thu-bilstm-moe",
            ["streams.frames.pool.units=(1024, 768)", "head=tagreel.heads.logistic.Logistic"],
            35_141_632,
            42_390_124,
        ),
    ],
)
def test_other_sizes_have_the_parameters_of_the_references(name, settings, body, expected):
    recipe = find(name)
    for setting in settings:
        recipe = override(recipe, setting)
    assert count_parameters(recipe) == expected
    with torch.device("meta"):
        pool = build(recipe).streams["frames"].pool
    assert sum(p.numel() for p in pool.parameters()) == body


@every_row
def test_rows_in_full_read_all_frames_and_the_others_crops(name, scores, formula, number):
    recipe = find(name)
    if "full" in name or "mean" in name:
        assert (recipe.sampling.func, recipe.evaluation_sampling.func) == (AllFrames, AllFrames)
        return
    crop, prediction = recipe.sampling(), recipe.evaluation_sampling()
    assert isinstance(crop, Crop)
    assert isinstance(prediction, Crop)
    starts = {crop(300, (seed,)).start for seed in range(300)}
    assert starts == set(range(10))
    assert {prediction(300, (seed,)).start for seed in range(300)} == set(range(5))
    taken = range(300)[crop(300, (3,))]
    assert len(taken) == 45
    assert taken[-1] - taken[0] == 220


@every_row
def test_training_is_that_of_the_paper(name, scores, formula, number):
    training = find(name).training
    if name == "thu-baseline-mean-lr":
        return
    assert training.optimizer.keywords == {"lr": 1e-3}
    assert (training.batch_size, training.clip_norm, training.head_l2) == (128, 10.0, 1e-8)
    assert training.epochs == (2.7 if name == "thu-bilstm-lr-ln" else 5)
    assert training.schedule()(8_000_000, 0) == pytest.approx(0.95**2)


def test_late_fusion_scales_each_modality_and_the_others_both_together():
    assert {find(name).joint_l2_norm for name, *_ in ROWS if name != "thu-lstm-late-lr"} == {True}
    recipe = find("thu-lstm-late-lr")
    assert not recipe.joint_l2_norm
    [scaled] = recipe.streams["frames"].transforms
    frames = scaled(1152)(torch.randn(2, 3, 1152))
    torch.testing.assert_close(frames[..., :1024].norm(dim=-1), torch.ones(2, 3))
    torch.testing.assert_close(frames[..., 1024:].norm(dim=-1), torch.ones(2, 3))


@pytest.mark.parametrize("name", ["thu-bilstm-moe-attn", "thu-bilstm-lr-ln", "thu-prototype-full-visual"])
def test_a_small_one_learns_from_videos_of_different_lengths(name):
    recipe = find(name)
    recipe = replace(recipe, features=dict.fromkeys(recipe.features, 8), classes=5)
    [stream] = recipe.streams
    recipe = override(recipe, f"streams.{stream}.pool.units=(6, 4)")
    torch.manual_seed(0)
    model = build(recipe)
    frames = {feature: torch.randint(0, 256, (4, 7, 8), dtype=torch.uint8) for feature in recipe.features}
    mask = torch.arange(7) < torch.tensor([[7], [2], [5], [1]])
    logits = model(frames, dict.fromkeys(frames, mask))
    recipe.loss()(logits, torch.randint(0, 2, (4, 5)).float()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
