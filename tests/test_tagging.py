from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs PyAV: pip install 'tagreel[video]'")

import tagreel
from tagreel import encoding
from tagreel.errors import DataError
from tagreel.extract import Video, extract
from tagreel.extractor import Extractor
from tagreel.pools.lstm import LSTM
from tagreel.recipe import find, override
from tagreel.source import Source
from tagreel.tagging import shown, tag
from tagreel.tags import Fit, TagSet
from tagreel.train import train

NAMES = ["cat", "dog", "eel"]


@pytest.fixture(scope="module")
def extracted(films, tmp_path_factory):
    """Features of the films: rgb projected and in bytes, audio as it is."""
    encoders = {"rgb": encoding.find("layout", slot="rgb"), "audio": encoding.find("mel", slot="audio")}
    names = ("a/long.mkv", "b.mkv", "c.mkv", "d.mkv", "silent.mkv", "sound.mka")
    videos = [Video(name, str(films / name), (index % 3,)) for index, name in enumerate(names)]
    out = tmp_path_factory.mktemp("extracted") / "out"
    extract(videos, out, Extractor(encoders), label_names=NAMES, pca={"rgb": 6})
    return out


@pytest.fixture(scope="module")
def trained(extracted, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    recipe = override(find("own"), "training.batch_size=3")
    train(override(recipe, "training.steps=4"), data=Source(extracted), out=out, device="cpu")
    return out


def features(extracted, number=0):
    streams = Source(extracted).open(0)[number].streams
    return {name: frames for name, frames in streams.items() if len(frames)}


def test_the_tags_are_those_of_the_model_and_the_set(trained, extracted):
    model, frames = tagreel.load(trained), features(extracted)
    tags = TagSet.of(model)
    found = tag(model, tags, frames, title="x", source="x.mkv", threshold=0.0)
    expected = model.predict(frames, top_k=20)
    assert [(lane.name, lane.probability) for lane in found.tags] == [
        (t.name, t.probability) for t in expected
    ]
    assert (found.title, found.source, found.seconds) == ("x", "x.mkv", 19)
    assert all(len(lane.evidence) == 19 for lane in found.tags)
    merged = tags.merge("pet", ["cat", "dog"]).drop("eel")
    [pet] = tag(model, merged, frames, title="x", threshold=0.0).tags
    best = max((t for t in expected if t.name != "eel"), key=lambda t: t.probability)
    assert (pet.name, pet.probability) == ("pet", best.probability)
    assert pet.evidence == next(lane.evidence for lane in found.tags if lane.name == best.name)


def test_tags_are_shown_from_their_own_threshold_on_or_from_one_for_all():
    tags = TagSet._as_trained(NAMES).with_fits(
        [Fit(threshold=0.9), Fit(threshold=0.2), Fit(threshold=float("inf"))], default=Fit(), fitted={}
    )
    scores = torch.tensor([0.8, 0.3, 1.0])
    assert shown(tags, scores) == [1]
    assert shown(tags, scores, threshold=0.0) == [2, 0, 1]
    assert shown(tags, scores, threshold=0.8, top_k=1) == [2]


def test_a_video_without_what_the_model_reads_is_told(trained):
    model = tagreel.load(trained)
    with pytest.raises(DataError, match="x: has no rgb nor audio, which the model reads"):
        tag(model, TagSet.of(model), {"text": np.zeros((2, 3))}, title="x")


def test_the_command_makes_the_features_tags_files_and_draws_the_page(
    cli, films, trained, extracted, tmp_path
):
    page = tmp_path / "pages" / "page.html"
    page.parent.mkdir()
    shutil.copytree(films, tmp_path / "films")
    long, broken = tmp_path / "films" / "a" / "long.mkv", tmp_path / "films" / "broken.mkv"
    every = ("--model", trained, "--threshold", 0)
    code, printed, errors = cli("tag", long, broken, *every, "--html", page, "--json")
    assert code == 2
    assert errors.count(str(broken)) == 1
    found = json.loads(printed)
    assert found["bad"][0]["path"] == str(broken)
    [timeline] = found["files"]
    assert (timeline["title"], timeline["source"], timeline["seconds"]) == (
        "long.mkv",
        "../films/a/long.mkv",
        19,
    )
    expected = tagreel.load(trained).predict(features(extracted))
    assert [lane["name"] for lane in timeline["tags"]] == [t.name for t in expected]
    assert [lane["probability"] for lane in timeline["tags"]] == pytest.approx(
        [t.probability for t in expected]
    )
    assert 'src="./../films/a/long.mkv"' in page.read_text()
    code, printed, _ = cli("tag", long, *every)
    assert code == 0
    lines = printed.splitlines()
    assert lines[0] == "long.mkv   0:19"
    assert lines[1].split()[:2] == [f"{expected[0].probability:.2f}", expected[0].name]
    code, printed, _ = cli("tag", long, "--model", trained, "--threshold", 1)
    assert (
        f"none reaches its threshold; likeliest: {expected[0].name}, {expected[0].probability:.2f}" in printed
    )


def test_features_of_a_model_that_knows_nothing_of_them_have_to_be_named(cli, films, run, trained):
    code, _, errors = cli("tag", films / "b.mkv", "--model", run)
    assert code == 2
    assert "does not know what made its features; name what makes them with --rgb and --audio" in errors
    code, _, errors = cli("tag", films / "b.mkv", "--model", trained, "--foreign")
    assert code == 2
    assert "was told to take other features; name what makes them with --rgb and --audio" in errors
    code, _, errors = cli("tag", films / "b.mkv", "--model", run, "--rgb", "layout")
    assert code == 2
    assert "'rgb' is 1 × 2 × 224; expected videos × frames × 12" in errors


def test_running_tags_end_as_those_of_the_whole_file(cli, films, trained, extracted):
    code, printed, _ = cli(
        "tag", films / "a/long.mkv", "--model", trained, "--live", 4, "--threshold", 0, "--json"
    )
    assert code == 0
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [row["seconds"] for row in rows] == [4, 8, 12, 16, 19]
    model, frames = tagreel.load(trained), features(extracted)
    for row in rows:
        so_far = {name: part[: row["seconds"]] for name, part in frames.items()}
        expected = {t.name: t.probability for t in model.predict(so_far)}
        assert {each["name"]: each["probability"] for each in row["tags"]} == pytest.approx(
            expected, abs=1e-5
        )


def test_running_tags_may_be_of_the_last_seconds_alone(cli, films, trained, extracted):
    options = ("--live", 4, "--window", 8, "--threshold", 0, "--json")
    code, printed, _ = cli("tag", films / "a/long.mkv", "--model", trained, *options)
    assert code == 0
    row = json.loads(printed.splitlines()[3])
    model, frames = tagreel.load(trained), features(extracted)
    expected = {
        t.name: t.probability for t in model.predict({name: part[8:16] for name, part in frames.items()})
    }
    assert {each["name"]: each["probability"] for each in row["tags"]} == pytest.approx(expected, abs=1e-5)


def test_a_model_that_is_not_additive_cannot_run_along(cli, films, extracted, tmp_path):
    recipe = override(find("own-audio"), "training.steps=2")
    stream = recipe.streams["audio"]
    recipe = tagreel.recipe.replace(
        recipe, streams={"audio": tagreel.recipe.replace(stream, pool=partial(LSTM, units=(4,)))}
    )
    train(recipe, data=Source(extracted), out=tmp_path / "run", device="cpu", skip_damaged=9)
    code, _, errors = cli("tag", films / "b.mkv", "--model", tmp_path / "run", "--live", 4)
    assert code == 2
    assert "streams.audio.pool: LSTM needs all frames of a video at once" in errors
    code, _, errors = cli("tag", films / "b.mkv", "--model", tmp_path / "run", "--window", 4)
    assert code == 2
    assert "--window is of a running input; give --live SECONDS too" in errors
