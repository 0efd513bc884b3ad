from __future__ import annotations

from tagreel.ensembles.uniform import Uniform


def test_every_model_counts_alike(panel):
    assert Uniform()(panel).tolist() == [0.2] * 5
