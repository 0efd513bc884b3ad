"""Whatever happens to the bytes of a shard: a line that names file and record, or the rest is used."""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
from pathlib import Path

import pytest

from tagreel.readers.synthetic import Planted
from tagreel.recipe import to_json
from tests.conftest import with_training, write_shard

VIDEOS = 24
COMMANDS = ("check", "train", "evaluate", "predict")


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def cut_end(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def cut_middle(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data))
    return data[:begin] + data[begin + rng.randrange(1, 5000) :]


def zero(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data))
    size = min(rng.randrange(1, 9000), len(data) - begin)
    return data[:begin] + bytes(size) + data[begin + size :]


def scribble(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data))
    size = min(rng.randrange(1, 300), len(data) - begin)
    return data[:begin] + rng.randbytes(size) + data[begin + size :]


def empty(data: bytes, rng: random.Random) -> bytes:
    return b""


DAMAGES = (flip, cut_end, cut_middle, zero, scribble, empty)


def ends(data: bytes) -> list[int]:
    """Where each record ends: cut there, a file is sound and shorter, and no reader can tell."""
    found, at = [0], 0
    while at < len(data):
        at += int.from_bytes(data[at : at + 8], "little") + 16
        found.append(at)
    return found


@pytest.fixture
def folder(tmp_path, tiny) -> Path:
    planted = Planted(rgb=12, audio=6)
    (tmp_path / "data").mkdir()
    for name, first in (("a.tfrecord", 0), ("b.tfrecord", VIDEOS)):
        write_shard(tmp_path / "data" / name, planted.examples(first, VIDEOS))
    recipe = with_training(tiny, steps=1, batch_size=4 * VIDEOS)
    (tmp_path / "tiny.json").write_text(json.dumps(to_json(recipe)))
    return tmp_path


def arguments(command: str, folder: Path, run: Path, *more: str) -> list[str]:
    """A command over the data, with JSON at its end."""
    data, out = str(folder / "data"), folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    device = ["--device", "cpu", "--json"]
    return {
        "check": ["check", data, "--json"],
        "train": ["train", str(folder / "tiny.json"), "--data", data, "--out", str(out), *device, *more],
        "evaluate": ["evaluate", str(run), "--data", data, "--report", str(out), *device, *more],
        "predict": ["predict", str(run), "--data", data, "--out", str(out / "tags.jsonl"), *device, *more],
    }[command]


def listed(err: str) -> list[str]:
    return [
        line
        for line in err.splitlines()
        if re.search(r"a\.tfrecord(\.gz)?(, (record|example) [\d,]+)?: ", line)
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_anywhere_is_named_and_what_is_sound_is_used(damage, seed, folder, run, cli):
    path = folder / "data" / "a.tfrecord"
    data, rng = path.read_bytes(), random.Random(f"{damage.__name__} {seed}")
    bad = damage(data, rng)
    if bad in [data[:end] for end in ends(data)[1:]]:
        bad = bad[:-1]
    path.write_bytes(bad)
    assert_named_and_the_rest_used(folder, run, cli, path)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("damage", [flip, cut_end, zero])
def test_damage_to_a_packed_shard_is_named(damage, seed, folder, run, cli):
    path = folder / "data" / "a.tfrecord"
    packed = gzip.compress(path.read_bytes(), mtime=0)
    path.unlink()
    path = path.with_suffix(".tfrecord.gz")
    rng = random.Random(f"packed {damage.__name__} {seed}")
    bad = damage(packed, rng)
    # The gzip header's time, flags of the system and the like mean nothing.
    path.write_bytes(packed[:10] + bad[10:] if len(bad) > 10 else bad)
    if path.read_bytes() == packed:
        pytest.skip("this damage fell into bytes without a meaning")
    assert_named_and_the_rest_used(folder, run, cli, path)


def assert_named_and_the_rest_used(folder: Path, run: Path, cli, path: Path) -> None:
    code, out, err = cli(*arguments("check", folder, run))
    assert code == 2, out
    found = json.loads(out.splitlines()[-1])
    damaged, sound = len(found["damage"]), found["examples"]
    assert damaged >= 1
    assert VIDEOS <= sound < 2 * VIDEOS
    assert all(line.startswith(str(path)) for line in found["damage"])
    for command in COMMANDS[1:]:
        code, out, err = cli(*arguments(command, folder, run))
        assert (code, list(json.loads(out))) == (2, ["error"]), f"{command}: {out} {err}"
        (line,) = [line for line in err.splitlines() if line.startswith("tagreel: ")]
        assert listed(line), line
        assert "Traceback" not in err
        code, out, err = cli(*arguments(command, folder, run, "--skip-damaged", "1000"))
        assert code == 0, f"{command}: {err}"
        result = json.loads(out.splitlines()[-1])
        assert result["damaged"] == damaged == len(listed(err)), err
        if command != "train":
            assert result["videos"] == sound
    tags = (folder / "out" / "tags.jsonl").read_text().splitlines()
    assert len(tags) == len({json.loads(line)["id"] for line in tags}) == sound
    events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert not events


@pytest.mark.parametrize("command", COMMANDS)
def test_sound_shards_pass(command, folder, run, cli):
    code, out, err = cli(*arguments(command, folder, run))
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result.get("damaged", 0) == 0
    if command == "check":
        assert (result["examples"], result["damage"]) == (2 * VIDEOS, [])


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_no_more_than_was_allowed_is_skipped(command, folder, run, cli):
    path = folder / "data" / "a.tfrecord"
    data = bytearray(path.read_bytes())
    for end in ends(data)[1:4]:
        data[end - 100] ^= 1
    path.write_bytes(data)
    code, out, err = cli(*arguments(command, folder, run, "--skip-damaged", "2"))
    assert (code, list(json.loads(out))) == (2, ["error"])
    assert "a.tfrecord, record " in err
    assert "this is damaged record number 3, and --skip-damaged allows 2" in err
    assert cli(*arguments(command, folder, run, "--skip-damaged", "3"))[0] == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_but_damage_is_an_error(command, folder, run, cli):
    for path in (folder / "data").iterdir():
        data = bytearray(path.read_bytes())
        for end in ends(data)[1:]:
            data[end - 100] ^= 1
        path.write_bytes(data)
    code, _, err = cli(*arguments(command, folder, run, "--skip-damaged", "1000"))
    assert code == 2
    if command != "check":
        assert "a.tfrecord: no record could be read" in err
        assert not (folder / "out" / "tags.jsonl").exists()
