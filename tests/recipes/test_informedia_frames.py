"""CMU Informedia's frame-level models, with the parameters that follow from the paper's layers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from tagreel.layers.dropout import Dropout
from tagreel.layers.latent_concepts import LatentConcepts
from tagreel.recipe import find, override
from tagreel.tagger import build, count_parameters

C, CODE, REPRESENTATION, HIDDEN = 4716, 4096, 2400, 4096
SPARSE_CODE = 1152 * CODE + 2 * CODE
LATENT_CONCEPTS = 60_905_280


def _lstm(directions=1):
    total, dim = 0, 1152
    for _ in range(2):
        total += directions * 4 * 2400 * (dim + 2400 + 1)
        dim = directions * 2400
    return total


def _experts(width):
    """Gates of two experts without bias; experts with."""
    return 2 * width * C * 2 + C * 2


def _residual_experts():
    trunk = REPRESENTATION * HIDDEN + HIDDEN + 2 * HIDDEN + HIDDEN * HIDDEN + HIDDEN + 2 * HIDDEN
    return trunk + (HIDDEN + 1 + REPRESENTATION) * C * 8


def _compressed(width):
    return (width + 1) * REPRESENTATION


def _netvlad(clusters):
    pool = 2 * CODE * clusters + 2 * clusters
    return SPARSE_CODE + pool + _compressed(CODE * clusters) + _residual_experts()


# Its b is that of the frames' batch norm; 4h gains for frames and state each, a gain and a shift for c.
BATCH_NORM = 2 * (2 * 4 * 2400 + 2 * 2400)
BAG = SPARSE_CODE + _compressed(CODE) + _experts(REPRESENTATION)

# Name, GAP, mAP, PERR in percent as published, parameters by the formulas above.
ROWS = [
    ("cmu-lstm", 79.43, 37.43, 72.2, _lstm() + _experts(2400)),
    ("cmu-dbow", 78.34, 36.97, 70.9, BAG),
    ("cmu-bilstm", 79.98, 38.51, 72.5, _lstm(2) + _experts(4800)),
    ("cmu-lstm-zoneout", 80.15, 40.27, 72.4, _lstm() + _experts(2400)),
    ("cmu-lstm-bn", 80.03, 40.21, 72.4, _lstm() + BATCH_NORM + _experts(2400)),
    ("cmu-lstm-attn", 80.10, 40.33, 73.2, _lstm() + 2400 + _experts(2400)),
    ("cmu-dbow-attn", 79.89, 40.94, 72.5, BAG + CODE),
    ("cmu-vlad-more8", 81.71, 46.18, 74.1, _netvlad(8)),
    ("cmu-netvlad-k1-lc", 82.47, 48.37, 75.1, _netvlad(1) + LATENT_CONCEPTS),
    ("cmu-netvlad-k2-lc", 82.11, 48.33, 74.9, _netvlad(2) + LATENT_CONCEPTS),
    ("cmu-netvlad-k4-lc", 81.65, 47.61, 74.4, _netvlad(4) + LATENT_CONCEPTS),
    ("cmu-netvlad-k8-lc", 81.29, 45.54, 74.1, _netvlad(8) + LATENT_CONCEPTS),
]
every_row = pytest.mark.parametrize(
    ("name", "gap", "mean_ap", "perr", "parameters"), ROWS, ids=[row[0] for row in ROWS]
)


@every_row
def test_parameters_and_scores_are_those_of_the_table(name, gap, mean_ap, perr, parameters):
    recipe = find(name)
    assert recipe.about.parameters == count_parameters(recipe) == parameters
    published = [100 * value for value in recipe.about.published.values()]
    assert published == pytest.approx([gap, mean_ap, perr])


@every_row
def test_they_are_trained_alike(name, gap, mean_ap, perr, parameters):
    recipe = find(name)
    training = recipe.training
    assert training.optimizer.keywords == {"lr": 2e-4, "initial_accumulator_value": 0.1}
    assert (training.batch_size, training.steps, training.clip_norm) == (256, 360_000, 0.8)
    assert training.schedule()(8_000_000, 0) == pytest.approx(0.8)
    assert len(recipe.sampling()(200, (0,))) == 160
    assert len(recipe.sampling()(300, (0,))) == 180
    assert not recipe.joint_l2_norm
    [stream] = recipe.streams.values()
    assert stream.transforms[0].keywords == {"parts": (1024, 128)}


@every_row
def test_latent_concepts_join_in_after_ten_epochs_where_the_row_has_them(
    name, gap, mean_ap, perr, parameters
):
    recipe = find(name)
    if name.endswith("-lc"):
        assert [part.func for part in recipe.late] == [LatentConcepts]
        assert recipe.training.late_epochs == 10
    else:
        assert not recipe.late


def test_the_rows_called_dp_drop_some_of_the_representation():
    dropped = {k: find(f"cmu-netvlad-k{k}-lc").body[-1].func is Dropout for k in (1, 2, 4, 8)}
    assert dropped == {1: True, 2: True, 4: True, 8: False}


@pytest.mark.parametrize("name", ["cmu-bilstm", "cmu-lstm-zoneout", "cmu-lstm-bn", "cmu-netvlad-k2-lc"])
def test_a_small_one_learns_from_videos_of_different_lengths(name):
    recipe = override(find(name), "streams.frames.transforms.0.parts=(8, 4)")
    small = "streams.frames.pool.units=(6, 4)" if "lstm" in name else "streams.frames.transforms.1.width=9"
    recipe = replace(override(recipe, small), features={"rgb": 8, "audio": 4}, classes=5)
    if recipe.late:
        recipe = replace(recipe, late=(partial(LatentConcepts, concepts=6),))
    torch.manual_seed(0)
    model = build(recipe)
    frames = {
        name: torch.randint(0, 256, (4, 7, d), dtype=torch.uint8) for name, d in (("rgb", 8), ("audio", 4))
    }
    mask = torch.arange(7) < torch.tensor([[7], [2], [5], [1]])
    logits = model(frames, dict.fromkeys(frames, mask))
    recipe.loss()(logits, torch.randint(0, 2, (4, 5)).float()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
