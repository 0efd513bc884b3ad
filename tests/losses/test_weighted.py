from __future__ import annotations

import json

import pytest
import torch

from tagreel.errors import RecipeError
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.losses.weighted import WeightedCrossEntropy


@pytest.fixture
def problem():
    torch.manual_seed(0)
    return torch.randn(5, 4), (torch.rand(5, 4) < 0.4).float()


def written(path, data) -> str:
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.1])
def test_alpha_follows_willows_equation(alpha, follows_the_equation):
    def term(y, z, p):
        return -2 * (alpha * y * torch.log(p) + (1 - alpha) * (1 - y) * torch.log(1 - p))

    follows_the_equation(WeightedCrossEntropy(alpha=alpha), term)


def test_by_default_it_is_cross_entropy(problem):
    torch.testing.assert_close(WeightedCrossEntropy()(*problem), CrossEntropy()(*problem))


def test_weights_of_classes_are_taken_as_they_are(problem, tmp_path):
    logits, labels = problem
    weights = [0.5, 2, 0, 1.5]
    loss = WeightedCrossEntropy(weights=written(tmp_path / "weights.json", weights))
    expected = CrossEntropy()(logits, labels, torch.tensor(weights).expand_as(labels))
    torch.testing.assert_close(loss(logits, labels), expected)
    rated = torch.rand(labels.shape)
    expected = CrossEntropy()(logits, labels, rated * torch.tensor(weights))
    torch.testing.assert_close(loss(logits, labels, rated), expected)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 1 - 1e-9])
def test_counts_weigh_by_the_effective_number(beta, problem, tmp_path):
    logits, labels = problem
    counts = [1, 10, 1_000, 500_000]
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    weights = torch.tensor([w * 4 / sum(raw) for w in raw])
    loss = WeightedCrossEntropy(counts=written(tmp_path / "counts.json", counts), beta=beta)
    expected = CrossEntropy()(logits, labels, weights.expand_as(labels))
    torch.testing.assert_close(loss(logits, labels), expected, rtol=1e-4, atol=0)
    assert loss.class_weights.mean().item() == pytest.approx(1)
    if beta > 0.9999:
        assert loss.class_weights[0] / loss.class_weights[1] == pytest.approx(10, rel=1e-3)


def test_a_class_never_seen_weighs_like_one_seen_once(tmp_path):
    loss = WeightedCrossEntropy(counts=written(tmp_path / "counts.json", [0, 1, 50]))
    loss.prepare()
    assert loss.class_weights.isfinite().all()
    assert loss.class_weights[0] == loss.class_weights[1] > loss.class_weights[2]


def test_a_checkpoint_knows_the_counts(problem, tmp_path):
    counts = [3, 50, 7, 1]
    model = written(tmp_path / "model.json", {"format": 1, "facts": {"train_counts": counts}})
    plain = written(tmp_path / "counts.json", counts)
    losses = [WeightedCrossEntropy(counts=path)(*problem) for path in (model, plain)]
    torch.testing.assert_close(*losses)


def test_a_real_checkpoint_knows_the_counts(run):
    checkpoint = next((run / "checkpoints").iterdir()) / "model.json"
    loss = WeightedCrossEntropy(counts=str(checkpoint))
    loss.prepare()
    assert loss.class_weights.shape == (120,)


def test_the_file_is_read_when_the_training_starts(problem, tmp_path):
    path = tmp_path / "weights.json"
    loss = WeightedCrossEntropy(weights=written(path, [1, 2, 3, 4]))
    loss.prepare()
    path.unlink()
    assert loss(*problem).isfinite()
    assert not list(loss.parameters())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2, 3]", "holds 3 numbers; expected one for each of the 4 classes"),
        ("[1, 2, 3, -4]", "expected a JSON list with a number for each class, none negative"),
        ("[1, 2, NaN, 4]", "expected a JSON list"),
        ("[1, 2, Infinity, 4]", "expected a JSON list"),
        ('[1, 2, "3", 4]', "expected a JSON list"),
        ("[0, 0, 0, 0]", "expected a JSON list"),
        ("[]", "expected a JSON list"),
        ("{}", "expected a JSON list"),
        ('{"facts": {}}', "expected a JSON list"),
        ("weights", "Expecting value"),
    ],
)
@pytest.mark.parametrize("option", ["weights", "counts"])
def test_a_file_of_anything_else_is_refused(option, text, message, problem, tmp_path):
    path = tmp_path / "numbers.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message) as error:
        WeightedCrossEntropy(**{option: str(path)})(*problem)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(RecipeError, match=r"loss: nowhere\.json: No such file"):
        WeightedCrossEntropy(weights="nowhere.json").prepare()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"alpha": 1.0}, "alpha=1.0"),
        ({"beta": 1.0}, "beta=1.0"),
        ({"weights": "a.json", "counts": "b.json"}, "both set; expected one of them"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        WeightedCrossEntropy(**options)
