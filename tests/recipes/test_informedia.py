"""CMU Informedia's video-level models, with the parameters that follow from the paper's layers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.optim import Adagrad

from tagreel.layers.l2_norm import L2Norm
from tagreel.recipe import find, names
from tagreel.sampling import AllFrames, RandomSegment
from tagreel.tagger import build, count_parameters

D, C, H = 1152, 4716, 4096
TRUNK = D * H + H + 2 * H + H * H + H + 2 * H
LATENT_CONCEPTS = 60_905_280


def _moe(experts):
    return 2 * D * C * experts + C * experts


def _more(experts):
    return TRUNK + (H + 1 + D) * C * experts


def _mohce(experts):
    return TRUNK + (D + 2 * H + 1 + D) * C * experts


# Name, GAP, mAP, PERR in percent as published, parameters by the formulas above, and as a number.
ROWS = [
    ("cmu-moe2", 78.41, 41.58, 70.9, _moe(2), 21_740_760),
    ("cmu-moe8", 79.30, 42.20, 71.9, _moe(8), 86_963_040),
    ("cmu-deepmoe8", 79.67, 43.20, 72.5, _more(8), 219_554_656),
    ("cmu-more8", 81.15, 44.49, 73.6, _more(8), 219_554_656),
    ("cmu-more16", 81.32, 44.71, 73.8, _more(16), 417_588_928),
    ("cmu-more24", 81.61, 47.30, 74.3, _more(24), 615_623_200),
    ("cmu-mohce12", 82.15, 48.76, 74.6, _mohce(12), 615_566_608),
    ("cmu-more24-lc", 82.37, 49.63, 75.1, _more(24) + LATENT_CONCEPTS, 676_528_480),
    ("cmu-mohce12-lc", 82.42, 47.39, 74.9, _mohce(12) + LATENT_CONCEPTS, 676_471_888),
    ("cmu-more24-lc-si", 82.56, 49.68, 75.1, _more(24) + LATENT_CONCEPTS, 676_528_480),
    ("cmu-more28-lc-si", 82.67, 50.04, 75.3, _more(28) + LATENT_CONCEPTS, 775_545_616),
    ("cmu-mohce12-lc-si", 82.62, 47.89, 75.1, _mohce(12) + LATENT_CONCEPTS, 676_471_888),
    ("cmu-more28-lc-da", 82.78, 50.47, 75.5, _more(28) + LATENT_CONCEPTS, 775_545_616),
    ("cmu-more30-lc-da", 82.79, 50.74, 75.6, _more(30) + LATENT_CONCEPTS, 825_054_184),
    ("cmu-more28-lc-si-da", 82.97, 50.89, 75.6, _more(28) + LATENT_CONCEPTS, 775_545_616),
    ("cmu-mohce12-lc-si-da", 83.28, 50.41, 76.0, _mohce(12) + LATENT_CONCEPTS, 676_471_888),
]
every_row = pytest.mark.parametrize("name", [row[0] for row in ROWS])


@pytest.mark.parametrize(
    ("name", "gap", "mean_ap", "perr", "formula", "stated"), ROWS, ids=[row[0] for row in ROWS]
)
def test_a_row_has_the_parameters_and_the_scores_of_the_paper(name, gap, mean_ap, perr, formula, stated):
    recipe = find(name)
    assert count_parameters(recipe) == recipe.about.parameters == formula == stated
    assert recipe.about.published == {
        "GAP@20 (local validation)": pytest.approx(gap / 100),
        "mAP (local validation)": pytest.approx(mean_ap / 100),
        "PERR (local validation)": pytest.approx(perr / 100),
    }


def test_no_row_is_left_out():
    about = {name: recipe.about for name, recipe in names().items() if "1707.01408" in recipe.about.paper}
    found = {name for name, said in about.items() if said.table == "table 1"}
    assert found == {row[0] for row in ROWS}


@every_row
def test_the_name_says_what_is_in_it(name):
    recipe, (_, _, *marks) = find(name), name.split("-")
    assert bool(recipe.late) == ("lc" in marks)
    assert recipe.training.late_epochs == (10 if "lc" in marks else 0)
    assert (recipe.inference is not None) == ("si" in marks)
    assert recipe.sampling.func is (RandomSegment if "da" in marks else AllFrames)
    assert recipe.evaluation_sampling.func is AllFrames
    assert name.split("-")[1].endswith(str(recipe.head.keywords["experts"]))


@every_row
def test_all_are_trained_as_the_paper_says(name):
    training = find(name).training
    assert (training.optimizer.func, training.optimizer.keywords) == (
        Adagrad,
        {"lr": 2e-4, "initial_accumulator_value": 0.1},
    )
    assert training.schedule.keywords == {"factor": 0.8, "every": 8_000_000}
    assert (training.batch_size, training.steps) == (1024, 160_000 if name.endswith("-da") else 80_000)
    assert (training.clip, training.clip_norm) == ("tensor", 0.8)


@every_row
def test_on_narrow_features_every_part_of_it_learns(name):
    recipe = find(name)
    head = partial(recipe.head.func, **recipe.head.keywords)
    if "hidden" in recipe.head.func.__init__.__annotations__:
        head = partial(head, hidden=16)
    recipe = replace(
        recipe,
        features={"mean_rgb": 8, "mean_audio": 4},
        classes=7,
        body=(partial(L2Norm, parts=(8, 4)),),
        head=head,
    )
    torch.manual_seed(0)
    model = build(recipe)
    streams = {feature: torch.randn(6, 3, width) for feature, width in model.features.items()}
    mask = torch.arange(3) < torch.tensor([3, 1, 3, 3, 3, 1])[:, None]
    logits = model(streams, dict.fromkeys(streams, mask))
    assert logits.shape == (6, 7)
    labels = (torch.rand(6, 7) < 0.3).float()
    recipe.loss()(logits, labels).backward()
    for part, parameter in model.named_parameters():
        assert parameter.grad is not None, part
        assert parameter.grad.isfinite().all(), part
        assert parameter.grad.any(), part


def test_each_modality_of_the_mean_vector_has_length_one():
    recipe = find("cmu-moe2")
    torch.manual_seed(0)
    streams = {"mean_rgb": torch.randn(2, 3, 1024), "mean_audio": torch.randn(2, 3, 128)}
    mask = torch.ones(2, 3, dtype=torch.bool)
    model = build(replace(recipe, classes=3))
    seen = []
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(streams, dict.fromkeys(streams, mask))
    for stream, part in zip(streams.values(), seen[0].split([1024, 128], dim=1), strict=True):
        for b in range(2):
            mean = sum(stream[b]) / 3
            torch.testing.assert_close(part[b], mean / mean.square().sum().sqrt())
