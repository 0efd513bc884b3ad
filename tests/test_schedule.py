from __future__ import annotations

import math

import pytest

from tagreel.schedule import Cosine, Staircase


def test_the_staircase_steps_down_where_the_references_do():
    schedule = Staircase(factor=0.8, every=2_000_000)
    found = [schedule(n, 0) for n in (0, 1_999_999, 2_000_000, 3_999_999, 4_000_000, 10_000_000)]
    assert found == pytest.approx([1, 1, 0.8, 0.8, 0.64, 0.8**5])


def test_the_cosine_falls_from_one_to_its_floor():
    schedule = Cosine(floor=0.1)
    found = [schedule(n, 1000) for n in (0, 250, 500, 750, 1000)]
    assert found == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * share / 4)) for share in range(5)])
    assert found[0] == 1
    assert found[2] == pytest.approx(0.55)
    assert found[-1] == pytest.approx(0.1)
    assert schedule(5000, 1000) == pytest.approx(0.1)  # it never rises again


@pytest.mark.parametrize("schedule", [Staircase(every=10_000, warmup=100), Cosine(warmup=100)])
def test_warmup_rises_linearly_from_above_zero(schedule):
    found = [schedule(n, 10_000) for n in range(101)]
    assert found == pytest.approx([(n + 1) / 101 for n in range(101)])
    assert found[0] > 0
    assert schedule(100, 10_000) == 1


def test_the_cosine_begins_when_the_warmup_ends():
    schedule = Cosine(warmup=200)
    assert schedule(200, 1000) == 1
    assert schedule(600, 1000) == pytest.approx(0.5)
    assert schedule(1000, 1000) == pytest.approx(0)


@pytest.mark.parametrize("total", [0, 1, 50])
def test_a_warmup_longer_than_the_training_is_no_error(total):
    found = [Cosine(warmup=100)(n, total) for n in range(total + 1)]
    assert found == pytest.approx([(n + 1) / 101 for n in range(total + 1)])
