from __future__ import annotations

import pytest
import torch

from tagreel.ensembles.leave_one_out import LeaveOneOut
from tests.ensembles.conftest import Table, said


def mean_score(panel, members):
    shares = [1 / len(members) if m in members else 0.0 for m in range(len(panel.names))]
    return panel.score(torch.tensor(shares, dtype=torch.float64))


def reference(panel, members):
    """w_m ∝ s(S) - s(S - m) > 0, the most harmful model removed before the next look."""
    members = list(members)
    while len(members) > 1:
        whole = mean_score(panel, members)
        drop = {m: whole - mean_score(panel, [o for o in members if o != m]) for m in members}
        worst = members[0]
        for m in members:
            if drop[m] < drop[worst]:
                worst = m
        if drop[worst] > 0:
            return [drop.get(m, 0.0) / sum(drop.values()) for m in range(len(panel.names))]
        members.remove(worst)
    return [float(m in members) for m in range(len(panel.names))]


@pytest.mark.parametrize("seed", range(4))
def test_the_weights_are_the_drops_of_those_that_help(seed):
    panel = said(2.0, 1.5, 2.5, 8.0, 2.0, seed=seed)
    found = LeaveOneOut()(panel)
    assert found.tolist() == pytest.approx(reference(panel, range(5)))
    assert found[3] == 0  # nearly noise


def test_a_model_that_the_others_miss_more_weighs_more():
    panel = said(1.0, 3.0, 3.0, 3.0, videos=60)
    weights = LeaveOneOut()(panel)
    assert weights.argmax() == 0


def test_of_twins_one_stays():
    """Neither of them is missed while the other is there; removed at once, both would be lost."""
    panel = said(2.5, 1.5, videos=40)
    twins = Table(panel.scores[..., [0, 0, 1]], panel.labels)
    without = [mean_score(twins, members) for members in ([1, 2], [0, 2], [0, 1])]
    assert without[0] == without[1] > mean_score(twins, [0, 1, 2]) > without[2]
    weights = LeaveOneOut()(twins)
    assert weights[0] == 0
    assert 0 < weights[1] < weights[2]
