"""Willow's and the starter code's models, with the parameters that follow from their code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tagreel.recipe import find, names
from tagreel.sampling import RandomFrames
from tagreel.tagger import build, count_parameters

CLASSES = 4716
INPUT_NORM = 2 * 1152
CONTEXT_GATING = 1024**2 + 2 * 1024
GATED_LINEAR_UNIT = 2 * (1024**2 + 1024)
PROBABILITY_GATING = CLASSES**2 + 2 * CLASSES


def _experts(width, classes=CLASSES):
    """Gates for two experts and the one that says no, without bias; experts with."""
    return width * classes * 3 + width * classes * 2 + classes * 2


def _clusters(*streams, matrices, widths=1):
    """Cluster models to the experts: `matrices` of D × K a stream, batch norm, `widths` · D · K to 1,024."""
    pools = sum(matrices * d * k + 2 * k for d, k in streams)
    return INPUT_NORM + pools + (sum(widths * d * k for d, k in streams) + 1) * 1024 + _experts(1024)


def _netvlad(*streams):
    return _clusters(*streams, matrices=2)


def _netfv(*streams):
    return _clusters(*streams, matrices=3, widths=2)


def _words(visual, audio):
    pools = 1024 * visual + 2 * visual + 128 * audio + 2 * audio
    return INPUT_NORM + pools + (visual + audio + 1) * 1024 + _experts(1024)


def _recurrent(gates, width, units):
    return gates * units * (width + units + 1) + gates * units * (units + units + 1)


NETVLAD = _netvlad((1024, 256), (128, 128))
NETVLAD_128 = _netvlad((1024, 128), (128, 64))
NETRVLAD = _clusters((1024, 256), (128, 128), matrices=1)
NETFV = _netfv((1024, 128), (128, 64))
GATED_WORDS = _words(4096, 512) + 4096 * 1024 + 1024 * 4096 + 2 * 4096
LSTM = _recurrent(4, 1152, 1024) + _experts(4 * 1024)
GRU = _recurrent(3, 1152, 1200) + _experts(2 * 1200)
BOTH_GATINGS = CONTEXT_GATING + PROBABILITY_GATING

# Name, GAP@20 in percent as published, parameters by the formulas above, and as a number where it is known.
ROWS = [
    ("willow-avg-lr", 71.4, 1152 * CLASSES + CLASSES, 5_437_548),
    ("willow-avg-moe-cg", 74.1, _experts(1152) + PROBABILITY_GATING, None),
    ("willow-lstm", 81.7, LSTM, 113_902_808),
    ("willow-gru", 82.0, GRU, 73_715_832),
    ("willow-bow-4096", 81.6, _words(4096, 512), None),
    ("willow-netfv-128", 82.2, NETFV, None),
    ("willow-netrvlad-256", 82.3, NETRVLAD, None),
    ("willow-netvlad-256", 82.4, NETVLAD, 309_929_176),
    ("willow-gated-bow-4096", 82.0, GATED_WORDS, 41_543_128),
    ("willow-gated-netfv-128", 83.0, NETFV + BOTH_GATINGS, 333_090_240),
    ("willow-gated-netrvlad-256", 83.1, NETRVLAD + BOTH_GATINGS, 332_951_360),
    ("willow-gated-netvlad-256", 83.2, NETVLAD + BOTH_GATINGS, 333_229_888),
    ("willow-cg-none-none", 82.2, NETVLAD_128, 167_043_928),
    ("willow-glu-none", 82.4, NETVLAD_128 + GATED_LINEAR_UNIT, None),
    ("willow-cg-none", 82.7, NETVLAD_128 + CONTEXT_GATING, None),
    ("willow-glu-cg", 82.7, NETVLAD_128 + GATED_LINEAR_UNIT + PROBABILITY_GATING, None),
    ("willow-cg-cg", 83.0, NETVLAD_128 + BOTH_GATINGS, 190_344_640),
    ("willow-netvlad-early", 81.9, _netvlad((1152, 256)), None),
    ("willow-netvlad-late", 82.4, NETVLAD, 309_929_176),
    ("willow-netfv-early", 81.2, _netfv((1152, 128)), None),
    ("willow-netfv-late", 82.2, NETFV, None),
    ("willow-gru-early", 82.2, GRU, 73_715_832),
    (
        "willow-gru-late",
        82.1,
        _recurrent(3, 1024, 1024) + _recurrent(3, 128, 128) + _experts(2 * 1152),
        None,
    ),
    ("willow-lstm-early", 81.7, LSTM, 113_902_808),
    (
        "willow-lstm-late",
        81.1,
        _recurrent(4, 1024, 1024) + _recurrent(4, 128, 128) + _experts(4 * 1152),
        None,
    ),
    ("willow-rel-gated-netvlad-256", None, NETVLAD + BOTH_GATINGS, 333_229_888),
    ("willow-rel-gated-netfv-128", None, NETFV + BOTH_GATINGS, 333_090_240),
    ("willow-rel-gated-dbow-4096", None, GATED_WORDS, 41_543_128),
    ("willow-rel-soft-dbow-8000", None, _words(8000, 1000), 41_712_680),
    ("willow-rel-gated-netrvlad-256", None, NETRVLAD + BOTH_GATINGS, 332_951_360),
    ("willow-rel-gru-1200", None, GRU, 73_715_832),
    ("willow-rel-lstm-1024", None, LSTM, 113_902_808),
]


@pytest.mark.parametrize(("name", "gap", "formula", "stated"), ROWS, ids=[row[0] for row in ROWS])
def test_a_row_has_the_parameters_and_the_score_of_its_paper(name, gap, formula, stated):
    recipe = find(name)
    assert count_parameters(recipe) == recipe.about.parameters == formula
    assert stated in (None, formula)
    published = {} if gap is None else {"GAP@20 (local validation)": pytest.approx(gap / 100)}
    assert recipe.about.published == published


def test_no_row_is_left_out():
    ensembles_and_studies = ("willow-ens", "willow-datasize")
    found = {name for name in names() if name.startswith("willow-")}
    assert {row[0] for row in ROWS} == {n for n in found if not n.startswith(ensembles_and_studies)}


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("willow-gated-netvlad-256", 3862, 321_528_380),
        ("starter-frame-logistic", 3862, 4_452_886),
        ("starter-frame-logistic", 4716, 5_437_548),
        ("starter-moe-video", 4716, 27_173_592),
        ("starter-lstm", 4716, 41_465_048),  # "around 40 million"
        ("starter-lstm", 3862, _recurrent(4, 1152, 1024) + _experts(1024, 3862)),
        (
            "starter-dbof",
            3862,
            INPUT_NORM + 1152 * 8192 + 2 * 8192 + 8192 * 1024 + 2 * 1024 + _experts(1024, 3862),
        ),
    ],
)
def test_parameters_with_these_classes(name, classes, expected):
    assert count_parameters(replace(find(name), classes=classes)) == expected


@pytest.mark.parametrize(
    ("name", "steps", "batch_size", "factor", "head_l2"),
    [
        ("willow-rel-gated-netvlad-256", 700_000, 80, 0.8, 1e-6),
        ("willow-rel-gated-netfv-128", 600_000, 80, 0.8, 1e-6),
        ("willow-rel-gated-dbow-4096", 1_000_000, 80, 0.9, 1e-6),
        ("willow-rel-soft-dbow-8000", 800_000, 80, 0.9, 1e-8),
        ("willow-rel-gated-netrvlad-256", 600_000, 80, 0.8, 1e-6),
        ("willow-rel-gru-1200", 300_000, 128, 0.9, 1e-6),
        ("willow-rel-lstm-1024", 400_000, 128, 0.9, 1e-8),
    ],
)
def test_the_released_models_are_trained_by_their_commands(name, steps, batch_size, factor, head_l2):
    training = find(name).training
    assert (training.steps, training.batch_size, training.head_l2) == (steps, batch_size, head_l2)
    assert training.schedule.keywords == {"factor": factor, "every": 4_000_000}
    assert training.optimizer.keywords == {"lr": 2e-4}
    assert (training.clip, training.clip_norm) == ("tensor", 1.0)


@pytest.mark.parametrize(
    ("name", "frames"), [("willow-lstm", 150), ("willow-netvlad-256", 300), ("starter-dbof", 30)]
)
def test_models_that_read_random_frames(name, frames):
    sampling = find(name).sampling
    assert (sampling.func, sampling.keywords) == (RandomFrames, {"frames": frames})


STARTER = ["starter-frame-logistic", "starter-dbof", "starter-lstm"]


@pytest.mark.parametrize("name", [row[0] for row in ROWS] + STARTER)
def test_on_narrow_features_every_part_of_it_learns(name):
    recipe = replace(find(name), features={"rgb": 8, "audio": 4}, classes=7)
    torch.manual_seed(0)
    model = build(recipe)
    streams = {feature: torch.randn(6, 5, width) for feature, width in model.features.items()}
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 4, 5, 2])[:, None]
    logits = model(streams, dict.fromkeys(streams, mask))
    assert logits.shape == (6, 7)
    labels = (torch.rand(6, 7) < 0.3).float()
    recipe.loss()(logits, labels).backward()
    for part, parameter in model.named_parameters():
        assert parameter.grad is not None, part
        assert parameter.grad.isfinite().all(), part
        assert parameter.grad.any(), part
