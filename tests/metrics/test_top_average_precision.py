from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagreel.metrics.average_precision import MeanAveragePrecision
from tagreel.metrics.top_average_precision import TopMeanAveragePrecision


def _videos(seed, videos=50, classes=40, levels=None):
    rng = np.random.default_rng(seed)
    scores = (
        rng.random((videos, classes))
        if levels is None
        else rng.integers(0, levels, (videos, classes)) / levels
    )
    return scores.astype(np.float32), rng.random((videos, classes)) < 0.05


def _measured(scores, labels, **options):
    metric = TopMeanAveragePrecision(**options)
    for start in range(0, len(scores), 17):
        metric.update(scores[start : start + 17], labels[start : start + 17])
    return metric


def _per_class_by_definition(scores, labels, k):
    """Each class ranks the videos that have it among their k best, and divides by all its positives."""
    ranked = [[] for _ in range(scores.shape[1])]
    for row, truth in zip(scores.tolist(), labels.tolist(), strict=True):
        for c in sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]:
            ranked[c].append((row[c], truth[c]))
    found = []
    for c, pairs in enumerate(ranked):
        total = labels[:, c].sum()
        terms = []
        for score, label in pairs:
            if label:
                above = [other for value, other in pairs if value >= score]
                terms.append(sum(above) / len(above))
        found.append(sum(terms) / total if total else np.nan)
    return np.array(found)


def test_the_worked_example():
    scores, labels = np.array([[0.9, 0.8, 0.1], [0.7, 0.6, 0.2]]), np.array([[1, 0, 1], [0, 1, 0]])
    assert _measured(scores, labels).compute() == pytest.approx(2 / 3)
    ap, support = _measured(scores, labels, top_k=2).per_class()
    assert ap.tolist() == [1.0, 0.5, 0.0]  # class 2 has its positive outside of the video's best two
    assert support.tolist() == [1, 1, 1]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 60),
    top_k=st.integers(1, 25),
    levels=st.sampled_from([None, 8]),
)
def test_it_agrees_with_the_definition_under_both_rules(seed, classes, top_k, levels):
    scores, labels = _videos(seed, classes=classes, levels=levels)
    labels[0, 0] = True
    expected = _per_class_by_definition(scores, labels, top_k)
    ap, support = _measured(scores, labels, top_k=top_k).per_class()
    np.testing.assert_allclose(ap, expected, rtol=1e-12)
    assert support.tolist() == labels.sum(axis=0).tolist()
    as_2017 = _measured(scores, labels, top_k=top_k)
    as_2019 = _measured(scores, labels, top_k=top_k, empty_classes="skip")
    assert as_2017.compute() == pytest.approx(np.nansum(expected) / classes, rel=1e-12)
    assert as_2019.compute() == pytest.approx(np.nanmean(expected), rel=1e-12)


@pytest.mark.parametrize("levels", [None, 8])
def test_where_all_classes_are_ranked_it_is_the_map_over_all_scores(levels):
    scores, labels = _videos(0, classes=20, levels=levels)
    over_all = MeanAveragePrecision(empty_classes="zero")
    over_all.update(scores, labels)
    assert _measured(scores, labels).compute() == over_all.compute()


def test_per_class_of_nothing_is_empty():
    ap, support = TopMeanAveragePrecision().per_class()
    assert (len(ap), len(support)) == (0, 0)


def test_a_change_of_the_number_of_classes_is_named():
    metric = _measured(*_videos(1))
    with pytest.raises(ValueError, match="41 classes after batches with 40"):
        metric.update(*_videos(1, classes=41))
    assert metric.compute() == _measured(*_videos(1)).compute()


def test_options_that_do_not_exist_or_fit_are_named():
    with pytest.raises(ValueError, match="empty_classes='drop'; choose one of: zero, skip"):
        TopMeanAveragePrecision(empty_classes="drop")
    with pytest.raises(ValueError, match="top_k=-1"):
        TopMeanAveragePrecision(top_k=-1)
    with pytest.raises(ValueError, match="cannot merge top_k=5 into top_k=20"):
        TopMeanAveragePrecision().merge(TopMeanAveragePrecision(top_k=5))
