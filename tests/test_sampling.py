from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagreel.sampling import (
    AllFrames,
    Crop,
    EvenlySpaced,
    RandomFraction,
    RandomFrames,
    RandomSegment,
    RandomSequence,
    ShuffledFrames,
)

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


@given(num_frames=lengths, seed=seeds)
def test_shuffled_frames_are_all_of_them_in_another_order(num_frames, seed):
    taken = _taken(ShuffledFrames(), num_frames, seed)
    assert sorted(taken) == list(range(min(num_frames, 300)))
    assert num_frames < 20 or taken != sorted(taken)


@given(num_frames=lengths, fraction=st.floats(0.01, 1), max_frames=st.none() | wanted, seed=seeds)
def test_a_random_fraction_is_in_order_and_without_repetition(num_frames, fraction, max_frames, seed):
    taken = _taken(RandomFraction(fraction=fraction, max_frames=max_frames), num_frames, seed)
    assert len(taken) == min(max(round(fraction * num_frames), 1), max_frames or 700, num_frames)
    assert taken == sorted(set(taken))


def test_every_frame_is_in_as_many_random_fractions_as_it_says():
    counts = sum(
        np.bincount(_taken(RandomFraction(fraction=0.8), 10, seed), minlength=10) for seed in range(1000)
    )
    assert counts == pytest.approx(np.full(10, 800), rel=0.1)


def test_a_crop_is_the_one_of_the_paper():
    crops = {tuple(_taken(Crop(), 300, seed)) for seed in range(200)}
    assert crops == {tuple(range(s, s + 221, 5)) for s in range(10)}  # 45 frames, 3 ... 223 among them


@given(num_frames=lengths, starts=st.integers(1, 30), stride=st.integers(1, 20), frames=wanted, seed=seeds)
def test_a_crop_steps_evenly_and_stays_inside(num_frames, starts, stride, frames, seed):
    taken = _taken(Crop(starts=starts, stride=stride, frames=frames), num_frames, seed)
    assert len(taken) > 0 or num_frames == 0
    if taken:
        assert 0 <= taken[0] < min(starts, num_frames)
        assert len(taken) == min(frames, -(-(num_frames - taken[0]) // stride))
        assert set(np.diff(taken)) <= {stride}


def test_a_random_segment_is_the_video_or_one_of_its_thirds():
    found = [tuple(_taken(RandomSegment(), 122, seed)) for seed in range(800)]
    thirds = [tuple(range(start, start + 40)) for start in (0, 40, 80)]
    assert set(found) == {tuple(range(122)), *thirds}
    assert min(found.count(kind) for kind in set(found)) > 150
    assert all(_taken(RandomSegment(), 2, seed) == [0, 1] for seed in range(9))


@settings(max_examples=20)
@given(seed=seeds)
@pytest.mark.parametrize(
    "sampler",
    [
        *(RandomFrames(frames=9), RandomSequence(frames=9), ShuffledFrames(), RandomFraction(fraction=0.3)),
        *(Crop(), RandomSegment()),
    ],
)
def test_the_same_generator_chooses_the_same_frames(sampler, seed):
    assert _taken(sampler, 100, seed) == _taken(sampler, 100, seed)
    assert any(_taken(sampler, 100, seed) != _taken(sampler, 100, seed + other) for other in range(1, 9))
