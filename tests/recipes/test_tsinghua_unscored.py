"""Tsinghua's experiments without a score: sizes to the last digit, and what their text and code say."""

from __future__ import annotations

import pytest
import torch

from tagreel import recipe as recipes
from tagreel.pretrain import FramePredictor
from tagreel.tagger import build, count_parameters

C = 4716
PARAMETERS = {
    "thu-separated-tasks-25": 47_843_402,
    "thu-loss-ignore-easy-negatives": 41_465_048,
    "thu-loss-ignore-easy-negatives-02": 41_465_048,
    "thu-ae-visual-to-audio": 80_150_232,
    "thu-ae-visual-to-both": 41_697_432,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_has_its_parameters_and_claims_no_score(name):
    recipe = recipes.find(name)
    assert count_parameters(recipe) == recipe.about.parameters == PARAMETERS[name]
    assert not recipe.about.published
    assert "1706.09274" in recipe.about.paper
    assert recipe.classes == C


def bidirectional(dim, *units):
    """Parameters of stacked bidirectional LSTMs with one bias."""
    total = 0
    for width in units:
        total += 2 * 4 * width * (dim + width + 1)
        dim = 2 * width
    return total


def two_experts(dim):
    return 3 * dim * C + 2 * (dim + 1) * C


def test_parameters_are_formulas():
    recipe = recipes.find("thu-separated-tasks-25")
    tasks = 0
    for classes in recipe.head.keywords["classes_per_task"]:
        units = max(80, int(0.7 * classes))
        tasks += 2 * (4 * units * (1152 + units) + 10 * units) + (2 * units + 1) * classes
    assert tasks == PARAMETERS["thu-separated-tasks-25"]
    prototype = 4 * 1024 * (1152 + 1024 + 1) + 4 * 1024 * (2048 + 1)
    assert prototype + two_experts(1024) == PARAMETERS["thu-loss-ignore-easy-negatives"]
    for name, units in (("thu-ae-visual-to-audio", 800), ("thu-ae-visual-to-both", 500)):
        assert bidirectional(1024, *[units] * 3) + two_experts(2 * units) == PARAMETERS[name]


def test_the_25_tasks_share_out_all_classes_and_no_layer():
    recipe = recipes.find("thu-separated-tasks-25")
    counts = recipe.head.keywords["classes_per_task"]
    assert len(recipe.streams) == len(counts) == 25
    assert sum(counts) == C
    assert (min(counts), max(counts)) == (8, 896)
    names = list(recipe.streams)
    assert names[0] == "unknown"
    assert names[1:] == sorted(names[1:])
    with torch.device("meta"):
        model = build(recipe)
    widths = [branch.out_dim for branch in model.streams.values()]
    assert tuple(widths) == recipe.head.keywords["widths"]
    assert (min(widths), max(widths)) == (160, 1254)
    assert recipe.sampling.keywords == {"starts": 12, "stride": 12, "frames": 25}
    assert recipe.training.batch_size == 45


@pytest.mark.parametrize(
    ("name", "threshold"),
    [("thu-loss-ignore-easy-negatives", 0.15), ("thu-loss-ignore-easy-negatives-02", 0.2)],
)
def test_the_loss_leaves_easy_negatives_out(name, threshold):
    loss = recipes.find(name).loss()
    logits = torch.logit(torch.tensor([[threshold - 0.01, threshold + 0.01, 0.05]]))
    labels = torch.tensor([[0.0, 0.0, 1.0]])
    expected = -torch.log1p(torch.tensor(-(threshold + 0.01))) - torch.log(torch.tensor(0.05))
    torch.testing.assert_close(loss(logits, labels), expected)


@pytest.mark.parametrize(
    ("name", "target", "width", "numbers"),
    [
        ("thu-ae-visual-to-audio", ["audio"], 1600, 128),
        ("thu-ae-visual-to-both", ["rgb", "audio"], 1000, 1152),
    ],
)
def test_the_picture_alone_is_read_and_the_pretraining_fits(name, target, width, numbers):
    recipe = recipes.find(name)
    assert [stream.inputs or (name,) for name, stream in recipe.streams.items()] == [("rgb",)]
    for setting in (
        "training.optimizer.lr=0.05",
        "training.schedule.every=3000000",
        "sampling.starts=5",
        "sampling.frames=60",
    ):
        recipe = recipes.override(recipe, setting)
    with torch.device("meta"):
        model, tagger = FramePredictor(recipe, target=target), build(recipe)
    assert (model.prediction.in_features, model.prediction.out_features) == (width, numbers)
    names = {name for name in tagger.state_dict() if name.startswith("streams.")}
    assert set(model.state_dict()) == names | {"prediction.weight", "prediction.bias"}
    assert recipe.sampling()(300, (0,)).step == 5
