"""What every ensemble method promises; a new file in tagreel/ensembles is found and held to it."""

from __future__ import annotations

import inspect

import pytest
import torch

from tagreel.fit_ensemble import methods
from tests.ensembles.conftest import Table, said

every_method = pytest.mark.parametrize("name", list(methods()))


def weights_of(name, panel):
    """By the method as it is, but for what nobody can guess and what takes long."""
    options = {"weighted": {"weights": tuple(range(1, len(panel.names) + 1))}, "learned": {"steps": 100}}
    return methods()[name](**options.get(name, {}))(panel)


@pytest.fixture
def panel():
    return said(3.0, 2.0, 2.5, 8.0, 2.0)


def test_the_walk_finds_the_methods():
    assert {"greedy", "leave-one-out", "learned", "uniform"} <= set(methods())


@every_method
def test_all_options_are_keywords_with_a_default(name):
    for option in inspect.signature(methods()[name]).parameters.values():
        assert option.kind is option.KEYWORD_ONLY
        assert option.default is not option.empty


@every_method
@pytest.mark.parametrize("seed", range(3))
def test_weights_are_one_a_model_none_negative_and_sum_to_one(name, seed):
    weights = weights_of(name, said(3.0, 2.0, 2.5, 8.0, seed=seed))
    assert weights.shape == (4,)
    assert weights.dtype == torch.float64
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1)
    assert not weights.requires_grad


@every_method
def test_one_model_has_all_the_weight(name):
    assert weights_of(name, said(2.0)).tolist() == [1.0]


@every_method
def test_the_same_models_have_the_same_weights_again(name, panel):
    with torch.no_grad():
        first = weights_of(name, panel)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(weights_of(name, panel), first)
    assert torch.equal(torch.get_rng_state(), before)


@every_method
def test_what_the_models_said_is_left_as_it_was(name, panel):
    scores, labels = panel.scores.clone(), panel.labels.clone()
    weights_of(name, panel)
    assert torch.equal(panel.scores, scores)
    assert torch.equal(panel.labels, labels)


@every_method
def test_models_that_say_the_same_and_models_that_know_nothing_are_no_error(name, panel):
    same = Table(panel.scores[..., [0, 0, 0]], panel.labels)
    blind = Table(torch.full((10, 6, 3), 0.5), torch.rand(10, 6) < 0.3)
    unlabelled = Table(panel.scores, torch.zeros_like(panel.labels))
    for hard in (same, blind, unlabelled):
        weights = weights_of(name, hard)
        assert weights.isfinite().all()
        assert weights.sum().item() == pytest.approx(1)


@every_method
def test_sure_answers_right_or_wrong_are_finite(name, panel):
    panel.scores = (panel.scores > 0.5).float()
    assert weights_of(name, panel).isfinite().all()
