from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import tagreel
from tagreel.average import average
from tagreel.checkpoint import find, model_files
from tagreel.compress import compress
from tagreel.errors import DataError, RecipeError
from tagreel.loader import Loader
from tagreel.predict import predict
from tagreel.predictions import PredictionFile
from tagreel.recorded import Recorded
from tagreel.remember import remember
from tagreel.source import Source
from tagreel.tags import Fit, ShownTag, TagSet, carry, reset
from tagreel.teacher import fingerprint
from tests.conftest import InMemory, video

CPU = torch.device("cpu")
NAMES = ("dog", "cat", "kitten", "tabby", "car, red", "car")


@pytest.fixture
def tags() -> TagSet:
    return TagSet(tuple(ShownTag(name, (c,)) for c, name in enumerate(NAMES)), NAMES)


@pytest.fixture
def own(run, tmp_path) -> Path:
    """A run to write into."""
    return Path(shutil.copytree(run, tmp_path / "own"))


def made_of(tags: TagSet) -> dict[str, tuple[int, ...]]:
    return {tag.name: tag.classes for tag in tags.tags}


# ---------------------------------------------------------------------- changing


def test_edits_in_a_row_say_which_classes_are_shown_under_which_name(tags):
    changed = tags.rename("dog", "Hund").merge("Cats", ["kitten", "tabby"]).merge("Cats", ["cat"]).drop("car")
    assert made_of(changed) == {"Hund": (0,), "Cats": (1, 2, 3), "car, red": (4,)}
    assert [tag.classes for tag in changed.tags] == [(0,), (1, 2, 3), (4,)]
    assert made_of(changed.restore("tabby")) == {
        "Hund": (0,),
        "Cats": (1, 2),
        "tabby": (3,),
        "car, red": (4,),
    }
    assert made_of(changed.restore("car"))["car"] == (5,)
    assert made_of(tags) == {name: (c,) for c, name in enumerate(NAMES)}, "the set itself stays as it was"


def test_a_tag_keeps_its_fit_while_it_is_made_of_the_same_classes(tags):
    fits = [Fit(1 + c / 10, -c, 0.1 * c, c) for c in range(6)]
    shared = Fit(0.9, 0.5, 0.3)
    fitted = tags.with_fits(fits, default=shared, fitted={"videos": 9})
    changed = fitted.rename("dog", "Hund").merge("cat", ["tabby"]).drop("kitten")
    assert [(tag.name, tag.fit) for tag in changed.tags] == [
        ("Hund", fits[0]),
        ("cat", shared),
        ("car, red", fits[4]),
        ("car", fits[5]),
    ]
    assert changed.fitted == {"videos": 9}
    assert {tag.fit for tag in changed.uncalibrated().tags} == {Fit()}


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda tags: tags.rename("dgo", "x"), "no tag 'dgo'; did you mean 'dog'"),
        (lambda tags: tags.rename("dog", "cat"), "a tag 'cat' already; to show both as one, merge 'dog'"),
        (lambda tags: tags.rename("dog", " "), "class 0 is to have an empty name"),
        (lambda tags: tags.merge("x", ["dog", "kiten"]), "no tag 'kiten'; did you mean 'kitten'"),
        (lambda tags: tags.drop("elephant"), "no tag 'elephant'; `tagreel tags RUN` lists them"),
        (lambda tags: tags.restore("dgo"), "no class 'dgo'; did you mean 'dog'"),
        (lambda tags: tags.drop("dog").rename("cat", "dog").restore("dog"), "another tag is called 'dog'"),
        (lambda tags: tags.shown_as(dict.fromkeys(range(6))), "no tag would be left"),
    ],
)
def test_an_edit_that_means_nothing_says_why(edit, reason, tags):
    with pytest.raises(RecipeError, match=reason):
        edit(tags)


# ---------------------------------------------------------------------- probabilities


def test_probabilities_are_the_highest_of_the_classes_then_calibrated(tags):
    rng = np.random.default_rng(0)
    shown = tags.merge("Cats", ["cat", "kitten", "tabby"]).drop("car")
    shown = shown.with_fits([Fit(), Fit(1.3, -0.4), Fit(0.5, 2.0)], default=Fit(), fitted={})
    probabilities = rng.random((50, 6)).astype(np.float32)
    found = shown.apply(torch.from_numpy(probabilities))
    assert found.shape == (50, 3)
    for row, given in zip(found.tolist(), probabilities.astype(float), strict=True):
        for probability, p, (slope, bias) in zip(
            row, (given[0], max(given[1:4]), given[4]), ((1, 0), (1.3, -0.4), (0.5, 2.0)), strict=True
        ):
            expected = 1 / (1 + np.exp(-(slope * np.log(p / (1 - p)) + bias)))
            assert probability == pytest.approx(expected, rel=1e-5)
    assert (found[:, 0] == torch.from_numpy(probabilities)[:, 0]).all(), "to the last bit"


def test_as_trained_nothing_changes_and_zero_and_one_stay(tags):
    probabilities = torch.tensor([[0.0, 1.0, 1e-30, 0.5, 1 - 6e-8, 0.3]])
    assert torch.equal(tags.apply(probabilities), probabilities)
    calibrated = tags.with_fits([Fit(0.7, 3.0)] * 6, default=Fit(), fitted={}).apply(probabilities)
    assert calibrated[0, :2].tolist() == [0.0, 1.0]
    assert not calibrated.isnan().any()


def test_calibration_changes_no_order_within_a_tag(tags):
    probabilities = torch.logspace(-30, 0, 5000)[:, None].expand(-1, 6)
    fits = [Fit(slope, bias) for slope in (0.2, 1.0, 3.0) for bias in (-4.0, 2.5)]
    found = tags.with_fits(fits, default=Fit(), fitted={}).apply(probabilities)
    assert (found.diff(dim=0) >= 0).all()
    assert (found[-1] > found[0]).all()


def test_thresholds_and_names_are_those_of_the_tags(tags):
    fits = [Fit(threshold=t) for t in (0.1, 0.2, float("inf"), 0.4, 0.5, 0.6)]
    fitted = tags.with_fits(fits, default=Fit(), fitted={})
    assert fitted.thresholds.tolist() == pytest.approx([0.1, 0.2, float("inf"), 0.4, 0.5, 0.6])
    assert fitted.names == list(NAMES)


def test_classes_of_one_name_are_told_apart(tiny):
    model = tagreel.tagger.build(tiny, label_names=["same"] * 2 + [f"n{c}" for c in range(118)])
    assert TagSet.of(model).names[:3] == ["same (0)", "same (1)", "n0"]


# ---------------------------------------------------------------------- in a model's folder


def test_what_is_written_is_read_again(own):
    folder = find(own)
    assert TagSet.read(folder) is None
    before = TagSet.in_folder(folder)
    assert before == TagSet.of(tagreel.load(own))
    fits = [Fit(1.25, -0.5, 0.25, 3), *[Fit(threshold=float("inf"))] * 119]
    changed = before.with_fits(fits, default=Fit(0.9, 0.1, 0.3, 77), fitted={"videos": 5})
    changed = changed.merge("Both", before.names[3:5]).drop(before.names[7])
    changed.write(folder)
    assert TagSet.read(folder) == changed
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []
    reset(folder)
    assert TagSet.read(folder) is None


def misfit_class(found):
    found["tags"][0]["classes"] = {"120": "x"}


def misfit_name(found):
    found["tags"][0]["classes"] = {"0": "elsewhere"}


def class_twice(found):
    found["tags"][1]["classes"] = found["tags"][0]["classes"]


def name_twice(found):
    found["tags"][1]["name"] = found["tags"][0]["name"]


def no_classes(found):
    found["tags"][0]["classes"] = {}


def no_tags(found):
    found["tags"] = []


def slope_below_zero(found):
    found["tags"][2]["slope"] = -1


def another_format(found):
    found["format"] = 2


def without_bias(found):
    del found["tags"][0]["bias"]


def a_list(found):
    found["tags"] = ["x"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (misfit_class, "'beach' is made of class 120; the model has 120; mend it, or .* --reset"),
        (misfit_name, "class 0 is 'elsewhere' here and 'beach' in the model"),
        (class_twice, "class 0 is in 'beach' and in 'beach at night'"),
        (name_twice, "a tag is called 'beach'; expected a name that no other one has"),
        (no_classes, "'beach' is made of no class"),
        (no_tags, "there is no tag"),
        (slope_below_zero, "has slope -1, .* expected a slope above 0"),
        (another_format, "format 2; this tagreel reads 1"),
        (without_bias, "not tags as tagreel writes them: KeyError"),
        (a_list, "not tags as tagreel writes them: TypeError"),
    ],
)
def test_tags_that_do_not_fit_their_model_are_one_line(change, reason, own):
    folder = find(own)
    TagSet.in_folder(folder).write(folder)
    found = json.loads((folder / "tags.json").read_text())
    change(found)
    (folder / "tags.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match=reason) as caught:
        TagSet.read(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(folder / "tags.json"))


def test_hundreds_are_edited_in_a_file(tags, tmp_path):
    path = tmp_path / "tags.csv"
    tags.drop("dog").export(path)
    assert path.read_text().splitlines() == [
        "class,name,tag",
        "0,dog,",
        "1,cat,cat",
        "2,kitten,kitten",
        "3,tabby,tabby",
        '4,"car, red","car, red"',
        "5,car,car",
    ]
    lines = ["class,name,tag", "0,dog,Hund", "2,kitten,Cat", "3,tabby,Cat", "5,car,"]
    path.write_text("\n".join(lines))
    assert made_of(tags.edited(path)) == {"Hund": (0,), "cat": (1,), "Cat": (2, 3), "car, red": (4,)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "id,name\n0,dog\n",
            "has no column 'class'; expected class, name, tag, as `tagreel tags RUN --export",
        ),
        ("class,name,tag\n6,dog,x\n", "line 2: class '6'; expected 0 to 5"),
        ("class,name,tag\nx,dog,x\n", "line 2: class 'x'; expected 0 to 5"),
        ("class,name,tag\n0,cat,x\n", "line 2: class 0 is 'cat' here and 'dog' in the model"),
        ("class,name,tag\n0,dog,x\n0,dog,y\n", "line 3: class 0 again"),
    ],
)
def test_a_file_of_edits_that_does_not_fit_names_the_line(text, reason, tags, tmp_path):
    path = tmp_path / "tags.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=reason):
        tags.edited(path)


# ---------------------------------------------------------------------- models made of models


def calibrated_and_renamed(folder: Path) -> TagSet:
    tags = TagSet.in_folder(folder)
    fits = [Fit(1.5, -1.0, 0.2, 4)] * 120
    tags = tags.with_fits(fits, default=Fit(0.8), fitted={"videos": 3}).rename("beach", "Strand")
    tags.write(folder)
    return tags


def test_compressing_keeps_the_tags_and_their_calibration(own, tmp_path):
    folder = find(own)
    tags = calibrated_and_renamed(folder)
    assert folder / "tags.json" in model_files(folder)
    compress(folder, tmp_path / "small", ["bfloat16"])
    assert TagSet.read(tmp_path / "small") == tags
    repeated = ["inference=tagreel.inference.RepeatedSampling"]
    compress(folder, tmp_path / "other", ["bfloat16"], settings=repeated)
    assert TagSet.read(tmp_path / "other") == tags.uncalibrated()


def test_a_model_with_other_scores_keeps_the_names_alone(own, training_data, tmp_path):
    folder = find(own)
    tags = calibrated_and_renamed(folder)
    average([folder], tmp_path / "average")
    remember(own, training_data, tmp_path / "remembering")
    for made in ("average", "remembering"):
        assert TagSet.read(tmp_path / made) == tags.uncalibrated()
    carry(tmp_path, tmp_path)  # where nothing was changed there is nothing to carry
    assert not (tmp_path / "tags.json").exists()


def test_a_teacher_is_the_same_however_its_tags_are_shown(own):
    before = fingerprint(own)
    calibrated_and_renamed(find(own))
    assert fingerprint(own) == before


# ---------------------------------------------------------------------- predict


def written(run: Path, data: Source | InMemory, out: Path, **options) -> list[dict]:
    model = tagreel.load(run)
    loader = Loader(data, features=model.features, classes=model.classes, batch_size=8)
    predict(model, loader, out, device=CPU, **options)
    if out.suffix == ".parquet":
        return pq.read_table(out).to_pylist()
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def scores_of(run: Path, data: Source) -> dict[str, torch.Tensor]:
    model = tagreel.load(run)
    loader = Loader(data, features=model.features, classes=model.classes, batch_size=50)
    batches = [batch for _, batch in loader.epoch()]
    return {
        name: scores
        for batch in batches
        for name, scores in zip(batch.ids, model.probabilities(batch).detach(), strict=True)
    }


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_predict_writes_the_tags_as_they_are_shown(ending, own, test_data, tmp_path):
    tags = calibrated_and_renamed(find(own)).merge("Inside", ["kitchen", "studio"]).drop("garage")
    found = written(own, test_data, tmp_path / f"x.{ending}", tags=tags, top_k=500)
    scores = scores_of(own, test_data)
    assert len(found) == 50
    for row in found:
        assert set(row) == {"id", "names", "probabilities"}
        assert sorted(row["names"]) == sorted(tags.names)
        assert row["probabilities"] == sorted(row["probabilities"], reverse=True)
        expected = tags.apply(scores[row["id"]][None])[0].tolist()
        by_name = dict(zip(row["names"], row["probabilities"], strict=True))
        assert [by_name[name] for name in tags.names] == pytest.approx(expected, rel=1e-4)


def test_predict_with_thresholds_writes_what_reaches_its_own(own, test_data, tmp_path):
    tags, scores = TagSet.in_folder(find(own)), scores_of(own, test_data)
    fits = [Fit(threshold=t) for t in torch.stack(list(scores.values())).quantile(0.9, dim=0).tolist()]
    fits[0] = Fit(threshold=float("inf"))
    tags = tags.with_fits(fits, default=Fit(), fitted={})
    found = written(own, test_data, tmp_path / "x.parquet", tags=tags, threshold=True, top_k=10)
    counts = []
    for row in found:
        reached = [
            (-p, name)
            for p, name, fit in zip(scores[row["id"]].tolist(), tags.names, fits, strict=True)
            if p >= fit.threshold
        ]
        assert row["names"] == [name for _, name in sorted(reached)][:10]
        counts.append(len(row["names"]))
    assert max(counts) == 10 > min(counts), "some are cut, some have fewer"


def test_predict_shows_tags_made_of_the_classes_it_is_to_choose_from(own, test_data, tmp_path):
    tags = TagSet.in_folder(find(own)).merge("Both", ["beach", "studio"]).drop("kitchen")
    names, kitchen = tags.label_names, tags.label_names.index("kitchen")
    found = written(own, test_data, tmp_path / "a.jsonl", tags=tags, only=[names.index("studio"), 1, kitchen])
    assert all(set(row["names"]) == {"Both", names[1]} for row in found)
    with pytest.raises(RecipeError, match="--only: no tag is made of any of these classes"):
        written(own, test_data, tmp_path / "b.jsonl", tags=tags, only=[kitchen])


def test_parts_of_other_tags_are_not_gone_on_with(own, training_data, tmp_path, monkeypatch):
    monkeypatch.setattr("tagreel.predict.PART_VIDEOS", 16)
    tags, out = TagSet.in_folder(find(own)), tmp_path / "x.parquet"

    def stop(done: int) -> None:
        if done >= 50:
            raise KeyboardInterrupt

    for now, resumed in ((tags, True), (tags.rename("beach", "Strand"), False)):
        with pytest.raises(KeyboardInterrupt):
            written(own, training_data, out, tags=tags, on_batch=stop)
        model = tagreel.load(own)
        loader = Loader(training_data, features=model.features, classes=model.classes, batch_size=8)
        assert bool(predict(model, loader, out, device=CPU, tags=now).resumed) is resumed


def test_a_file_of_tags_is_no_file_of_classes(own, test_data, tmp_path):
    tags = TagSet.in_folder(find(own)).rename("beach", "Strand")
    for ending in ("parquet", "jsonl"):
        out = tmp_path / f"x.{ending}"
        written(own, test_data, out, tags=tags)
        has = r"'labels' \(it has: id, names, probabilities\); expected .*predict --raw"
        with pytest.raises(DataError, match=has):
            Recorded(out)
        written(own, test_data, out)
        assert Recorded(out).classes <= 120
        assert not PredictionFile(out).is_ranking


def test_what_tags_cannot_be_written_as_is_said(own, test_data, tmp_path):
    tags = TagSet.in_folder(find(own))
    with pytest.raises(RecipeError, match=r"\.csv is of classes, not of tags; expected \.parquet or \.jsonl"):
        written(own, test_data, tmp_path / "x.csv", tags=tags)
    for given in (None, tags):
        with pytest.raises(RecipeError, match="--threshold: tags have one once `tagreel calibrate` was run"):
            written(own, test_data, tmp_path / "x.jsonl", tags=given, threshold=True)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_segments_are_shown_the_same_tags(own, tmp_path):
    tags = TagSet.in_folder(find(own)).merge("Both", ["beach", "studio"])
    frames = {"rgb": np.full((12, 12), 9, np.uint8), "audio": np.full((12, 6), 9, np.uint8)}
    found = written(own, InMemory([video("v", **frames)]), tmp_path / "x.jsonl", tags=tags, segments=5)
    assert [row["id"] for row in found] == ["v:0", "v:5", "v:10"]
    assert all("Both" in row["names"] or len(row["names"]) == 20 for row in found)


# ---------------------------------------------------------------------- the commands


def test_the_command_shows_and_changes_tags_in_place(cli, own, tmp_path):
    code, out, _ = cli("tags", own)
    assert code == 0
    assert len(out.splitlines()) == 121
    code, out, _ = cli(
        *("tags", own, "--rename", "beach=Strand", "--rename", "studio=Studio, klein", "--drop", "garage"),
        *("--merge", 'Inside=kitchen,"Studio, klein"', "--restore", "harbour", "--json"),
    )
    assert code == 0
    found = json.loads(out)
    assert (len(found["tags"]), found["dropped"]) == (118, 1)
    shown = {tag["name"]: tag["classes"] for tag in found["tags"]}
    assert list(shown["Strand"].values()) == ["beach"]
    assert sorted(shown["Inside"].values()) == ["kitchen", "studio"]
    assert TagSet.in_folder(find(own)).names == list(shown)
    assert "1 classes are not shown" in cli("tags", own)[1]
    assert cli("tags", own, "--reset")[0] == 0
    assert TagSet.read(find(own)) is None


def test_the_command_changes_nothing_where_one_edit_is_wrong(cli, own):
    for arguments, reason in (
        (("--rename", "beach=Strand", "--drop", "gorage"), "no tag 'gorage'; did you mean 'garage'?"),
        (("--rename", "beach"), "--rename beach: expected OLD=NEW"),
        (("--merge", "x="), "--merge x=: expected NAME=TAG,TAG"),
        (("--reset", "--drop", "garage"), "--reset undoes"),
        (("--checkpoint", "step-3"), "no checkpoint 'step-3'"),
    ):
        code, _, err = cli("tags", own, *arguments)
        assert code == 2
        assert reason in err
        assert len(err.splitlines()) == 1
    assert TagSet.read(find(own)) is None


def test_the_command_edits_by_a_file(cli, own, tmp_path):
    path = tmp_path / "tags.csv"
    assert cli("tags", own, "--export", path)[0] == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["tag"], rows[1]["tag"], rows[2]["tag"] = "Same", "Same", ""
    with path.open("w", newline="") as file:
        lines = csv.DictWriter(file, rows[0])
        lines.writeheader()
        lines.writerows(rows)
    code, out, _ = cli("tags", own, "--edit", path)
    assert code == 0
    assert "118 tags of 120 classes, 1 of which are not shown" in out
    assert made_of(TagSet.in_folder(find(own)))["Same"] == (0, 1)


def test_predict_uses_the_tags_of_the_model_unless_told_otherwise(cli, own, shards, tmp_path):
    TagSet.in_folder(find(own)).rename("beach", "Strand").write(find(own))
    data = ("--data", f"{shards}/test*", "--top-k", 120)
    for name, options, shown in (
        ("a.jsonl", (), "Strand"),
        ("b.jsonl", ("--raw",), "beach"),
    ):
        code, _, err = cli("predict", own, *data, "--out", tmp_path / name, "--json", *options)
        assert code == 0
        assert ("tags.json" in err) == (shown == "Strand")
        row = json.loads((tmp_path / name).read_text().splitlines()[0])
        assert shown in row["names"]
        assert ("labels" in row) == (shown == "beach")
    assert cli("predict", own, *data, "--out", tmp_path / "c.csv")[0] == 0
    code, _, err = cli("predict", own, *data, "--out", tmp_path / "d.jsonl", "--threshold")
    assert (code, "tagreel calibrate" in err) == (2, True)
