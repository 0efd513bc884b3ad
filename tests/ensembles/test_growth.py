from __future__ import annotations

import random

import pytest

from tagreel.ensembles.growth import Growth
from tagreel.ensembles.leave_one_out import LeaveOneOut
from tests.ensembles.conftest import said
from tests.ensembles.test_leave_one_out import reference

POOL = (3.0, 2.0, 2.5, 8.0, 2.0, 1.8, 4.0)


def grown(panel, group, rounds, seed):
    """Groups drawn from the pool join, and leave-one-out takes out what does not help."""
    generator, inside = random.Random(seed), []
    for _ in range(rounds):
        pool = [m for m in range(len(panel.names)) if m not in inside]
        generator.shuffle(pool)
        while pool:
            inside += pool[:group]
            del pool[:group]
            weights = reference(panel, inside)
            inside = [m for m in inside if weights[m] > 0]
    return weights


@pytest.mark.parametrize(("group", "rounds", "seed"), [(2, 1, 0), (3, 2, 1), (4, 2, 0), (2, 3, 2)])
@pytest.mark.parametrize("data", [2, 6])
def test_the_weights_are_those_of_the_procedure_by_hand(group, rounds, seed, data):
    panel = said(*POOL, videos=12, seed=data)
    found = Growth(group=group, rounds=rounds, seed=seed)(panel)
    assert found.tolist() == pytest.approx(grown(panel, group, rounds, seed))


def test_one_group_of_all_is_leave_one_out():
    panel = said(*POOL)
    assert Growth(group=7, rounds=1)(panel).tolist() == pytest.approx(LeaveOneOut()(panel).tolist())


def test_what_was_left_out_has_another_chance_in_the_next_round():
    panel = said(*POOL, videos=12, seed=2)
    first, second = (Growth(group=2, rounds=rounds)(panel) for rounds in (1, 2))
    assert ((first == 0) & (second > 0)).any()


def test_another_seed_grows_another_way():
    panel = said(*POOL, videos=12)
    found = {tuple(Growth(group=2, rounds=1, seed=seed)(panel).tolist()) for seed in range(6)}
    assert len(found) > 1


@pytest.mark.parametrize("options", [{"group": 0}, {"rounds": 0}])
def test_what_never_grows_is_refused(options):
    with pytest.raises(ValueError, match="expected at least 1"):
        Growth(**options)
