from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tagreel import demo
from tagreel import recipe as recipes
from tagreel.readers.synthetic import Planted
from tagreel.source import Source
from tagreel.train import train
from tests.conftest import with_training


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The demo's data set at a third of its size."""
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        splits = {"train": (0, 2000, 4), "validate": (1_000_000, 60, 1), "test": (2_000_000, 500, 1)}
        patch.setattr(demo, "SPLITS", splits)
        demo.write_planted(out, Planted())
    return out


def test_the_shards_hold_the_planted_videos(folder):
    planted = Planted()
    source = Source(f"{folder}/train*.tfrecord")
    assert source.counts == [500] * 4
    assert len(Source(f"{folder}/validate*")) == 60
    for shard, record in ((0, 0), (1, 499), (3, 7)):
        found, made = source.open(shard)[record], planted.example(500 * shard + record)
        assert found.id == made.id
        assert found.labels.tolist() == made.labels.tolist()
        assert {name: frames.tolist() for name, frames in found.streams.items()} == {
            name: frames.tolist() for name, frames in made.streams.items()
        }
    assert (folder / "labels.txt").read_text().splitlines() == planted.label_names


def test_the_splits_of_the_demo_share_no_video():
    ranges = sorted((first, first + count) for first, count, _ in demo.SPLITS.values())
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    assert all(count % shards == 0 for _, count, shards in demo.SPLITS.values())


def test_smoke_comes_near_the_best_possible_score_and_mean_pooling_does_not(folder, tmp_path):
    planted, test = Planted(), Source(f"{folder}/test*")
    best = demo.best_possible(planted, test)
    smoke = with_training(recipes.find("smoke"), epochs=6)
    mean = smoke
    for stream in smoke.streams:
        mean = recipes.override(mean, f"streams.{stream}.pool=tagreel.pools.mean.Mean")

    def reached(name: str, recipe: recipes.Recipe) -> dict[str, float]:
        outcome = train(
            recipe,
            data=Source(f"{folder}/train*"),
            validation=test,
            validate_every=10**6,
            out=tmp_path / name,
            device="cpu",
        )
        assert outcome.best is not None
        return outcome.best

    ours, means = reached("smoke", smoke), reached("mean", mean)
    assert 0.8 * best["gap@20"] < ours["gap@20"] <= best["gap@20"] + 0.01
    assert ours["map"] > 0.7 * best["map"]
    # What marks a scene is which words occur together, and that the mean does not see.
    assert means["gap@20"] < 0.4 * best["gap@20"]


def test_the_best_possible_score_is_the_posteriors(folder):
    best = demo.best_possible(Planted(), Source(f"{folder}/test*"))
    assert 0.7 < best["gap@20"] < 1
    assert best["calibration_error"] < 0.01
    other = demo.best_possible(Planted(seed=1), Source(f"{folder}/test*"))
    assert other["gap@20"] < 0.5 * best["gap@20"]
