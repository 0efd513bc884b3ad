from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagreel.metrics.calibration import Calibration


def _videos(seed, videos=200, classes=30):
    """Calibrated scores, nearly all of them close to 0, and labels drawn with them."""
    rng = np.random.default_rng(seed)
    scores = (1 / (1 + np.exp(4 - 3 * rng.standard_normal((videos, classes))))).astype(np.float32)
    return scores, rng.random((videos, classes)) < scores


def _measured(scores, labels, **options):
    metric = Calibration(**options)
    for start in range(0, len(scores), 33):
        metric.update(scores[start : start + 33], labels[start : start + 33])
    return metric


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), bins=st.sampled_from([1, 2, 7, 20, 300]))
def test_it_agrees_with_the_definition(seed, bins):
    scores, labels = _videos(seed)
    scores[0, :6] = 0.0, 1.0, 1e-42, 1e-7, -0.0, np.nextafter(np.float32(1), np.float32(0))
    metric = _measured(scores, labels, bins=bins)
    edges = metric.edges()
    assert len(edges) == bins - 1
    error = 0.0
    mean, frequency, count = metric.curve()
    for b in range(bins):
        low = edges[b - 1] if b else -1
        high = edges[b] if b < bins - 1 else 2
        inside = (scores >= low) & (scores < high)
        assert count[b] == inside.sum()
        if count[b]:
            assert mean[b] == pytest.approx(scores[inside].astype(np.float64).mean(), rel=1e-12)
            assert frequency[b] == pytest.approx(labels[inside].mean(), rel=1e-12)
            error += abs(scores[inside].astype(np.float64).sum() - labels[inside].sum())
        else:
            assert np.isnan(mean[b])
            assert np.isnan(frequency[b])
    assert metric.compute() == pytest.approx(error / scores.size, rel=1e-9, abs=1e-15)


def test_the_edges_are_even_steps_of_the_logit():
    edges = Calibration(bins=18).edges().astype(np.float64)
    logits = np.log(edges / (1 - edges))
    assert logits == pytest.approx(np.arange(-11, 6), abs=0.1)
    assert np.all(np.diff(edges) > 0)


def test_true_probabilities_are_calibrated_and_doubled_ones_are_not():
    scores, labels = _videos(0, videos=20_000)
    honest = _measured(scores, labels).compute()
    boastful = _measured(np.minimum(2 * scores, 1), labels).compute()
    assert honest < 0.001
    assert boastful > 0.03


def test_certain_and_right_has_no_error_and_certain_and_wrong_an_error_of_1():
    labels = np.eye(4)
    assert _measured(labels, labels).compute() == 0.0
    assert _measured(1 - labels, labels).compute() == 1.0


def test_logits_are_refused_with_their_range():
    metric = Calibration()
    with pytest.raises(ValueError, match="found scores from -3 to 7; are they logits"):
        metric.update([[-3.0, 7.0]], [[0, 1]])
    assert metric.compute() == 0.0


def test_the_curve_of_nothing_has_empty_bins():
    mean, frequency, count = Calibration(bins=5).curve()
    assert np.isnan(mean).all()
    assert np.isnan(frequency).all()
    assert count.tolist() == [0] * 5


def test_options_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="bins=0"):
        Calibration(bins=0)
    with pytest.raises(ValueError, match="cannot merge bins=10 into bins=20"):
        Calibration().merge(Calibration(bins=10))


def test_the_sums_of_full_blocks_are_exact():
    below_1 = np.nextafter(np.float32(1), np.float32(0))  # all of its lower bits are ones
    metric = Calibration(bins=3)
    metric.update(np.full((1100, 1000), below_1), np.ones((1100, 1000), bool))
    mean, frequency, count = metric.curve()
    assert count.tolist() == [0, 0, 1_100_000]
    assert (mean[2], frequency[2]) == (float(below_1), 1.0)
