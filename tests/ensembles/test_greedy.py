from __future__ import annotations

import pytest
import torch

from tagreel.ensembles.greedy import Greedy
from tests.ensembles.conftest import said


def reference(panel, limit, *, again=False):
    """The papers' procedure, with the average of a list of models written out."""

    def value(members):
        shares = [members.count(m) / len(members) for m in range(len(panel.names))]
        return panel.score(torch.tensor(shares, dtype=torch.float64))

    ensemble = []
    while len(ensemble) < limit:
        best_model, best_value = None, value(ensemble) if ensemble else -1.0
        for model in range(len(panel.names)):
            if model in ensemble and not again:
                continue
            if value([*ensemble, model]) > best_value:
                best_model, best_value = model, value([*ensemble, model])
        if best_model is None:
            break
        ensemble.append(best_model)
    return [ensemble.count(m) / len(ensemble) for m in range(len(panel.names))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("again", [False, True])
def test_the_same_models_as_by_the_papers_procedure(seed, again):
    panel = said(3.0, 2.0, 2.5, 8.0, 2.0, seed=seed)
    found = Greedy(replacement=again)(panel)
    assert found.tolist() == pytest.approx(reference(panel, 5, again=again))


def test_it_stops_at_the_wanted_size_and_where_nothing_helps(panel):
    sizes = [int((Greedy(members=members)(panel) > 0).sum()) for members in (1, 2, 3, None)]
    assert sizes[:3] == [1, 2, 3]
    assert sizes[3] < 5  # the worst of the five does not help
    alone = torch.eye(5)
    best = max(range(5), key=lambda m: panel.score(alone[m]))
    assert Greedy(members=1)(panel).tolist() == alone[best].tolist()


def test_a_model_taken_twice_counts_twice():
    panel = said(1.5, 2.5, 2.5, videos=60)
    assert Greedy(members=5, replacement=True)(panel).tolist() == [0.5, 0.25, 0.25]
    assert Greedy(members=5)(panel).tolist() == pytest.approx([1 / 3] * 3)


def test_none_is_too_few():
    with pytest.raises(ValueError, match="members is 0"):
        Greedy(members=0)
