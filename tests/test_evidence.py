from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tagreel.ensemble import EnsembleTagger
from tagreel.errors import DataError, RecipeError
from tagreel.evidence import Evidence, Interval, gather, intervals
from tagreel.heads.logistic import Logistic
from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.layers.mixture import Mixture
from tagreel.layers.projection import Projection
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.attention import Attention
from tagreel.pools.gem import GeM
from tagreel.pools.gru import GRU
from tagreel.pools.max import Max
from tagreel.pools.mean import Mean
from tagreel.pools.netfv import NetFV
from tagreel.pools.netvlad import NetVLAD
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.pools.non_local_netvlad import NonLocalNetVLAD
from tagreel.pools.soft_bag_of_words import SoftBagOfWords
from tagreel.pools.std import Std
from tagreel.recipe import Recipe, Training
from tagreel.recipe import Stream as Slot
from tagreel.sampling import AllFrames
from tagreel.schedule import Cosine
from tagreel.tagger import build

WIDTHS = {"rgb": 16, "audio": 8}
SECONDS = 21


def _recipe(pool, **changes):
    recipe = Recipe(
        features=WIDTHS,
        classes=6,
        streams={name: Slot(pool=partial(pool)) for name in WIDTHS},
        head=partial(Logistic),
        loss=partial(CrossEntropy),
        sampling=partial(AllFrames),
        evaluation_sampling=partial(AllFrames),
        training=Training(
            optimizer=partial(torch.optim.AdamW), schedule=partial(Cosine), batch_size=8, epochs=1
        ),
    )
    return replace(recipe, **changes)


def _made(pool, **changes):
    torch.manual_seed(0)
    return build(_recipe(pool, **changes)).eval()


def _frames(seconds=SECONDS):
    rng = np.random.default_rng(0)
    return {
        "rgb": rng.integers(0, 256, (seconds, 16), np.uint8),
        "audio": rng.normal(size=(seconds, 8)).astype(np.float32),
    }


def _scores(model, frames):
    return model.scores({name: rows[None] for name, rows in frames.items()})[0].numpy()


def _logits(model, frames):
    return np.log(p := _scores(model, frames).astype(np.float64)) - np.log1p(-p)


def _only(frames, seconds):
    return {name: rows[seconds] for name, rows in frames.items()}


@pytest.mark.parametrize("pool", [NetVLAD, partial(GRU, units=(8,)), Max], ids=["NetVLAD", "GRU", "Max"])
@pytest.mark.parametrize("window", [1, 4, 5, 30])
def test_a_segment_score_is_that_of_the_seconds_around(pool, window):
    model, frames = _made(pool), _frames()
    found = gather(model, frames, [4, 0], window=window)
    assert found.segments.shape == (SECONDS, 2)
    for second in range(SECONDS):
        first = second - window // 2
        around = slice(max(first, 0), first + window)
        expected = _scores(model, _only(frames, around))[[4, 0]]
        np.testing.assert_allclose(found.segments[second], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "pool",
    [Mean, Std, GeM, Attention, NetVLAD, NeXtVLAD, NetFV, NonLocalNetVLAD, SoftBagOfWords],
)
def test_a_contribution_is_what_the_logit_loses_without_the_second(pool):
    for changes in ({}, {"joint_l2_norm": True, "head": partial(MixtureOfExperts)}):
        model, frames = _made(pool, **changes), _frames()
        found = gather(model, frames, [1, 5]).contributions
        whole = _logits(model, frames)
        for second in range(SECONDS):
            rest = _only(frames, np.arange(SECONDS) != second)
            expected = (whole - _logits(model, rest))[[1, 5]]
            np.testing.assert_allclose(found[second], expected, rtol=1e-3, atol=2e-5)


def test_contributions_of_mixtures_and_ensembles():
    mixture = _made(NeXtVLAD, mixture=partial(Mixture, branches=2))
    both = EnsembleTagger({"a": mixture, "b": _made(NetVLAD)}, [1.0, 2.0]).eval()
    frames = _frames()
    for model in (mixture, both):
        found = gather(model, frames, range(6)).contributions
        expected = _logits(model, frames) - _logits(model, _only(frames, np.arange(SECONDS) != 7))
        np.testing.assert_allclose(found[7], expected, rtol=1e-3, atol=2e-5)


def test_a_second_that_outweighs_all_others_leaves_them_their_say():
    """Subtracted from the sum, its weight of e⁵⁰ would leave none of the digits of the others."""
    model, frames = _made(Attention), _frames()
    with torch.no_grad():
        for branch in model.streams.values():
            branch.pool.score.zero_()[0] = 1.0
        model.head.linear.weight.mul_(0.1)
    frames = {"rgb": frames["audio"].repeat(2, 1), "audio": frames["audio"]}
    frames["rgb"][4, 0] = frames["audio"][4, 0] = 50.0
    found = gather(model, frames, [2]).contributions
    rest = _only(frames, np.arange(SECONDS) != 4)
    expected = (_logits(model, frames) - _logits(model, rest))[2]
    np.testing.assert_allclose(found[4, 0], expected, rtol=1e-3)


@pytest.mark.parametrize("pool", [partial(GRU, units=(8,)), Max], ids=["GRU", "Max"])
def test_models_that_are_not_sums_have_segment_scores_alone(pool):
    assert gather(_made(pool), _frames(), [0]).contributions is None


def test_a_feature_may_be_shorter_or_missing():
    model = _made(NetVLAD, optional=("audio",))
    frames = _frames()
    frames["audio"] = frames["audio"][:9]
    found = gather(model, frames, [3])
    late = _only({"rgb": frames["rgb"]}, slice(14, 19))
    np.testing.assert_allclose(found.segments[16], _scores(model, late)[[3]], rtol=1e-5, atol=1e-6)
    assert found.contributions.shape == (SECONDS, 1)
    silent = gather(model, {"rgb": frames["rgb"]}, [3])
    np.testing.assert_allclose(silent.segments[16], found.segments[16], rtol=1e-5, atol=1e-6)
    assert np.isfinite(silent.contributions).all()


@pytest.mark.parametrize("pool", [Mean, NetVLAD, NeXtVLAD, Attention])
def test_a_video_of_one_second_is_compared_with_none(pool):
    found = gather(_made(pool), _frames(1), [0, 1])
    assert found.segments.shape == found.contributions.shape == (1, 2)
    assert np.isfinite(found.contributions).all()


def test_what_cannot_be_read_is_refused_in_a_line():
    model, frames = _made(NetVLAD), _frames()
    with pytest.raises(DataError, match="no 'audio'; got: rgb"):
        gather(model, {"rgb": frames["rgb"]}, [0])
    with pytest.raises(DataError, match="'rgb' is 21 × 8; expected frames × 16"):
        gather(model, {"rgb": frames["audio"], "audio": frames["audio"]}, [0])
    with pytest.raises(DataError, match="has no frames"):
        gather(model, _frames(0), [0])
    with pytest.raises(RecipeError, match="window=0"):
        gather(model, frames, [0], window=0)


def test_a_model_in_training_stays_there():
    model = _made(NetVLAD)
    expected = gather(model, _frames(), [0])
    model.train()
    found = gather(model, _frames(), [0])
    assert model.training
    np.testing.assert_array_equal(found.contributions, expected.contributions)
    np.testing.assert_array_equal(found.segments, expected.segments)


def test_curves_are_shares_of_the_highest():
    segments = np.array([[0.1, 0.0], [0.4, 0.0], [0.2, 0.0]], np.float32)
    contributions = np.array([[-3.0, -1.0], [3.0, -1.0], [6.0, -2.0]], np.float32)
    plain = Evidence((0, 1), segments, None).curves()
    np.testing.assert_allclose(plain, [[0.25, 0], [1, 0], [0.5, 0]], rtol=1e-6)
    smooth = Evidence((0, 1), segments, contributions).curves()
    np.testing.assert_allclose(smooth, [[0, 0], [2 / 4.5, 0], [1, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shortest": 1, "gap": 0}, [(1, 4, 2), (6, 7, 6), (9, 13, 10)]),
        ({"shortest": 2, "gap": 0}, [(1, 4, 2), (9, 13, 10)]),
        ({"shortest": 1, "gap": 2}, [(1, 13, 2)]),
        ({"shortest": 1, "gap": 1}, [(1, 4, 2), (6, 7, 6), (9, 13, 10)]),
        ({"shortest": 1, "gap": 0, "high": 0.85}, [(1, 4, 2), (9, 13, 10)]),
        ({"shortest": 1, "gap": 0, "low": 0.5}, [(2, 4, 2), (6, 7, 6), (10, 12, 10)]),
        ({"shortest": 1, "gap": 0, "high": 0.95}, []),
    ],
    ids=str,
)
def test_intervals_of_a_curve(options, expected):
    #         0    1    2    3    4    5    6    7    8    9   10   11   12   13   14
    curve = [0.0, 0.3, 0.9, 0.6, 0.1, 0.1, 0.8, 0.0, 0.1, 0.2, 0.9, 0.9, 0.2, 0.1, 0.4]
    assert intervals(curve, **options) == [Interval(*each) for each in expected]


def test_a_video_shorter_than_the_shortest_interval_can_have_one():
    assert intervals([0.9, 0.3]) == [Interval(0, 2, 0)]
    assert intervals([0.0, 0.9, 0.0, 0.0]) == []
    assert intervals([]) == []
    with pytest.raises(RecipeError, match=r"low=0.6, high=0.5"):
        intervals([0.1], low=0.6)


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.4, 0.5, 0.9]), max_size=30),
    st.integers(0, 3),
    st.integers(1, 4),
)
def test_intervals_are_as_a_slow_reading_of_the_rule(curve, gap, shortest):
    found = intervals(curve, high=0.5, low=0.2, gap=gap, shortest=shortest)
    runs, start = [], None
    for second in range(len(curve) + 1):
        inside = second < len(curve) and curve[second] >= 0.2
        if inside and start is None:
            start = second
        if not inside and start is not None:
            if any(value >= 0.5 for value in curve[start:second]):
                runs.append([start, second])
            start = None
    joined = []
    for run in runs:
        if joined and run[0] - joined[-1][1] <= gap:
            joined[-1][1] = run[1]
        else:
            joined.append(run)
    kept = [run for run in joined if run[1] - run[0] >= min(shortest, len(curve))]
    assert [[each.start, each.end] for each in found] == kept
    for each in found:
        assert curve[each.peak] == max(curve[each.start : each.end])
        assert max(curve[each.start : each.peak], default=0.0) < curve[each.peak]


# ---- places that are known

CLASSES, WIDTH, NOISE = 6, 16, 0.35


class Places:
    """Videos of scenery in which each of some classes shows its two patterns for 5 to 12 seconds in a row."""

    def __init__(self):
        rng = np.random.default_rng(0)
        directions = rng.normal(size=(2 * CLASSES + 8, WIDTH))
        directions *= 2 / np.linalg.norm(directions, axis=1, keepdims=True)
        self.patterns, self.scenery = directions[: 2 * CLASSES].reshape(CLASSES, 2, -1), directions[-8:]

    def video(self, rng):
        """Frames (T, D), and the stretch of each class that applies."""
        frames = self.scenery[rng.integers(8, size=int(rng.integers(30, 61)))]
        free, places = np.ones(len(frames), bool), {}
        for label in rng.permutation(CLASSES)[: int(rng.integers(1, 4))]:
            length = int(rng.integers(5, 13))
            start = int(rng.integers(len(frames) - length + 1))
            if free[start : start + length].all():
                free[start : start + length] = False
                frames[start : start + length] = self.patterns[label][rng.integers(2, size=length)]
                places[int(label)] = (start, start + length)
        return (frames + NOISE * rng.normal(size=frames.shape)).astype(np.float32), places


def _trained(pool, places, steps=250, size=32):
    """A small model that was told which classes there are, never where."""
    recipe = _recipe(
        pool,
        features={"rgb": WIDTH},
        streams={"rgb": Slot(pool=pool)},
        body=(partial(Projection, width=32),),
        classes=CLASSES,
    )
    torch.manual_seed(0)
    model = build(recipe)
    rng = np.random.default_rng(1)
    videos = [places.video(rng) for _ in range(800)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        some = [videos[index] for index in rng.integers(len(videos), size=size)]
        longest = max(len(frames) for frames, _ in some)
        frames, labels = torch.zeros(size, longest, WIDTH), torch.zeros(size, CLASSES)
        mask = torch.zeros(size, longest, dtype=torch.bool)
        for row, (shown, there) in enumerate(some):
            frames[row, : len(shown)], mask[row, : len(shown)] = torch.from_numpy(shown), True
            labels[row, list(there)] = 1
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        optimizer.zero_grad()
        logits = model({"rgb": frames}, {"rgb": mask})
        torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
        optimizer.step()
    return model.eval()


def _overlap(found, place):
    """Intersection over union of the seconds of some intervals and of one stretch."""
    seconds = {second for each in found for second in range(each.start, each.end)}
    return len(seconds & set(range(*place))) / len(seconds | set(range(*place)))


@pytest.mark.parametrize(
    ("pool", "by_contributions", "by_segments"),
    [
        (partial(Mean), 0.7, 0.35),
        (partial(NetVLAD, clusters=24), 0.75, 0.4),
        (partial(NeXtVLAD, clusters=16, groups=2), 0.75, 0.4),
    ],
    ids=["Mean", "NetVLAD", "NeXtVLAD"],
)
def test_evidence_finds_the_places_that_nobody_marked(pool, by_contributions, by_segments):
    places = Places()
    model = _trained(pool, places)
    rng = np.random.default_rng(2)
    exact, rough, inside = [], [], []
    for _ in range(40):
        frames, there = places.video(rng)
        found = gather(model, {"rgb": frames}, sorted(there))
        curves, rough_curves = found.curves(), replace(found, contributions=None).curves()
        for column, label in enumerate(sorted(there)):
            exact.append(_overlap(intervals(curves[:, column]), there[label]))
            rough.append(_overlap(intervals(rough_curves[:, column]), there[label]))
            inside.append(int(curves[:, column].argmax()) in range(*there[label]))
    assert np.mean(exact) > by_contributions
    assert np.mean(rough) > by_segments
    assert np.mean(inside) > 0.95
