from __future__ import annotations

import heapq

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tagreel.loader import collate
from tagreel.ranking import Ranking, cut
from tests.conftest import video


def by_heaps(scores, per_class):
    """One heap a class, pushed into one score at a time; the earlier segment among equals."""
    found = []
    for c in range(scores.shape[1]):
        heap: list[tuple[float, int]] = []
        for segment, score in enumerate(scores[:, c].tolist()):
            if score > 0:
                push = heapq.heappush if len(heap) < per_class else heapq.heappushpop
                push(heap, (score, -segment))
        found.append([-segment for _, segment in sorted(heap, reverse=True)])
    return found


def best(ranking):
    return [segments.tolist() for segments in ranking.best()]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    per_class=st.integers(1, 60),
    levels=st.sampled_from([2, 5, 1000]),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_it_is_what_a_heap_a_class_keeps(seed, per_class, levels, cuts):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, levels, (200, 4)) / levels).astype(np.float32)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tagreel.ranking._SLACK", 16)  # so that it has to make room
        ranking = Ranking(4, per_class)
        for rows in np.split(np.arange(200), sorted(cuts)):
            ranking.add(scores[rows])
    assert best(ranking) == by_heaps(scores, per_class)


def test_what_it_does_not_choose_can_be_left_out(monkeypatch):
    """From the chosen scores alone, as they are kept in a file, the same ranking comes out."""
    monkeypatch.setattr("tagreel.ranking._SLACK", 16)
    scores = np.random.default_rng(0).random((2000, 3), np.float32)
    first, again = Ranking(3, 20), Ranking(3, 20)
    kept = 0
    for rows in np.split(np.arange(2000), 40):
        chosen = first.add(scores[rows])
        again.add(np.where(chosen, scores[rows], 0))
        kept += chosen.sum()
    assert best(again) == best(first) == by_heaps(scores, 20)
    assert kept < 0.15 * scores.size


def test_memory_does_not_grow_with_the_segments(monkeypatch):
    monkeypatch.setattr("tagreel.ranking._SLACK", 16)
    ranking = Ranking(3, 40)
    # Ever better, so that each is among the best when it comes.
    for step in range(100):
        ranking.add(np.full((50, 3), (step + 1) / 100, np.float32))
    assert ranking._scores.shape[1] <= 60
    assert best(ranking)[2] == list(range(4950, 4990))


# ---------------------------------------------------------------------- cutting


def pieces(examples, widths, *, length=5, at_once=100):
    return list(cut(collate(examples, features=widths), length, at_once=at_once))


def frames_of(batch, row, name):
    return batch.streams[name][row, : batch.num_frames[name][row]].numpy()


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_every_frame_is_in_one_segment_named_for_where_it_starts(at_once):
    rng = np.random.default_rng(0)
    counts = (12, 5, 3, 10, 1)
    examples = [
        video(f"v{i}", rgb=rng.random((n, 4), np.float32), audio=rng.integers(0, 256, (n, 2), np.uint8))
        for i, n in enumerate(counts)
    ]
    found = pieces(examples, {"rgb": 4, "audio": 2}, at_once=at_once)
    assert max(map(len, found)) <= at_once
    named = [name for batch in found for name in batch.ids]
    assert named == [f"v{i}:{start}" for i, n in enumerate(counts) for start in range(0, n, 5)]
    for batch in found:
        for row, name in enumerate(batch.ids):
            whose, start = int(name[1]), int(name[3:])
            for stream, frames in examples[whose].streams.items():
                np.testing.assert_array_equal(frames_of(batch, row, stream), frames[start : start + 5])
        assert batch.labels(3).sum() == 0
        assert batch.rated(3) is None


def test_a_vector_of_the_video_stays_with_each_segment_and_a_missing_stream_stays_away():
    rgb, vector = np.random.default_rng(0).random((7, 4), np.float32), np.ones((1, 3), np.float32)
    examples = [video("a", rgb=rgb, mean=vector), video("b", mean=vector), video("c", rgb=rgb[:2])]
    (batch,) = pieces(examples, {"rgb": 4, "mean": 3})
    assert batch.ids == ["a:0", "a:5", "b:0", "c:0"]
    assert batch.num_frames["rgb"].tolist() == [5, 2, 0, 2]
    assert batch.num_frames["mean"].tolist() == [1, 1, 1, 0]
    assert torch.equal(batch.streams["mean"][:3, 0], torch.ones(3, 3))


def test_a_stream_may_be_a_vector_of_one_video_and_frames_of_the_next():
    rgb, clip = np.random.default_rng(0).random((2, 7, 4), np.float32)
    examples = [video("a", rgb=rgb, clip=clip[:1]), video("b", rgb=rgb[:1], clip=clip)]
    (batch,) = pieces(examples, {"rgb": 4, "clip": 4})
    assert batch.ids == ["a:0", "a:5", "b:0", "b:5"]
    for row, (r, c) in enumerate(
        [(rgb[:5], clip[:1]), (rgb[5:], clip[:1]), (rgb[:1], clip[:5]), (rgb[:1], clip[5:])]
    ):
        np.testing.assert_array_equal(frames_of(batch, row, "rgb"), r)
        np.testing.assert_array_equal(frames_of(batch, row, "clip"), c)


def test_segments_of_rated_segments_are_rated_no_more():
    example = video("a", frames=7)
    example.rated = np.array([0])
    (batch,) = pieces([example], {"rgb": 4})
    assert batch.rated(3) is None
    assert len(batch) == 2
