from __future__ import annotations

import math

import pytest
import torch

from tagreel.ensembles.learned import Learned
from tests.ensembles.conftest import Table, said


def loss(panel, shares):
    """Cross entropy of the average, in plain loops: the mean over videos of the sum over classes."""
    total = 0.0
    for video, truth in zip(panel.scores.double().tolist(), panel.labels.tolist(), strict=True):
        for models, label in zip(video, truth, strict=True):
            p = sum(w * q for w, q in zip(shares, models, strict=True))
            total -= math.log(p if label else 1 - p)
    return total / len(panel.labels)


def adam(panel, steps, lr):
    """Adam as published, on numeric derivatives of the loss of one batch after the other."""
    M = len(panel.names)
    w, mean, square = [1 / M] * M, [0.0] * M, [0.0] * M
    batches = [Table(scores, labels) for scores, labels in panel.batches()]
    for step in range(1, steps + 1):
        batch, gradient = batches[(step - 1) % len(batches)], []
        for m in range(M):
            sides = []
            for shift in (1e-5, -1e-5):
                moved = [v + shift * (i == m) for i, v in enumerate(w)]
                sides.append(loss(batch, [v / sum(moved) for v in moved]))
            gradient.append((sides[0] - sides[1]) / 2e-5)
        for m in range(M):
            mean[m] = 0.9 * mean[m] + 0.1 * gradient[m]
            square[m] = 0.999 * square[m] + 0.001 * gradient[m] ** 2
            slope = mean[m] / (1 - 0.9**step) / (math.sqrt(square[m] / (1 - 0.999**step)) + 1e-8)
            w[m] = max(w[m] - lr * slope, 0.0)
    return [v / sum(w) for v in w]


def test_the_steps_are_adams_on_one_number_a_model(panel):
    found = Learned(lr=2e-3, steps=25)(panel)
    assert found.tolist() == pytest.approx(adam(panel, 25, 2e-3), abs=2e-4)
    assert max(abs(w - 0.2) for w in found.tolist()) > 0.02


def test_it_ends_where_the_loss_is_least():
    panel = said(2.0, 1.5, videos=40)
    shares = [n / 50 for n in range(51)]
    best = min(shares, key=lambda share: loss(panel, [share, 1 - share]))
    found = Learned()(panel)
    assert 0.05 < best < 0.95
    assert found[0].item() == pytest.approx(best, abs=0.03)


def test_a_weight_stops_at_zero():
    panel = said(1.0, 9.0, videos=60)
    weights = Learned(lr=1e-2, steps=500)(panel)
    assert weights.tolist() == [1.0, 0.0]


def test_certainty_that_is_wrong_does_not_break_it():
    """Of a mean that is 1 to the last bit, where 0 is true, the slope is all rounding."""
    panel = said(2.0, 1.5)
    before = Learned(steps=200)(panel)
    panel.scores[0, 0] = torch.tensor([1.0, 1 - 2**-24])
    panel.labels[0, 0] = False
    torch.testing.assert_close(Learned(steps=200)(panel), before, rtol=0, atol=0.02)


def test_places_that_only_fill_up_change_nothing(panel):
    filled = Table(
        torch.cat([panel.scores, torch.zeros(30, 4, 5)], dim=1),
        torch.cat([panel.labels, torch.zeros(30, 4, dtype=torch.bool)], dim=1),
    )
    torch.testing.assert_close(Learned(steps=100)(filled), Learned(steps=100)(panel), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"steps": 0}])
def test_what_never_learns_is_refused(options):
    with pytest.raises(ValueError, match="expected a rate above 0"):
        Learned(**options)
