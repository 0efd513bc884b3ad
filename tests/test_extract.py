from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs PyAV: pip install 'tagreel[video]'")

from tagreel import encoding
from tagreel import extract as stage
from tagreel.batch import quantize
from tagreel.errors import DataError, RecipeError
from tagreel.extract import Video, extract
from tagreel.extractor import Extractor
from tagreel.media import files
from tagreel.projection import Projection, fit
from tagreel.source import Source

BAD = "broken.mkv"


@pytest.fixture(scope="module")
def extractor():
    return Extractor(
        {"rgb": encoding.find("layout", slot="rgb"), "audio": encoding.find("mel", slot="audio")}
    )


@pytest.fixture(scope="module")
def videos(films):
    return [
        Video(file.name, file.path, labels=(index % 3,)) for index, file in enumerate(files([str(films)])[0])
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, videos, extractor):
    """The data set, made without any interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    extract(videos, out, extractor, label_names=["x", "y", "z"], per_shard=2)
    return out


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def examples(folder):
    source = Source(folder)
    return {
        example.id: example
        for number, count in enumerate(source.counts)
        for example in map(source.open(number).__getitem__, range(count))
    }


def test_the_features_of_every_video_are_in_the_data_set(whole, videos, extractor):
    found = examples(whole)
    assert list(found) == [video.id for video in videos if video.id != BAD]
    lengths = {"a/long.mkv": 19, "b.mkv": 2, "c.mkv": 3, "d.mkv": 4, "silent.mkv": 5, "sound.mka": 6}
    for video in videos:
        if video.id == BAD:
            continue
        example = found[video.id]
        assert example.labels.tolist() == list(video.labels)
        raw = extractor.raw(video.path)
        streams = {name: frames for name, frames in example.streams.items() if len(frames)}
        assert streams.keys() == raw.keys()
        for name, frames in raw.items():
            assert frames.shape == (lengths[video.id], extractor.encoders[name].out_dim)
            assert streams[name].dtype == np.float16
            np.testing.assert_array_equal(streams[name], frames.astype(np.float16))
    assert not len(found["silent.mkv"].streams.get("audio", ()))
    assert not len(found["sound.mka"].streams.get("rgb", ()))


def test_the_data_set_says_what_made_it(whole, extractor):
    source = Source(whole)
    assert source.label_names == ["x", "y", "z"]
    assert source.provenance == extractor.provenance
    again = Extractor.from_provenance(source.provenance)
    assert again.provenance == extractor.provenance


def test_a_file_that_cannot_be_read_is_told_and_left_out(whole, films):
    report = json.loads((whole / "report.json").read_text())
    assert (report["videos"], report["seconds"]) == (6, 39)
    [bad] = report["bad"]
    assert (bad["id"], bad["path"]) == (BAD, str(films / BAD))
    assert bad["reason"]


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_data_set_made_in_parts_or_by_many_threads_is_the_same(whole, videos, extractor, tmp_path, jobs):
    out = tmp_path / "out"
    names = ["x", "y", "z"]
    assert extract(videos, out, extractor, label_names=names, per_shard=2, part=(2, 2), jobs=jobs) is None
    made = extract(videos, out, extractor, label_names=names, per_shard=2, part=(1, 2), jobs=jobs)
    assert (made.videos, len(made.bad)) == (6, 1)
    assert content(out) == content(whole)
    assert not (out / ".parts").exists()


def test_a_finished_data_set_is_left_as_it_is(whole, videos, extractor, monkeypatch):
    before = content(whole)
    monkeypatch.setattr(Extractor, "pieces", None)
    made = extract(videos, whole, extractor, label_names=["x", "y", "z"], per_shard=2)
    assert (made.videos, made.seconds) == (6, 39)
    assert content(whole) == before


def test_killed_at_random_and_begun_again_it_is_the_same_to_the_byte(films, tmp_path):
    def command(out):
        return [
            *(sys.executable, "-m", "tagreel", "extract", str(films), "--rgb", "layout", "--audio", "mel"),
            *("--pca", "rgb=8", "--jobs", "2", "--out", str(out)),
        ]

    began = time.perf_counter()
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    needed = time.perf_counter() - began
    out, rng = tmp_path / "out", random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(
            command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(rng.uniform(0.5, 0.95) * needed)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command(out), check=True, capture_output=True)
    assert content(out) == content(tmp_path / "whole")


def test_a_shard_that_is_cut_off_while_it_is_written_is_written_again(
    whole, videos, extractor, tmp_path, monkeypatch
):
    names, out = ["x", "y", "z"], tmp_path / "out"
    write = stage.shards.write

    def cut(path, *arguments, **options):
        write(path, *arguments, **options)
        path.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage.shards, "write", cut)
        with pytest.raises(KeyboardInterrupt):
            extract(videos, out, extractor, label_names=names, per_shard=2)
    assert list((out / ".parts").iterdir())
    extract(videos, out, extractor, label_names=names, per_shard=2)
    assert content(out) == content(whole)


def test_a_projection_is_fitted_first_and_the_stream_comes_in_bytes(videos, extractor, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "FIT_VIDEOS", 4)
    out = tmp_path / "out"
    extract(videos, out, extractor, pca={"rgb": 5})
    chosen = sorted(videos, key=lambda video: stage._hash(video.id))[:4]
    order = [video.id for video in videos]
    raws = [
        extractor.raw(video.path)["rgb"]
        for video in sorted(chosen, key=lambda video: order.index(video.id))
        if video.id not in (BAD, "sound.mka")
    ]
    expected = fit(raws, 5)
    assert Projection.load(out / "projection-rgb.safetensors").identity() == expected.identity()
    found = examples(out)["b.mkv"].streams
    raw = extractor.raw(next(video.path for video in videos if video.id == "b.mkv"))
    np.testing.assert_array_equal(found["rgb"], quantize(expected.apply(raw["rgb"])))
    assert found["audio"].dtype == np.float16

    provenance = Source(out).provenance
    assert provenance.streams["rgb"]["projection"] == expected.identity()
    assert (provenance.streams["rgb"]["quantised"], provenance.streams["audio"]["quantised"]) == (True, False)
    assert (provenance.streams["rgb"]["width"], provenance.streams["audio"]["width"]) == (5, 128)
    again = Extractor.from_provenance(provenance)
    np.testing.assert_array_equal(again.finish(raw)["rgb"], found["rgb"])


def test_of_several_parts_the_first_one_fits(videos, extractor, tmp_path):
    with pytest.raises(RecipeError, match=r"part 1 fits the projection of 'rgb'; start this one when"):
        extract(videos, tmp_path / "out", extractor, pca={"rgb": 5}, part=(2, 2), per_shard=3)
    assert extract(videos, tmp_path / "out", extractor, pca={"rgb": 5}, part=(1, 2), per_shard=3) is None
    made = extract(videos, tmp_path / "out", extractor, pca={"rgb": 5}, part=(2, 2), per_shard=3)
    extract(videos, tmp_path / "whole", extractor, pca={"rgb": 5}, per_shard=3)
    assert made.videos == 6
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_what_was_left_out_can_be_tried_again(films, extractor, tmp_path):
    shutil.copytree(films, tmp_path / "films")
    videos = [Video(file.name, file.path) for file in files([str(tmp_path / "films")])[0]]
    out = tmp_path / "out"
    assert len(extract(videos, out, extractor, per_shard=2).bad) == 1
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.arrow")}
    shutil.copy(tmp_path / "films" / "d.mkv", tmp_path / "films" / BAD)
    assert len(extract(videos, out, extractor, per_shard=2).bad) == 1
    made = extract(videos, out, extractor, per_shard=2, retry=True)
    assert (made.videos, made.bad) == (7, [])
    assert sum(path.stat().st_mtime_ns != at for path, at in kept.items()) == 1
    np.testing.assert_array_equal(examples(out)[BAD].streams["rgb"], examples(out)["d.mkv"].streams["rgb"])


def test_too_many_unreadable_files_end_the_work(videos, extractor, tmp_path):
    assert extract(videos, tmp_path / "a", extractor, max_bad=1) is not None
    with pytest.raises(
        DataError, match=r"this is unreadable file number 1, and --max-bad allows 0"
    ) as caught:
        extract(videos, tmp_path / "b", extractor, max_bad=0)
    assert caught.value.path.endswith(BAD)


def test_nothing_but_unreadable_files_is_an_error(films, extractor, tmp_path):
    with pytest.raises(DataError, match="and no other file can be read either"):
        extract([Video("x", str(films / BAD))], tmp_path / "out", extractor)


def test_a_file_without_the_tracks_that_are_wanted_is_told(films, tmp_path):
    of_sound = Extractor({"audio": encoding.find("mel", slot="audio")})
    made = extract(
        [Video(name, str(films / name)) for name in ("b.mkv", "silent.mkv")], tmp_path / "out", of_sound
    )
    assert made.videos == 1
    assert made.bad[0]["reason"] == "has no sound; it has pictures"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"per_shard": 3}, "videos_per_shard was 2, now it is 3"),
        ({"label_names": ["x", "y", "q"]}, "the videos or their labels have changed"),
        ({"pca": {"rgb": 4}}, r'pca was \{\}, now it is \{"rgb": 4\}'),
    ],
)
def test_other_work_in_the_same_folder_is_refused(whole, videos, extractor, change, reason):
    settings = {"label_names": ["x", "y", "z"], "per_shard": 2} | change
    before = content(whole)
    with pytest.raises(RecipeError, match=reason):
        extract(videos, whole, extractor, **settings)
    assert content(whole) == before


def test_a_folder_with_anything_else_in_it_is_refused(videos, extractor, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(RecipeError, match=r"holds thesis\.txt; expected a new folder"):
        extract(videos, tmp_path, extractor)


def test_two_videos_of_one_id_and_none_at_all_are_refused(videos, extractor, tmp_path):
    with pytest.raises(RecipeError, match=r"two videos have the id 'b\.mkv'"):
        extract([*videos, Video("b.mkv", "elsewhere")], tmp_path / "out", extractor)
    with pytest.raises(RecipeError, match="there is no video"):
        extract([], tmp_path / "out", extractor)
    assert not (tmp_path / "out").exists()


def test_the_command_extracts_checks_its_options_and_says_what_comes_next(cli, films, tmp_path):
    out = tmp_path / "out"
    code, printed, _ = cli("extract", films, "--rgb", "layout", "--audio", "mel", "--out", out)
    assert code == 0
    assert "6 videos of 0:39 in all" in printed
    assert f"  {films / BAD}: " in printed
    assert f"next: tagreel predict RUN --data {out}" in printed
    code, printed, _ = cli("extract", films, "--rgb", "layout", "--audio", "mel", "--out", out, "--json")
    assert json.loads(printed)["seconds"] == 39


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "neither --rgb nor --audio"),
        (["--rgb", "layuot"], "did you mean layout"),
        (["--rgb", "mel"], "takes sound; it goes to audio"),
        (
            ["--rgb", "layout", "--set", "audio.size=2"],
            r"--set audio.size: expected rgb.OPTION, limits.OPTION",
        ),
        (["--rgb", "layout", "--set", "limits.second=2"], "did you mean seconds"),
        (["--rgb", "layout", "--set", "limits.seconds=-2"], "limits.seconds is -2; expected more than 0"),
        (["--rgb", "layout", "--pca", "audio=3"], "--pca audio=3: there is no such stream; expected rgb"),
        (["--rgb", "layout", "--pca", "rgb=x"], "--pca rgb=x: expected a number"),
        (["--rgb", "layout", "--pca", "rgb=9999"], "--pca rgb=9999: dim=9999: expected 1 to"),
        (["--rgb", "layout", "--part", "3/2"], "--part 3/2: expected I/N"),
    ],
)
def test_a_wrong_option_is_one_line(cli, films, tmp_path, options, reason):
    code, _, errors = cli("extract", films / "b.mkv", "--out", tmp_path / "out", *options)
    assert code == 2
    assert reason in errors
    assert errors.count("\n") == 1


@pytest.mark.filterwarnings("default")  # Ray's own
def test_on_a_cluster_that_loses_workers_the_data_set_is_the_same(whole, videos, extractor, tmp_path):
    """Two workers; the first two that have begun a shard are killed."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'tagreel[ray]'")
    ray.init(num_cpus=2, log_to_driver=False, logging_level="error", include_dashboard=False)
    killed: set[int] = set()

    def kill() -> None:
        while len(killed) < 2:
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    name, pid = (process / "cmdline").read_text(), int(process.name)
                    if name.startswith("ray::MapWorker") and (out / ".parts").exists() and pid not in killed:
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)
            time.sleep(0.2)

    out = tmp_path / "out"
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        made = extract(videos, out, extractor, label_names=["x", "y", "z"], per_shard=2, engine="ray")
    finally:
        ray.shutdown()
    assert (made.videos, len(made.bad)) == (6, 1)
    assert content(out) == content(whole)
    assert killed
