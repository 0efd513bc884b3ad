from __future__ import annotations

import json
from dataclasses import replace

import pytest

import tagreel
from tagreel import reproduce as stage
from tagreel.ensemble import EnsembleTagger
from tagreel.errors import RecipeError
from tagreel.evaluate import evaluate, scoring_loader
from tagreel.recipe import find, find_ensemble
from tagreel.smaller import facts_of, smaller
from tagreel.train import train

ROWS = ("willow-cg-none-none", "willow-cg-cg")


@pytest.fixture
def options(training_data, test_data, planted, tmp_path):
    return {
        "data": training_data,
        "validation": test_data,
        "label_names": planted.label_names,
        "out": tmp_path / "out",
        "device": "cpu",
    }


def _gap(model, data):
    return evaluate(model, scoring_loader(model, data), device=next(model.parameters()).device).metrics[
        "gap@20"
    ]


def test_a_row_is_the_small_recipe_trained_and_scored(options, tmp_path):
    result = stage.reproduce("willow-2", **options, rows=ROWS, seeds=2)
    data, names = options["data"], options["label_names"]
    for row in ROWS:
        small = smaller(find(row), facts_of(data, 120))
        for seed in (0, 1):
            out = tmp_path / f"{row}-{seed}"
            train(small, data=data, out=out, label_names=names, seed=seed, device="cpu")
            scores = result["rows"][row][str(seed)]["scores"]
            assert scores["gap@20"] == _gap(tagreel.load(out), options["validation"])
    assert list(result["rows"]) == list(ROWS)
    assert [found["claim"]["better"] for found in result["claims"]] == ["willow-cg-cg"]
    assert json.loads((options["out"] / "willow-2.json").read_text()) == result
    assert (options["out"] / "willow-2.md").read_text().startswith("# Willow, table 2: Context Gating\n")
    assert not list(options["out"].glob("runs/*/*"))
    kept = options["out"] / "models" / ROWS[0] / "seed-1"
    assert _gap(tagreel.load(kept), options["validation"]) == result["rows"][ROWS[0]]["1"]["scores"]["gap@20"]


def test_what_was_trained_is_not_trained_again(options, monkeypatch):
    first = stage.reproduce("willow-2", **options, rows=ROWS[:1], seeds=1)
    trained = []
    real = stage.train
    monkeypatch.setattr(
        stage, "train", lambda recipe, **more: trained.append(more["out"]) or real(recipe, **more)
    )
    again = stage.reproduce("willow-2", **options, rows=ROWS, seeds=1, command="another")
    assert [folder.parent.name for folder in trained] == [ROWS[1]]
    assert again["rows"][ROWS[0]] == first["rows"][ROWS[0]]
    assert again["command"] == "another"


def test_a_killed_table_goes_on_where_it_was_and_ends_the_same(options, tmp_path):
    whole = stage.reproduce("willow-2", **{**options, "out": tmp_path / "whole"}, rows=ROWS, seeds=1)

    def killed(row):
        if row["event"] == "train" and row["step"] >= 5:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            stage.reproduce("willow-2", **options, rows=ROWS, seeds=1, on_event=killed)
    result = stage.reproduce("willow-2", **options, rows=ROWS, seeds=1)
    for row in ROWS:
        assert result["rows"][row]["0"]["scores"] == whole["rows"][row]["0"]["scores"]


def test_a_stopped_training_is_noted_as_no_result(options, monkeypatch):
    real = stage.train
    monkeypatch.setattr(
        stage, "train", lambda recipe, **more: replace(real(recipe, **more), interrupted=True)
    )
    assert stage.reproduce("willow-2", **options, rows=ROWS, seeds=1) is None
    assert not (options["out"] / "models").exists()
    monkeypatch.setattr(stage, "train", real)
    assert list(stage.reproduce("willow-2", **options, rows=ROWS, seeds=1)["rows"]) == list(ROWS)


def test_rows_that_differ_in_inference_alone_share_a_training(options):
    started = []
    result = stage.reproduce(
        "cmu-1",
        **options,
        rows=("cmu-mohce12-lc", "cmu-mohce12-lc-si"),
        seeds=1,
        on_event=lambda row: started.append(row) if row["event"] == "start" else None,
    )
    assert len(started) == 1
    whole, segments = (result["rows"][row]["0"]["scores"] for row in result["rows"])
    assert whole != segments
    model = tagreel.load(options["out"] / "models" / "cmu-mohce12-lc" / "seed-0")
    assert _gap(model, options["validation"]) == whole["gap@20"]
    model.recipe = replace(model.recipe, inference=find("cmu-mohce12-lc-si").inference)
    assert _gap(model, options["validation"]) == segments["gap@20"]


def test_an_ensemble_is_that_of_the_models_of_its_members(options):
    started = []
    result = stage.reproduce(
        "nonlocal-3",
        **options,
        rows=("nlvlad-ens-14", "nlvlad-ens-16"),
        seeds=1,
        on_event=lambda row: started.append(row) if row["event"] == "start" else None,
    )
    assert len(started) == 3
    for row in result["rows"]:
        members = [
            tagreel.load(options["out"] / "models" / name / "seed-0") for name in find_ensemble(row).members
        ]
        together = EnsembleTagger(dict(zip("ab", members, strict=True)))
        assert result["rows"][row]["0"]["scores"]["gap@20"] == pytest.approx(
            _gap(together, options["validation"]), abs=1e-6
        )
        assert result["rows"][row]["0"]["parameters"] == sum(
            p.numel() for model in members for p in model.parameters()
        )


def test_the_repeats_of_the_data_size_study_learn_from_disjoint_sets(options, monkeypatch):
    trained = []
    real = stage.train
    monkeypatch.setattr(stage, "train", lambda recipe, **more: trained.append(recipe) or real(recipe, **more))
    row = "willow-datasize-avg-1150k"
    started = []
    result = stage.reproduce(
        "willow-datasize",
        **options,
        rows=(row,),
        seeds=3,
        on_event=lambda event: started.append(event) if event["event"] == "start" else None,
    )
    size = round(1_150_000 / 4_906_660 * 100)
    assert [event["videos"] for event in started] == [size] * 3
    assert [recipe.training.subset for recipe in trained] == [(size, 1), (size, 2), (size, 3)]
    assert [run["videos"] for run in result["rows"][row].values()] == [size] * 3
    with pytest.raises(RecipeError, match="has 3 disjoint sets; expected as many seeds or fewer"):
        stage.reproduce("willow-datasize", **options, seeds=4)


def test_a_table_of_the_published_size_is_trained_as_published(options, monkeypatch):
    seen = []

    def look(recipe, **more):
        seen.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "train", look)
    with pytest.raises(KeyboardInterrupt):
        stage.reproduce("willow-2", **options, scale="paper", settings=("training.batch_size=7",))
    expected = find("willow-cg-none-none")
    [found] = seen
    assert found == replace(expected, training=replace(expected.training, batch_size=7))


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        ("willow-9", {}, "no table 'willow-9'; there are: willow-1, willow-2"),
        ("willow-2", {"rows": ("willow-lstm",)}, "no row 'willow-lstm' in willow-2; there are: willow-cg"),
        ("willow-2", {"label_names": None}, "classes is not known; give their names with --labels FILE"),
        ("willow-2", {"settings": ("head.nothing=3",)}, "MixtureOfExperts has no option 'nothing'"),
    ],
)
def test_what_cannot_be_reproduced_is_named_before_a_folder_is_made(table, changes, message, options):
    with pytest.raises(RecipeError, match=message):
        stage.reproduce(table, **{**options, **changes})
    assert not options["out"].exists()


def test_a_model_that_was_trained_otherwise_is_not_taken_for_the_rows(options, monkeypatch):
    stage.reproduce("willow-2", **options, rows=ROWS[:1], seeds=1)
    (options["out"] / "willow-2.json").unlink()
    (options["out"] / "setting.json").write_text(
        (options["out"] / "setting.json").read_text().replace('"set": []', '"set": ["body.0.bias=false"]')
    )
    with pytest.raises(RecipeError, match=f"{ROWS[0]}/seed-0: was trained with other settings; remove it"):
        stage.reproduce("willow-2", **options, rows=ROWS[:1], seeds=1, settings=("body.0.bias=false",))


def test_a_folder_is_for_one_scale_and_one_data_set(options):
    stage.reproduce("willow-2", **options, rows=ROWS[:1], seeds=1)
    for changes, option in (
        ({"data": options["validation"]}, "data"),
        ({"validation": options["data"]}, "validate"),
        ({"scale": "paper"}, "scale"),
        ({"settings": ("training.head_l2=0.5",)}, "set"),
    ):
        with pytest.raises(RecipeError, match=f"was started with another --{option}; go on with the same"):
            stage.reproduce("willow-2", **{**options, **changes}, rows=ROWS[:1], seeds=1)
    full = options["out"].parent / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    with pytest.raises(RecipeError, match="is not empty, and no table"):
        stage.reproduce("willow-2", **{**options, "out": full})


def test_a_folder_in_which_nothing_was_trained_takes_other_settings(options):
    with pytest.raises(RecipeError, match="there are 120 label names and 4,716 classes"):
        stage.reproduce("willow-2", **options, scale="paper", rows=ROWS[:1], seeds=1)
    assert stage.reproduce("willow-2", **options, rows=ROWS[:1], seeds=1) is not None


# ---------------------------------------------------------------------- the command


def test_the_command_lists_the_tables(cli):
    code, out, _ = cli("reproduce")
    assert code == 0
    assert "willow-1          12 rows   Willow, table 1: ways of pooling\n" in out
    found = json.loads(cli("reproduce", "--json")[1])
    assert found["nextvlad-3"]["rows"] == ["nextvlad-mix3-t0-120k", "nextvlad-mix3-t3-120k"]


def test_the_command_trains_writes_and_draws(cli, shards, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'tagreel[bench]'")
    out = tmp_path / "out"
    arguments = ["willow-2", "--data", f"{shards}/train*", "--validate", f"{shards}/test*"]
    arguments += ["--labels", f"{shards}/labels.txt", "--out", out, "--rows", ROWS[0], "--seeds", 2]
    code, shown, _ = cli("reproduce", *arguments)
    assert code == 0
    assert f"\n2 of 2: {ROWS[0]}, seed 1\n" in shown
    assert "# Willow, table 2: Context Gating" in shown
    assert (out / "willow-2.png").read_bytes().startswith(b"\x89PNG")
    code, text, _ = cli("reproduce", *arguments, "--json")
    found = json.loads(text)
    assert (code, list(found["rows"]), list(found["rows"][ROWS[0]])) == (0, [ROWS[0]], ["0", "1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("willow-2",), "--data is missing; expected --data SRC, --validate SRC and --out FOLDER"),
        (("willow-2", "--data", "x", "--out", "y"), "--validate is missing; expected --data SRC"),
        (
            ("nosuch", "--data", "x", "--validate", "x", "--out", "y"),
            "no table 'nosuch'; there are: willow-1",
        ),
        (("willow-2", "--data", "x", "--validate", "x", "--out", "y"), "x: no such file or folder"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, message, cli):
    code, out, err = cli("reproduce", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"tagreel: {message}")
