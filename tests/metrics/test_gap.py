from __future__ import annotations

import heapq
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from tagreel.metrics.gap import GlobalAveragePrecision

WORKED_SCORES = [[0.9, 0.8, 0.1], [0.7, 0.6, 0.2]]
WORKED_LABELS = [[1, 0, 1], [0, 1, 0]]


def _videos(seed, videos=40, classes=30, levels=None, rate=0.1):
    rng = np.random.default_rng(seed)
    scores = (
        rng.random((videos, classes))
        if levels is None
        else rng.integers(0, levels, (videos, classes)) / levels
    )
    return scores.astype(np.float32), rng.random((videos, classes)) < rate


def _pooled(scores, labels, k):
    """The pooled top k pairs (score, label); of equal scores the lower classes are kept."""
    pairs = []
    for row, truth in zip(scores.tolist(), labels.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]
        pairs += [(row[c], truth[c]) for c in best]
    return pairs


def _gap_by_definition(scores, labels, k):
    """Down the pooled ranking threshold by threshold: precision times the gain in recall."""
    pairs, total = _pooled(scores, labels, k), labels.sum()
    gap = last_recall = 0.0
    for threshold in sorted({score for score, _ in pairs}, reverse=True):
        taken = [label for score, label in pairs if score >= threshold]
        recall = sum(taken) / total
        gap += sum(taken) / len(taken) * (recall - last_recall)
        last_recall = recall
    return gap


def _starter_gap(batches, k):
    """The YouTube-8M starter code's GAP, statement by statement, for Python 3."""
    heap, total = [], 0
    for scores, labels in batches:
        by_class = [[] for _ in range(scores.shape[1])]
        for row, truth in zip(scores, labels, strict=True):
            kept = min(k, len(row))
            for c in np.argpartition(row, -kept)[-kept:]:
                by_class[c].append((row[c], truth[c]))
        total += labels.sum()
        for pairs in by_class:
            for pair in pairs:
                heapq.heappush(heap, pair)
    if not heap or total == 0:
        return 0.0
    scores, labels = np.array(list(zip(*heap, strict=True)))
    random.seed(0)
    shuffled = random.sample(range(len(scores)), len(scores))
    scores, labels = scores[shuffled], labels[shuffled]
    ap = found = 0.0
    for i, at in enumerate(sorted(range(len(scores)), key=lambda at: scores[at], reverse=True)):
        if labels[at] > 0:
            found += 1
            ap += found / (i + 1) * (1.0 / total)
    return ap


def _gap(batches, **options):
    metric = GlobalAveragePrecision(**options)
    for scores, labels in batches:
        metric.update(scores, labels)
    return metric.compute()


@pytest.mark.parametrize("ties", ["together", "starter"])
@pytest.mark.parametrize(("top_k", "expected"), [(20, 2 / 3), (2, 0.5), (1, 1 / 3)])
def test_the_worked_example(ties, top_k, expected):
    assert _gap([(WORKED_SCORES, WORKED_LABELS)], top_k=top_k, ties=ties) == pytest.approx(
        expected, rel=1e-15
    )


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 30),
    top_k=st.integers(1, 25),
    levels=st.sampled_from([None, 2, 10]),
)
def test_it_agrees_with_the_definition(seed, classes, top_k, levels):
    scores, labels = _videos(seed, classes=classes, levels=levels)
    labels[0, 0] = True
    expected = _gap_by_definition(scores, labels, top_k)
    assert _gap([(scores, labels)], top_k=top_k) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("levels", [None, 10])
def test_it_agrees_with_scikit_learn_where_every_class_is_ranked(levels):
    scores, labels = _videos(0, classes=18, levels=levels)
    expected = average_precision_score(labels.ravel(), scores.ravel())
    assert _gap([(scores, labels)]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("levels", [None, 10])
def test_it_agrees_with_scikit_learn_where_positives_are_left_out(levels):
    scores, labels = _videos(1, classes=50, levels=levels)
    ranked, truth = zip(*_pooled(scores, labels, 20), strict=True)
    recall = sum(truth) / labels.sum()
    assert recall < 1
    expected = average_precision_score(truth, ranked) * recall
    assert _gap([(scores, labels)]) == pytest.approx(expected, rel=1e-12)


def test_ties_at_the_last_place_go_to_the_lower_class():
    scores = [[0.9, 0.5, 0.5, 0.5]]
    assert _gap([(scores, [[0, 1, 0, 0]])], top_k=2) == 0.5
    assert _gap([(scores, [[0, 0, 1, 0]])], top_k=2) == 0.0


def test_a_video_with_more_labels_than_places_cannot_reach_1():
    assert _gap([(np.linspace(0, 1, 25)[None], np.ones((1, 25)))]) == pytest.approx(20 / 25)


def test_videos_without_labels_add_false_positives():
    assert _gap([([[0.9, 0.1]], [[0, 0]]), ([[0.8, 0.2]], [[1, 0]])]) == 0.5


def test_all_scores_equal_give_the_rate_of_positives():
    assert _gap([(np.zeros((10, 5)), np.eye(10, 5))]) == pytest.approx(5 / 50)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 60),
    levels=st.sampled_from([None, 1, 3, 20]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_starter_ties_give_the_starter_codes_result_to_the_last_bit(seed, classes, levels, dtype):
    scores, labels = _videos(seed, classes=classes, levels=levels)
    scores = torch.from_numpy(scores - np.float32(0.25)).to(dtype).float().numpy()
    cuts = np.sort(np.random.default_rng(seed).integers(0, 40, 2))
    batches = list(zip(np.split(scores, cuts), np.split(labels, cuts), strict=True))
    for k in (5, 20):
        assert _gap(batches, top_k=k, ties="starter") == _starter_gap(batches, k)


def test_starter_ties_take_zeros_of_both_signs_as_equal():
    scores = np.where(np.arange(200).reshape(10, 20) % 3, 0.0, -0.0).astype(np.float32)
    labels = np.random.default_rng(0).random((10, 20)) < 0.3
    assert _gap([(scores, labels)], ties="starter") == _starter_gap([(scores, labels)], 20)


def test_starter_ties_leave_the_global_random_state_alone():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    _gap([_videos(0)], ties="starter")
    assert random.random() == expected


def test_both_rules_agree_where_there_is_no_tie():
    batch = _videos(2, classes=100)
    assert _gap([batch], ties="starter") == pytest.approx(_gap([batch]), rel=1e-12)


def test_the_curve_goes_down_the_pooled_ranking():
    metric = GlobalAveragePrecision()
    metric.update(WORKED_SCORES, WORKED_LABELS)
    recall, precision = metric.curve()
    assert recall.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert precision.tolist() == pytest.approx([1, 2 / 4, 3 / 6])


@pytest.mark.parametrize("ties", ["together", "starter"])
def test_the_curve_thins_out_to_the_points_asked_for_and_keeps_its_ends(ties):
    scores, labels = _videos(3, videos=400, levels=50)
    metric = GlobalAveragePrecision(ties=ties)
    metric.update(scores, labels)
    every, few = metric.curve(points=10**6), metric.curve(points=11)
    assert len(few[0]) == 11
    assert np.all(np.diff(every[0]) >= 0)
    assert (few[0][0], few[0][-1]) == (every[0][0], every[0][-1])
    points = set(zip(*every, strict=True))
    assert set(zip(*few, strict=True)) <= points
    pairs = _pooled(scores, labels, 20)
    for threshold in (0.9, 0.98):
        taken = [label for score, label in pairs if score >= np.float32(threshold)]
        assert (sum(taken) / labels.sum(), sum(taken) / len(taken)) in points


def test_the_curve_of_nothing_is_empty():
    metric = GlobalAveragePrecision()
    assert [len(axis) for axis in metric.curve()] == [0, 0]
    metric.update([[0.5, 0.1]], [[0, 0]])
    assert [len(axis) for axis in metric.curve()] == [0, 0]


def test_options_that_do_not_exist_or_fit_are_named():
    with pytest.raises(ValueError, match="ties='random'; choose one of: together, starter"):
        GlobalAveragePrecision(ties="random")
    with pytest.raises(ValueError, match="top_k=0"):
        GlobalAveragePrecision(top_k=0)
    with pytest.raises(ValueError, match="cannot merge top_k=5 into top_k=20"):
        GlobalAveragePrecision().merge(GlobalAveragePrecision(top_k=5))
    with pytest.raises(ValueError, match="cannot merge ties='starter'"):
        GlobalAveragePrecision().merge(GlobalAveragePrecision(ties="starter"))
