from __future__ import annotations

import numpy as np
import pytest

from tagreel.metrics.hit import HitAt1


def _hit(scores, labels):
    metric = HitAt1()
    metric.update(scores, labels)
    return metric.compute()


def test_the_worked_example():
    assert _hit([[0.9, 0.8, 0.1], [0.7, 0.6, 0.2]], [[1, 0, 1], [0, 1, 0]]) == 0.5


@pytest.mark.parametrize("levels", [3, 10**6])
@pytest.mark.parametrize("classes", [1, 7, 500])
def test_it_agrees_with_numpy_argmax(levels, classes):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, levels, (300, classes)) / levels
    labels = rng.random((300, classes)) < 0.3
    expected = np.mean([truth[np.argmax(row)] for row, truth in zip(scores, labels, strict=True)])
    assert _hit(scores, labels) == pytest.approx(expected, rel=1e-15)


def test_the_first_of_equal_scores_is_the_best():
    assert _hit([[0.2, 0.5, 0.5]], [[0, 1, 0]]) == 1.0
    assert _hit([[0.2, 0.5, 0.5]], [[0, 0, 1]]) == 0.0


def test_videos_without_labels_are_misses():
    assert _hit([[0.5, 0.1], [0.5, 0.1]], [[1, 0], [0, 0]]) == 0.5
