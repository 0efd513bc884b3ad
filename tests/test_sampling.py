from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagreel.sampling import AllFrames, EvenlySpaced, RandomFrames, RandomSequence

lengths = st.integers(0, 700)
wanted = st.integers(1, 400)
seeds = st.integers(0, 2**32 - 1)


def _taken(sampler, num_frames, seed=0):
    return np.arange(num_frames)[sampler(num_frames, (seed,))].tolist()


@given(num_frames=lengths)
def test_all_frames_are_the_first_300_unless_asked_for_more(num_frames):
    assert _taken(AllFrames(), num_frames) == list(range(min(num_frames, 300)))
    assert _taken(AllFrames(max_frames=7), num_frames) == list(range(min(num_frames, 7)))
    assert _taken(AllFrames(max_frames=None), num_frames) == list(range(num_frames))


@given(num_frames=lengths, frames=wanted, seed=seeds)
def test_random_frames_are_floor_u_f(num_frames, frames, seed):
    taken = _taken(RandomFrames(frames=frames), num_frames, seed)
    if num_frames:
        u = np.random.default_rng((seed,)).random(frames)
        assert taken == [int(np.floor(x * num_frames)) for x in u]
    else:
        assert taken == []


def test_random_frames_come_from_the_whole_video_equally_often():
    counts = np.bincount(_taken(RandomFrames(frames=100_000), 10), minlength=10)
    assert counts == pytest.approx(np.full(10, 10_000), rel=0.05)


@given(num_frames=lengths, frames=wanted, seed=seeds)
def test_a_random_sequence_is_a_run_or_the_whole_video(num_frames, frames, seed):
    taken = _taken(RandomSequence(frames=frames), num_frames, seed)
    assert len(taken) == min(num_frames, frames)
    assert taken == list(range(taken[0], taken[0] + len(taken))) if taken else num_frames == 0


def test_a_random_sequence_starts_everywhere_it_fits():
    starts = [_taken(RandomSequence(frames=4), 7, seed)[0] for seed in range(400)]
    counts = np.bincount(starts)
    assert len(counts) == 4
    assert counts.min() > 60


@given(num_frames=lengths, frames=wanted)
def test_evenly_spaced_frames_cover_the_video(num_frames, frames):
    taken = _taken(EvenlySpaced(frames=frames), num_frames)
    if num_frames <= frames:
        assert taken == list(range(num_frames))
    else:
        assert len(taken) == frames
        gaps = np.diff([-1, *taken, num_frames])
        assert gaps.min() >= 1 or frames == 1
        assert max(gaps[1:-1], default=0) <= -(-num_frames // frames)
        assert abs((taken[0] + 1) - (num_frames - taken[-1])) <= 1  # as far from the start as from the end


@settings(max_examples=20)
@given(seed=seeds)
@pytest.mark.parametrize("sampler", [RandomFrames(frames=9), RandomSequence(frames=9)])
def test_the_same_generator_chooses_the_same_frames(sampler, seed):
    assert _taken(sampler, 100, seed) == _taken(sampler, 100, seed)
    assert any(_taken(sampler, 100, seed) != _taken(sampler, 100, seed + other) for other in range(1, 9))
