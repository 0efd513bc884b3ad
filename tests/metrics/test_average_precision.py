from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from tagreel.metrics.average_precision import MeanAveragePrecision


def _videos(seed, videos=80, classes=12, levels=None):
    rng = np.random.default_rng(seed)
    scores = (
        rng.random((videos, classes))
        if levels is None
        else rng.integers(0, levels, (videos, classes)) / levels
    )
    return scores.astype(np.float32), rng.random((videos, classes)) < 0.05


def _measured(scores, labels, batch=80, **options):
    metric = MeanAveragePrecision(**options)
    for start in range(0, len(scores), batch):
        metric.update(scores[start : start + batch], labels[start : start + batch])
    return metric


def _ap_by_definition(scores, labels):
    """Over the positives: of the videos that score at least as high, the fraction of positive ones."""
    positives = [score for score, label in zip(scores, labels, strict=True) if label]
    if not positives:
        return np.nan
    return np.mean([labels[scores >= score].mean() for score in positives])


def test_the_worked_example():
    metric = _measured(np.array([[0.9, 0.8, 0.1], [0.7, 0.6, 0.2]]), np.array([[1, 0, 1], [0, 1, 0]]))
    ap, support = metric.per_class()
    assert ap.tolist() == [1.0, 0.5, 0.5]
    assert support.tolist() == [1, 1, 1]
    assert metric.compute() == pytest.approx(2 / 3)


@pytest.mark.parametrize("levels", [None, 6])
def test_each_class_agrees_with_scikit_learn_and_the_definition(levels):
    scores, labels = _videos(0, levels=levels)
    labels[:, 5] = False
    labels[:, 6] = True
    ap, support = _measured(scores, labels, batch=7).per_class()
    assert support.tolist() == labels.sum(axis=0).tolist()
    assert np.isnan(ap[5])
    for c in np.flatnonzero(support):
        assert ap[c] == pytest.approx(average_precision_score(labels[:, c], scores[:, c]), rel=1e-12)
        assert ap[c] == pytest.approx(_ap_by_definition(scores[:, c], labels[:, c]), rel=1e-12)


def test_classes_without_positives_are_skipped_or_0():
    scores, labels = _videos(1)
    labels[:, :4] = False
    skipped = _measured(scores, labels).compute()
    assert skipped == pytest.approx(
        np.mean([_ap_by_definition(scores[:, c], labels[:, c]) for c in range(4, 12)])
    )
    assert _measured(scores, labels, empty_classes="zero").compute() == pytest.approx(skipped * 8 / 12)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 80),
    memory_limit=st.sampled_from([1, 400, 1000, 3000, 10**6]),
)
def test_spilling_to_a_file_changes_nothing(seed, batch, memory_limit):
    scores, labels = _videos(seed, levels=20)
    spilled = _measured(scores, labels, batch=batch, memory_limit=memory_limit)
    assert spilled.compute() == _measured(scores, labels).compute()
    spilled.update(scores[:9], labels[:9])  # reading left the file in order
    again = _measured(np.concatenate([scores, scores[:9]]), np.concatenate([labels, labels[:9]]))
    assert spilled.compute() == again.compute()


@pytest.mark.parametrize("limits", [(1000, 10**6), (10**6, 1000), (1000, 1000), (10_000, 10**6)])
def test_spilled_scores_can_be_merged(limits):
    scores, labels = _videos(2)
    first = _measured(scores[:50], labels[:50], memory_limit=limits[0])
    second = _measured(scores[50:], labels[50:], memory_limit=limits[1])
    first.merge(second)
    first.merge(first)
    doubled = _measured(np.tile(scores, (2, 1)), np.tile(labels, (2, 1)))
    assert first.compute() == doubled.compute()
    assert second.compute() == _measured(scores[50:], labels[50:]).compute()


def test_the_memory_limit_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limit = 100_000
    metric = MeanAveragePrecision(memory_limit=limit)
    for seed in range(50):
        metric.update(*_videos(seed))
        assert sum(tile.nbytes for tile in metric._all._tiles) <= limit / 2
    largest = max(block.nbytes for _, block in metric._all.blocks())
    assert largest <= limit / 4
    in_memory = sum(tile.nbytes for tile in metric._all._in_memory())
    assert metric._all._file.seek(0, 2) + in_memory == 50 * 80 * 12 * 4
    assert list(tmp_path.iterdir()) == []  # the file has no name to be left behind


def test_a_spilled_metric_says_why_it_cannot_be_pickled():
    with pytest.raises(ValueError, match="memory_limit=1,000 bytes lie in a file"):
        pickle.dumps(_measured(*_videos(3), memory_limit=1000))


def test_a_change_of_the_number_of_classes_is_named():
    metric = _measured(*_videos(4))
    with pytest.raises(ValueError, match="13 classes after batches with 12"):
        metric.update(*_videos(4, classes=13))
    with pytest.raises(ValueError, match="13 classes after batches with 12"):
        metric.merge(_measured(*_videos(4, classes=13)))
    assert metric.compute() == _measured(*_videos(4)).compute()


def test_options_that_do_not_exist_or_fit_are_named():
    with pytest.raises(ValueError, match="empty_classes='drop'; choose one of: zero, skip"):
        MeanAveragePrecision(empty_classes="drop")
    with pytest.raises(ValueError, match="memory_limit=0"):
        MeanAveragePrecision(memory_limit=0)
    with pytest.raises(ValueError, match="cannot merge empty_classes='zero' into empty_classes='skip'"):
        MeanAveragePrecision().merge(MeanAveragePrecision(empty_classes="zero"))
