"""What every metric promises; a new file in tagreel/metrics is found and held to it."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tagreel.metrics
from tagreel.metrics._scored import Scored


def _metrics():
    for module in pkgutil.iter_modules(tagreel.metrics.__path__):
        if not module.name.startswith("_"):
            found = importlib.import_module(f"tagreel.metrics.{module.name}")
            for name, value in vars(found).items():
                if inspect.isclass(value) and value.__module__ == found.__name__ and not name.startswith("_"):
                    yield pytest.param(value, id=name)


every_metric = pytest.mark.parametrize("metric", list(_metrics()))


def _videos(seed, videos=60, classes=11, levels=9):
    """Few levels of score, so that ties abound, exact in bfloat16; labels that follow the scores somewhat."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (videos, classes)) / (levels - 1)
    labels = rng.random((videos, classes)) < 0.4 * scores
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(labels)


def _value(metric, scores, labels):
    made = metric()
    made.update(scores, labels)
    return made.compute()


def test_the_walk_finds_the_metrics():
    assert {"GlobalAveragePrecision", "HitAt1"} <= {param.id for param in _metrics()}


@every_metric
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_batches_and_their_order_change_nothing(metric, seed, cuts):
    scores, labels = _videos(seed)
    shuffled = torch.tensor(np.random.default_rng(seed).permutation(60))
    made = metric()
    for rows in np.split(shuffled.numpy(), sorted(cuts)):
        made.update(scores[rows], labels[rows])
    assert made.compute() == _value(metric, scores, labels)


@every_metric
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(4)))
def test_merging_in_any_order_is_as_one_metric(metric, seed, order):
    scores, labels = _videos(seed)
    parts = [metric() for _ in range(4)]  # the last one has seen nothing
    for part, rows in zip(parts, ((0, 7), (7, 8), (8, 60)), strict=False):
        part.update(scores[slice(*rows)], labels[slice(*rows)])
    total = metric()
    for i in order:
        total.merge(parts[i])
    assert total.compute() == _value(metric, scores, labels)


@every_metric
def test_merging_leaves_the_other_one_as_it_was(metric):
    first, second = metric(), metric()
    first.update(*_videos(0))
    second.update(*_videos(1))
    before = second.compute()
    first.merge(second)
    first.update(*_videos(2))
    assert second.compute() == before


@every_metric
def test_the_value_is_a_float_from_0_to_1_and_differs_between_data(metric):
    values = [_value(metric, *_videos(seed)) for seed in range(5)]
    assert all(type(value) is float and 0 < value < 1 for value in values)
    assert len(set(values)) > 1


@every_metric
def test_computing_in_between_changes_nothing(metric):
    scores, labels = _videos(3)
    made = metric()
    for row in range(60):
        made.update(scores[row : row + 1], labels[row : row + 1])
        made.compute()
    assert made.compute() == made.compute() == _value(metric, scores, labels)


@every_metric
def test_reset_forgets_every_video(metric):
    made = metric()
    made.update(*_videos(4, classes=5))
    made.reset()
    assert made.compute() == 0.0
    made.update(*_videos(5))
    assert made.compute() == _value(metric, *_videos(5))


@every_metric
def test_nothing_seen_and_empty_batches_give_0(metric):
    made = metric()
    assert made.compute() == 0.0
    made.update(torch.zeros(0, 11), torch.zeros(0, 11))
    assert made.compute() == 0.0
    made.update(*_videos(6))
    made.update(torch.zeros(0, 11), torch.zeros(0, 11))
    assert made.compute() == _value(metric, *_videos(6))


@every_metric
def test_no_labels_at_all_is_no_error(metric):
    scores = _videos(7)[0]
    assert _value(metric, scores * 0, torch.zeros(60, 11)) == 0.0
    assert 0.0 <= _value(metric, scores, torch.zeros(60, 11)) <= 1.0


@every_metric
@pytest.mark.parametrize("classes", [1, 2, 19, 20, 21, 300, 900])
def test_any_number_of_classes(metric, classes):
    scores, labels = _videos(8, classes=classes)
    assert 0.0 < _value(metric, scores, labels) <= 1.0


@every_metric
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_dtypes_of_equal_scores_agree(metric, dtype):
    scores, labels = _videos(9)
    expected = _value(metric, scores, labels)
    for label_dtype in (torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16):
        assert _value(metric, scores.to(dtype), labels.to(label_dtype)) == expected


@every_metric
def test_only_labels_above_zero_are_positive(metric):
    scores, labels = _videos(10)
    odd = torch.where(labels, 0.25, -1.0)
    assert _value(metric, scores, odd) == _value(metric, scores, labels)


@every_metric
def test_arrays_lists_and_views_are_taken(metric):
    scores, labels = _videos(11)
    expected = _value(metric, scores, labels)
    read_only = scores.numpy().copy()
    read_only.flags.writeable = False
    assert _value(metric, read_only, labels.numpy()) == expected
    assert _value(metric, scores.numpy()[::-1], labels.numpy()[::-1]) == expected
    assert _value(metric, scores.tolist(), labels.tolist()) == expected
    assert _value(metric, scores.T.contiguous().T, labels.T.contiguous().T) == expected
    assert _value(metric, scores.clone().requires_grad_(), labels) == expected
    with torch.inference_mode():
        assert _value(metric, scores.clone(), labels.clone()) == expected


@every_metric
@pytest.mark.parametrize("videos", [1, 60])
def test_inputs_are_neither_changed_nor_referred_to(metric, videos):
    scores, labels = _videos(12, videos=videos)
    expected = _value(metric, scores.clone(), labels.clone())
    made, given_scores, given_labels = metric(), scores.clone(), labels.clone()
    made.update(given_scores, given_labels)
    assert torch.equal(given_scores, scores)
    assert torch.equal(given_labels, labels)
    given_scores.fill_(0.5)
    given_labels.fill_(1)
    assert made.compute() == expected


@every_metric
def test_one_checked_batch_serves_all_metrics(metric):
    scored = Scored(*_videos(13, classes=300))
    for depth in (1, 40, 3):
        scored.top(depth)
        made = metric()
        made.add(scored)
        assert made.compute() == _value(metric, *_videos(13, classes=300))


@every_metric
def test_copies_and_pickles_count_on_by_themselves(metric):
    made = metric()
    made.update(*_videos(14))
    before = made.compute()
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):  # noqa: S301
        assert twin.compute() == before
        twin.update(*_videos(15))
        assert twin.compute() != before
    assert made.compute() == before


@every_metric
@pytest.mark.parametrize(
    ("scores", "labels", "found"),
    [
        ((3, 4), (3, 5), r"\(3, 4\) and \(3, 5\)"),
        ((3, 4), (4, 4), r"\(3, 4\) and \(4, 4\)"),
        ((4,), (4,), r"\(4,\) and \(4,\)"),
        ((2, 3, 4), (2, 3, 4), r"\(2, 3, 4\)"),
        ((3, 0), (3, 0), r"\(3, 0\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(metric, scores, labels, found):
    with pytest.raises(ValueError, match=found):
        metric().update(torch.zeros(scores), torch.zeros(labels))


@every_metric
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nan_is_refused_with_its_place_and_leaves_the_state(metric, dtype):
    scores, labels = _videos(16)
    made = metric()
    made.update(scores, labels)
    before = made.compute()
    wrong = scores.to(dtype, copy=True)
    wrong[7, 4] = wrong[9, 2] = torch.nan
    with pytest.raises(ValueError, match="scores: 2 are NaN; the first is class 4 of video 7"):
        made.update(wrong, labels)
    with pytest.raises(ValueError, match="labels: 2 are NaN"):
        made.update(scores, wrong)
    assert made.compute() == before


@every_metric
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(metric):
    for classes in (11, 900):
        scores, labels = _videos(17, classes=classes)
        assert _value(metric, scores.cuda(), labels.cuda()) == _value(metric, scores, labels)
        assert _value(metric, scores.cuda(), labels) == _value(metric, scores, labels)
