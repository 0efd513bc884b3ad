from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagreel.metrics.average_precision import MeanAveragePrecision
from tagreel.metrics.segment_average_precision import SegmentMeanAveragePrecision


def _segments(seed, segments=60, classes=5, levels=None):
    """Scores, which classes were judged (a third), and those judged true; class 1 has no true segment."""
    rng = np.random.default_rng(seed)
    shape = (segments, classes)
    scores = rng.permutation(shape[0] * shape[1]).reshape(shape) + 1.0
    if levels is not None:
        scores = rng.integers(0, levels, shape).astype(float)
    rated = rng.random(shape) < 0.35
    labels = rated & (rng.random(shape) < 0.2 + 0.6 * scores / scores.max())
    labels[:, 1] = False
    return (scores / scores.max()).astype(np.float32), labels, rated


def _measured(scores, labels, rated, cut, **options):
    metric = SegmentMeanAveragePrecision(cut=cut, **options)
    for start in range(0, len(scores), 17):
        rows = slice(start, start + 17)
        metric.update(scores[rows], labels[rows], rated[rows])
    return metric


def _by_the_rules(scores, labels, rated, cut):
    """Each class's ranking as it is submitted, cut, then cleared of what nobody judged, then walked down."""
    found = []
    for c in range(scores.shape[1]):
        ranking = sorted(range(len(scores)), key=lambda s: -scores[s, c])[:cut]
        judged = [s for s in ranking if rated[s, c]]
        total = sum(labels[s, c] for s in range(len(scores)))
        hits, terms = 0, 0.0
        for place, segment in enumerate(judged, start=1):
            if labels[segment, c]:
                hits += 1
                terms += hits / place
        found.append(terms / total if total else np.nan)
    return np.array(found)


def _with_ties(scores, labels, rated, cut):
    """Equal scores count together, all of those that the cut would part are out, and 0 is no score."""
    found = []
    for c in range(scores.shape[1]):
        column = scores[:, c].tolist()
        ranked = [s for s, score in enumerate(column) if score > 0 and sum(o >= score for o in column) <= cut]
        judged = [s for s in ranked if rated[s, c]]
        terms = 0.0
        for segment in judged:
            if labels[segment, c]:
                above = [labels[s, c] for s in judged if column[s] >= column[segment]]
                terms += sum(above) / len(above)
        total = labels[:, c].sum()
        found.append(terms / total if total else np.nan)
    return np.array(found)


def test_a_worked_example():
    scores = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]])
    labels, rated = np.array([[0], [0], [1], [0], [1]]), np.array([[1], [0], [1], [1], [1]])
    # Nobody judged the second. Of the judged four the second and the fourth are true: (1/2 + 2/4) / 2.
    assert _measured(scores, labels, rated, 5).compute() == pytest.approx(0.5)
    # The first four places, of which three were judged, leave one true segment of two: (1/2) / 2.
    assert _measured(scores, labels, rated, 4).compute() == pytest.approx(0.25)
    # The second place is taken by a segment that nobody judged, so there are no more than two judged ones.
    assert _measured(scores, labels, rated, 3).compute() == pytest.approx(0.25)
    assert _measured(scores, labels, rated, 2).compute() == 0.0


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 70), classes=st.integers(2, 12))
def test_it_agrees_with_the_rules(seed, cut, classes):
    scores, labels, rated = _segments(seed, classes=classes)
    expected = _by_the_rules(scores, labels, rated, cut)
    ap, support = _measured(scores, labels, rated, cut).per_class()
    np.testing.assert_allclose(ap, expected, rtol=1e-12)
    assert support.tolist() == labels.sum(0).tolist()
    value = _measured(scores, labels, rated, cut).compute()
    assert value == pytest.approx(np.nanmean(expected) if labels.any() else 0.0, rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 70), levels=st.integers(2, 30))
def test_ties_count_together_and_a_score_of_0_is_no_place(seed, cut, levels):
    scores, labels, rated = _segments(seed, levels=levels)
    ap, _ = _measured(scores, labels, rated, cut).per_class()
    np.testing.assert_allclose(ap, _with_ties(scores, labels, rated, cut), rtol=1e-12)


def test_the_cut_comes_before_the_unjudged_are_dropped():
    scores, labels, rated = _segments(3)
    judged_first = np.where(rated, scores, 0)
    assert (
        _measured(scores, labels, rated, 20).compute() < _measured(judged_first, labels, rated, 20).compute()
    )


def test_a_label_that_nobody_judged_does_not_count():
    scores, labels, rated = _segments(4)
    more = labels | ~rated
    ours, theirs = (_measured(scores, truth, rated, 30) for truth in (labels, more))
    assert ours.compute() == theirs.compute()
    assert theirs.per_class()[1].tolist() == labels.sum(0).tolist()


def test_where_all_is_judged_and_nothing_cut_it_is_the_map_over_all_scores():
    scores, labels, _ = _segments(5)
    plain = MeanAveragePrecision()
    plain.update(scores, labels)
    metric = SegmentMeanAveragePrecision()
    metric.update(scores, labels)
    assert metric.compute() == pytest.approx(plain.compute(), rel=1e-12)


@pytest.mark.parametrize("cut", [25, 100])
def test_merging_in_any_order_and_a_file_for_the_scores_change_nothing(cut):
    scores, labels, rated = _segments(6, levels=9)
    whole = _measured(scores, labels, rated, cut)
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = SegmentMeanAveragePrecision(cut=cut, memory_limit=200)
        for part in order:
            rows = slice(20 * part, 20 * part + 20)
            merged.merge(_measured(scores[rows], labels[rows], rated[rows], cut, memory_limit=200))
        assert merged.compute() == whole.compute()


def test_mistakes_are_named():
    metric = _measured(*_segments(7), 10)
    with pytest.raises(ValueError, match="6 classes after batches with 5"):
        metric.update(*_segments(7, classes=6))
    assert metric.compute() == _measured(*_segments(7), 10).compute()
    with pytest.raises(ValueError, match="cut=0; it must be 1 or more"):
        SegmentMeanAveragePrecision(cut=0)
    with pytest.raises(ValueError, match="cannot merge cut=5 into cut=100000"):
        SegmentMeanAveragePrecision().merge(SegmentMeanAveragePrecision(cut=5))
    scores, labels, rated = _segments(7)
    with pytest.raises(ValueError, match=r"rated is \(60, 4\), the scores are \(60, 5\)"):
        metric.update(scores, labels, rated[:, :4])
