from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tagreel import checkpoint
from tagreel.errors import DataError, RecipeError
from tagreel.evaluate import Evaluation, Scorer, evaluate
from tagreel.loader import Loader
from tagreel.metrics.average_precision import MeanAveragePrecision
from tagreel.metrics.gap import GlobalAveragePrecision
from tagreel.metrics.segment_average_precision import SegmentMeanAveragePrecision
from tagreel.recipe import Recipe
from tagreel.tagger import Tagger
from tests.conftest import InMemory, video

CPU = torch.device("cpu")
WIDTHS = {"rgb": 12, "audio": 6}


@pytest.fixture
def model(run) -> Tagger:
    return checkpoint.load(run)


def loader(data, *, batch_size: int = 16, **options) -> Loader:
    return Loader(data, features=WIDTHS, classes=120, batch_size=batch_size, **options)


def segments(count: int = 24) -> InMemory:
    """Five-second segments, each rated on three classes of which some are true."""
    rng = np.random.default_rng(0)
    examples = []
    for index in range(count):
        rated = np.sort(rng.choice(120, 3, replace=False))
        example = video(
            f"v{index}:0",
            rgb=rng.integers(0, 256, (5, 12), np.uint8),
            audio=rng.integers(0, 256, (5, 6), np.uint8),
            labels=rated[rng.random(3) < 0.5],
        )
        examples.append(replace(example, rated=rated))
    return InMemory(examples)


def same(ours: Evaluation, theirs: Evaluation) -> None:
    assert ours.videos == theirs.videos
    assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-6)
    np.testing.assert_allclose(ours.average_precision, theirs.average_precision, rtol=1e-6)
    np.testing.assert_array_equal(ours.support, theirs.support)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_the_batch_size_changes_nothing(batch_size, model, test_data):
    same(
        evaluate(model, loader(test_data, batch_size=batch_size), device=CPU),
        evaluate(model, loader(test_data), device=CPU),
    )


def test_threads_change_nothing(model, test_data):
    ours = evaluate(model, loader(test_data, threads=3), device=CPU)
    assert ours.metrics == evaluate(model, loader(test_data), device=CPU).metrics


def scored(model: Tagger, data) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores and labels of all videos, one video at a time through the public door."""
    scores, labels = [], []
    for shard, count in enumerate(data.counts):
        for record in range(count):
            example = data.open(shard)[record]
            scores.append(model.scores({name: frames[None] for name, frames in example.streams.items()})[0])
            truth = torch.zeros(120)
            truth[example.labels] = 1
            labels.append(truth)
    return torch.stack(scores), torch.stack(labels)


def test_the_metrics_are_those_of_the_models_scores(model, test_data):
    found = evaluate(model, loader(test_data), device=CPU)
    gap, mean = GlobalAveragePrecision(), MeanAveragePrecision()
    scores, labels = scored(model, test_data)
    gap.update(scores, labels)
    mean.update(scores, labels)
    assert found.metrics["gap@20"] == pytest.approx(gap.compute(), rel=1e-5)
    assert found.metrics["map"] == pytest.approx(mean.compute(), rel=1e-5)
    hits = labels[torch.arange(len(labels)), scores.argmax(1)].mean().item()
    assert found.metrics["hit@1"] == pytest.approx(hits)
    assert found.videos == 50
    np.testing.assert_array_equal(found.support, labels.sum(0).numpy())
    assert set(found.metrics) == {"gap@20", "map", "map_top20", "hit@1", "perr", "calibration_error"}


def test_of_a_segment_only_the_rated_classes_count(model):
    data = segments()
    found = evaluate(model, loader(data, batch_size=5), device=CPU)
    scores, labels = scored(model, data)
    rated = torch.zeros_like(labels)
    for row, example in zip(rated, data.shards[0].examples, strict=True):
        row[example.rated] = 1
    masked, plain = GlobalAveragePrecision(), GlobalAveragePrecision()
    masked.update(scores * rated, labels)
    plain.update(scores, labels)
    assert found.metrics["gap@20"] == pytest.approx(masked.compute(), rel=1e-5)
    assert abs(masked.compute() - plain.compute()) > 0.01


def test_of_segments_there_is_also_the_score_of_2019_whole_videos_among_them_aside(model, test_data):
    data = segments()
    found = evaluate(model, loader(data, batch_size=5), device=CPU)
    scores, labels = scored(model, data)
    rated = torch.zeros_like(labels)
    for row, example in zip(rated, data.shards[0].examples, strict=True):
        row[example.rated] = 1
    metric = SegmentMeanAveragePrecision()
    metric.update(scores, labels, rated)
    assert found.metrics["map@100000"] == pytest.approx(metric.compute(), rel=1e-5)
    assert metric.compute() < 1
    mixed = InMemory([*data.shards[0].examples, *(test_data.open(0)[index] for index in range(9))])
    whole = evaluate(model, loader(mixed, batch_size=5), device=CPU)
    assert whole.metrics["map@100000"] == pytest.approx(metric.compute(), rel=1e-5)


def test_what_nobody_rated_takes_places_of_a_class_too():
    count = 100_010
    scores = torch.linspace(0.9, 0.1, count)[:, None].repeat(1, 2)
    labels, rated = torch.zeros(count, 2), torch.zeros(count, 2)
    # Class 0 is true of the very last segment, class 1 of the last that has a place; nobody rated the others.
    labels[-1, 0] = rated[-1, 0] = labels[99_999, 1] = rated[99_999, 1] = 1
    scorer = Scorer()
    for rows in torch.arange(count).split(30_000):
        scorer.update(scores[rows], labels[rows], rated[rows])
    assert scorer.result().metrics["map@100000"] == 0.5


def test_segments_and_whole_videos_may_share_a_batch(model, test_data):
    """A whole video among segments is scored on the classes that it carries."""
    segment, whole = segments(1).shards[0].examples[0], test_data.open(0)[0]
    found = evaluate(model, loader(InMemory([segment, whole])), device=CPU)
    assert found.videos == 2
    assert found.support.sum() == len(segment.labels) + len(whole.labels)


def test_the_model_is_left_in_the_mode_it_was_in(model, test_data):
    model.train()
    evaluate(model, loader(test_data), device=CPU)
    assert model.training
    with pytest.raises(DataError):
        evaluate(model, loader(InMemory([DataError("gone", path="x", record=0)])), device=CPU)
    assert model.training


def test_dropout_and_batch_statistics_play_no_part(run, tiny, test_data):
    from functools import partial

    from tagreel.layers.context_gating import ContextGating
    from tagreel.layers.dropout import Dropout
    from tagreel.tagger import build

    torch.manual_seed(0)
    recipe = Recipe(**{**vars(tiny), "body": (partial(Dropout, rate=0.5), partial(ContextGating))})
    model = build(recipe)
    first, again = (evaluate(model, loader(test_data), device=CPU).metrics for _ in range(2))
    assert first == again


def test_progress_is_told_in_videos(model, test_data):
    told: list[int] = []
    evaluate(model, loader(test_data), device=CPU, on_batch=told.append)
    assert told == [16, 32, 48, 50]


def test_weights_that_are_not_numbers_are_one_line(model, test_data):
    with torch.no_grad():
        next(model.head.parameters()).fill_(float("nan"))
    with pytest.raises(RecipeError, match=r"NaN.*; its weights cannot be used"):
        evaluate(model, loader(test_data), device=CPU)


def test_nothing_left_to_score_is_an_error(model):
    bad = InMemory([DataError("the checksum is wrong", path="shard0", record=0)])
    with pytest.raises(DataError, match="shard0: no record could be read"):
        evaluate(model, loader(bad, skip_damaged=5), device=CPU)


def test_a_perfect_scorer_scores_one():
    labels = torch.zeros(6, 30)
    labels[torch.arange(6), torch.arange(6)] = 1
    scorer = Scorer()
    for row in range(0, 6, 2):
        scorer.update(labels[row : row + 2], labels[row : row + 2])
    found = scorer.result()
    assert found.videos == 6
    for name in ("gap@20", "map", "hit@1", "perr"):
        assert found.metrics[name] == pytest.approx(1.0)
    assert found.metrics["map_top20"] == pytest.approx(6 / 30)
    assert found.metrics["calibration_error"] == pytest.approx(0.0)
    assert np.isnan(found.average_precision[6:]).all()
    assert found.average_precision[:6].tolist() == [1.0] * 6


def test_calibration_looks_at_rated_classes_alone():
    scorer = Scorer()
    labels = torch.zeros(40, 100)
    labels[:20, 7] = 1
    rated = torch.zeros(40, 100)
    rated[:, 7] = 1
    scorer.update(torch.full((40, 100), 0.9), labels, rated)
    assert scorer.result().metrics["calibration_error"] == pytest.approx(0.4, abs=0.02)


def test_data_that_name_the_classes_otherwise_are_refused(model, planted):
    data = InMemory(list(planted.examples(0, 3)))
    loader = Loader(data, features=model.features, classes=120, batch_size=2)
    data.label_names = list(planted.label_names)
    evaluate(model, loader, device=torch.device("cpu"))
    data.label_names[4:6] = data.label_names[5], data.label_names[4]
    with pytest.raises(DataError, match=r"class 4 is .* here and .* in the model"):
        evaluate(model, loader, device=torch.device("cpu"))
