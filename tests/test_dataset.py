import json
import shutil
from pathlib import Path

import pytest

import tagreel
from tagreel.dataset import split
from tagreel.errors import DataError
from tagreel.media import File, Listed
from tagreel.source import Source

SHARES = (0.8, 0.1, 0.1)


def listed(tmp_path, count, **given):
    found = []
    for index in range(count):
        path = tmp_path / f"{index}.mp4"
        path.write_bytes(given.get("content", str(index)).encode())
        found.append(Listed(File(f"v{index}", str(path)), ("cat",), given.get("split"), given.get("group")))
    return found


def sizes(splits):
    return [len(splits[name]) for name in ("train", "validate", "test")]


@pytest.mark.parametrize(
    ("count", "expected"), [(10, [8, 1, 1]), (100, [80, 10, 10]), (1, [1, 0, 0]), (5, [4, 0, 1])]
)
def test_every_split_gets_its_share(tmp_path, count, expected):
    videos = listed(tmp_path, count)
    found = split(videos, SHARES)
    assert sizes(found) == expected
    assert sorted(item.file.name for items in found.values() for item in items) == sorted(
        item.file.name for item in videos
    )
    assert split(videos[::-1], SHARES) == found, "the order of the table does not matter"


def test_copies_and_groups_stay_on_one_side(tmp_path):
    videos = listed(tmp_path, 30)
    for index in range(0, 30, 3):  # the second of three is a copy of the first, and in a group with the third
        shutil.copy(videos[index].file.path, videos[index + 1].file.path)
        for at in (index + 1, index + 2):
            videos[at] = Listed(videos[at].file, (), None, f"group {index}")
    found = split(videos, (0.5, 0.25, 0.25))
    home = {item.file.name: name for name, items in found.items() for item in items}
    assert all(home[f"v{i}"] == home[f"v{i + 1}"] == home[f"v{i + 2}"] for i in range(0, 30, 3))
    assert sizes(found) == [15, 6, 9]


def test_the_tables_own_split_holds_and_takes_its_copies_along(tmp_path):
    videos = listed(tmp_path, 4, content="same")
    videos[2] = Listed(videos[2].file, (), "test", None)
    assert sizes(split(videos, SHARES)) == [0, 0, 4]
    videos[3] = Listed(videos[3].file, (), "train", None)
    with pytest.raises(
        DataError, match="is in test and, in the same group or as a copy, in train; it would leak"
    ):
        split(videos, SHARES)
    with pytest.raises(DataError, match="the split is 'dev'; expected train, validate, test, or nothing"):
        split(listed(tmp_path, 1, split="dev"), SHARES)


@pytest.fixture
def table(films, tmp_path):
    """Twelve films of two tags, some without sound, some of sound alone."""
    lines = ["path,tags,group"]
    for index in range(12):
        name = ("b.mkv", "c.mkv", "d.mkv", "silent.mkv", "sound.mka")[index % 5]
        copy = tmp_path / f"{index:02}-{name}"
        copy.write_bytes((films / name).read_bytes() + bytes(index))
        lines.append(
            f"{copy.name},{'odd' if index % 2 else 'even'};{'first' if index < 6 else f'rare {index}'},"
        )
    (tmp_path / "broken.mkv").write_bytes((films / "broken.mkv").read_bytes())
    (tmp_path / "videos.csv").write_text("\n".join([*lines, "broken.mkv,odd,", "gone.mkv,odd,"]) + "\n")
    return tmp_path / "videos.csv"


def test_a_table_becomes_a_data_set_that_a_tagger_is_trained_on(cli, table, tmp_path):
    pytest.importorskip("av", reason="needs PyAV: pip install 'tagreel[video]'")
    out, run = tmp_path / "mine", tmp_path / "run"
    options = ("--rgb", "layout", "--audio", "mel", "--pca", "rgb=6", "--split", "60,20,20")
    code, printed, _ = cli("dataset", "make", "--csv", table, "--out", out, *options)
    assert code == 0
    assert sorted((out / "labels.txt").read_text().split()) == ["even", "first", "odd"]
    assert "3 tags" in printed
    assert "2 files could not be read:" in printed
    assert f"next: tagreel train own --data {out}/train --validate {out}/validate --out run" in printed
    assert "left out: rare 10, rare 11, rare 6" in printed
    code, printed, _ = cli("dataset", "make", "--csv", table, "--out", out, *options, "--json")
    assert code == 0
    found = json.loads(printed)
    assert sum(found["videos"].values()) == 12
    assert {Path(bad["path"]).name for bad in found["bad"]} == {"broken.mkv", "gone.mkv"}

    sources = [Source(out / name) for name in ("train", "validate", "test")]
    assert {tuple(source.label_names) for source in sources} == {tuple(found["tags"])}
    assert sources[0].provenance == sources[1].provenance == sources[2].provenance
    assert sources[0].provenance.streams["rgb"]["projection"]["dim"] == 6

    data = ("--data", out / "train", "--validate", out / "validate")
    assert cli("train", "own", *data, "--out", run, "--steps", 2, "--set", "training.batch_size=4")[0] == 0
    model = tagreel.load(run)
    assert model.label_names == found["tags"]
    assert model.provenance == sources[0].provenance
    assert cli("evaluate", run, "--data", out / "test")[0] == 0

    other = tmp_path / "other"
    cli(
        "extract",
        tmp_path / "00-b.mkv",
        "--rgb",
        "layout",
        "--set",
        "rgb.grid=2",
        "--pca",
        "rgb=1",
        "--out",
        other,
    )
    code, _, errors = cli("predict", run, "--data", other, "--out", tmp_path / "tags.parquet")
    assert code == 2
    assert "the model cannot read these features: its 'rgb'" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--split", "80,20"], "--split 80,20: expected three numbers"),
        (["--split", "0,50,50"], "expected shares of 0 or more, and some for training"),
        (["--min-videos", "40"], "no tag is on 40 of the"),
    ],
)
def test_a_wrong_option_is_one_line(cli, table, tmp_path, options, reason):
    out = ("--out", tmp_path / "mine")
    code, _, errors = cli("dataset", "make", "--csv", table, "--rgb", "layout", *out, *options)
    assert code == 2
    assert reason in errors
    assert errors.count("\n") == 1
