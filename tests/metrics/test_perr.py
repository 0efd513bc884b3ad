from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagreel.metrics.perr import PrecisionAtEqualRecall


def _perr(scores, labels, **options):
    metric = PrecisionAtEqualRecall(**options)
    metric.update(scores, labels)
    return metric.compute()


def _perr_by_definition(scores, labels, unlabelled):
    values = []
    for row, truth in zip(scores.tolist(), labels.tolist(), strict=True):
        n = sum(truth)
        if n == 0 and unlabelled == "skip":
            continue
        best = sorted(range(len(row)), key=lambda c: (-row[c], c))[:n]
        values.append(sum(truth[c] and row[c] > 0 for c in best) / n if n else 0.0)
    return sum(values) / len(values)


def test_the_worked_example():
    assert _perr([[0.9, 0.8, 0.1], [0.7, 0.6, 0.2]], [[1, 0, 1], [0, 1, 0]]) == 0.25


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.sampled_from([1, 3, 19, 21, 60, 400]),
    rate=st.sampled_from([0.02, 0.3, 0.9]),
    levels=st.sampled_from([3, 10**6]),
    unlabelled=st.sampled_from(["zero", "skip"]),
)
def test_it_agrees_with_the_definition(seed, classes, rate, levels, unlabelled):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(-levels, levels, (25, classes)) / levels).astype(np.float32)
    labels = rng.random((25, classes)) < rate * rng.random((25, 1))  # videos of few and of many labels
    labels[0, 0], labels[1] = True, False
    expected = _perr_by_definition(scores, labels, unlabelled)
    assert _perr(scores, labels, unlabelled=unlabelled) == pytest.approx(expected, rel=1e-12)


def test_videos_without_labels_are_0_or_skipped():
    scores, labels = [[0.9, 0.1], [0.8, 0.2]], [[1, 0], [0, 0]]
    assert _perr(scores, labels) == 0.5
    assert _perr(scores, labels, unlabelled="skip") == 1.0
    assert _perr(scores[1:], labels[1:], unlabelled="skip") == 0.0


def test_a_score_of_0_is_no_hit():
    assert _perr([[0.5, 0.0, 0.0]], [[1, 1, 0]]) == 0.5


def test_among_equal_scores_the_lower_class_ranks_first():
    assert _perr([[0.5, 0.5]], [[1, 0]]) == 1.0
    assert _perr([[0.5, 0.5]], [[0, 1]]) == 0.0


def test_a_video_with_more_than_20_labels_is_ranked_as_deep():
    scores = np.linspace(1.0, 0.1, 30)[None]
    labels = np.ones((1, 30))
    labels[0, ::5] = 0
    assert labels.sum() == 24
    assert _perr(scores, labels) == pytest.approx(19 / 24)


def test_options_that_do_not_exist_or_fit_are_named():
    with pytest.raises(ValueError, match="unlabelled='drop'; choose one of: zero, skip"):
        PrecisionAtEqualRecall(unlabelled="drop")
    with pytest.raises(ValueError, match="cannot merge unlabelled='skip' into unlabelled='zero'"):
        PrecisionAtEqualRecall().merge(PrecisionAtEqualRecall(unlabelled="skip"))
