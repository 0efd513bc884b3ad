from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tagreel.metrics._scored import Scored, top_cpu, top_device


def _top_by_definition(scores, k):
    """The k best of each row: by score descending, then by class ascending."""
    return [sorted(range(len(row)), key=lambda c: (-row[c], c))[:k] for row in scores.tolist()]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 700),
    k=st.integers(1, 25),
    levels=st.sampled_from([1, 2, 5, 50, 10**6]),
)
def test_the_best_classes_are_those_of_the_definition(seed, classes, k, levels):
    k = min(k, classes)
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(-levels, levels, (6, classes)).astype(np.float32))
    expected = _top_by_definition(scores, k)
    assert top_cpu(scores, k).tolist() == expected
    assert top_device(scores, k).tolist() == expected


def test_videos_with_many_ties_stand_beside_videos_without():
    scores = torch.rand(5, 600, generator=torch.Generator().manual_seed(0))
    scores[1] = 0.5
    scores[3, 17:] = -torch.inf
    scores[4] = torch.inf
    assert top_cpu(scores, 20).tolist() == _top_by_definition(scores, 20)


def test_scores_of_minus_infinity_are_ranked_by_class():
    scores = torch.full((2, 300), -torch.inf)
    scores[0, 250] = 1.0
    assert top_cpu(scores, 3).tolist() == [[250, 0, 1], [0, 1, 2]]


def test_blocks_of_videos_are_ranked_as_one(monkeypatch):
    scores = torch.rand(50, 400, generator=torch.Generator().manual_seed(1))
    labels = scores > 0.99
    whole = Scored(scores, labels).top(20)
    monkeypatch.setattr("tagreel.metrics._scored._CPU_BLOCK", 7 * 400)
    parts = Scored(scores, labels).top(20)
    assert parts.classes.tolist() == whole.classes.tolist() == _top_by_definition(scores, 20)
    assert (
        parts.scores.tolist()
        == whole.scores.tolist()
        == scores.gather(1, torch.tensor(whole.classes)).tolist()
    )
    assert (
        parts.hits.tolist() == whole.hits.tolist() == labels.gather(1, torch.tensor(whole.classes)).tolist()
    )


def test_positives_are_listed_by_video_then_class_with_their_scores():
    scored = Scored([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], [[1, 0, 1], [0, 1, 0]])
    videos, classes = scored.positives
    assert videos.tolist() == [0, 0, 1]
    assert classes.tolist() == [0, 2, 1]
    assert scored.positive_scores.tolist() == pytest.approx([0.1, 0.3, 0.5])
    assert [ids.tolist() for ids in scored[np.array([1])].positives] == [[0], [1]]


def test_minus_zero_equals_zero():
    scores = torch.full((2, 900), -1.0)
    scores[0, 300], scores[0, 500] = -0.0, 0.0
    scores[1, 300], scores[1, 500] = 0.0, -0.0
    assert top_cpu(scores, 2).tolist() == [[300, 500], [300, 500]]
