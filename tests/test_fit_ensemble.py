from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import tagreel
from tagreel import checkpoint
from tagreel.ensembles.greedy import Greedy
from tagreel.ensembles.uniform import Uniform
from tagreel.ensembles.weighted import Weighted
from tagreel.errors import DataError, RecipeError
from tagreel.evaluate import evaluate, scoring_loader
from tagreel.fit_ensemble import find_method, fit_ensemble, in_order, methods
from tagreel.predict import predict
from tagreel.source import Source
from tagreel.train import train
from tests.conftest import with_training
from tests.ensembles.conftest import said

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shards, tiny, planted):
    """Three runs of different seeds and length, and the predictions of the third. Nobody writes into them."""
    folder = tmp_path_factory.mktemp("members")
    for seed, epochs in ((0, 6), (1, 6), (2, 2)):
        train(
            with_training(tiny, epochs=epochs),
            data=Source(f"{shards}/train[01].tfrecord"),
            label_names=planted.label_names,
            out=folder / f"seed{seed}",
            seed=seed,
            device="cpu",
        )
    model = tagreel.load(folder / "seed2")
    everything = Source([f"{shards}/train2.tfrecord", f"{shards}/test0.tfrecord"])
    loader = scoring_loader(model, everything)
    predict(model, loader, folder / "tags.csv", device=CPU, top_k=120)
    return folder


@pytest.fixture
def held_out(shards):
    return Source(f"{shards}/train2.tfrecord")


def gap(run, data):
    model = tagreel.load(run)
    return evaluate(model, scoring_loader(model, data), device=CPU).metrics["gap@20"]


def test_all_figures_are_those_that_evaluate_finds(runs, held_out, test_data, tmp_path):
    told = []
    members = [runs / "seed0", runs / "seed1", runs / "tags.csv"]
    found = fit_ensemble(
        members,
        held_out,
        tmp_path / "out",
        method=partial(Weighted, weights=(3, 0, 1)),
        score_on=test_data,
        device="cpu",
        on_batch=told.append,
    )
    assert told == [16, 30, 46, 62, 78, 80]
    assert [(each.name, each.weight) for each in found.candidates] == [
        ("seed0", 0.75),
        ("tags", 0.25),
        ("seed1", 0.0),
    ]
    runs_by_name = {"seed0": runs / "seed0", "tags": runs / "seed2", "seed1": runs / "seed1"}
    for each in found.candidates:
        for data, score in zip((held_out, test_data), each.scores, strict=True):
            assert score == pytest.approx(
                gap(runs_by_name[each.name], data), abs=2e-4 * (each.name == "tags")
            )
    for data, score in zip((held_out, test_data), found.scores, strict=True):
        assert score == pytest.approx(gap(tmp_path / "out", data), abs=1e-7)
    assert found.growth[0] == found.candidates[0].scores
    assert found.growth[1] == found.scores
    assert found.best(0) == max(found.candidates, key=lambda each: each.scores[0])
    folder = checkpoint.find(runs / "seed0")
    size = sum((folder / name).stat().st_size for name in ("model.json", "model.safetensors"))
    assert found.size == size + (runs / "tags.csv").stat().st_size

    noted = checkpoint.facts(tmp_path / "out")
    assert (noted["method"], noted["options"], noted["by"]) == ("Weighted", {"weights": [3, 0, 1]}, "gap@20")
    assert [split["videos"] for split in noted["splits"]] == [30, 50]
    assert [split["score"] for split in noted["splits"]] == list(found.scores)
    assert [each["name"] for each in noted["candidates"]] == ["seed0", "tags", "seed1"]
    assert noted["train_counts"] == checkpoint.facts(folder)["train_counts"]


@pytest.mark.parametrize("name", [name for name in methods() if name != "weighted"])
def test_each_method_makes_an_ensemble_that_scores_what_it_says(name, runs, held_out, tmp_path):
    members = [runs / f"seed{seed}" for seed in range(3)]
    settings = ["steps=50"] if name == "learned" else []
    found = fit_ensemble(
        members, held_out, tmp_path / "out", method=find_method(name, settings), by="map", device="cpu"
    )
    model = tagreel.load(tmp_path / "out")
    result = evaluate(model, scoring_loader(model, held_out), device=CPU).metrics
    assert found.scores == (pytest.approx(result["map"], abs=1e-7),)
    assert sum(each.weight for each in found.candidates) == pytest.approx(1)


def test_members_join_heaviest_first_and_among_equals_as_greedy_takes_them():
    panel = said(3.0, 2.0, 2.5, 8.0, 2.0)
    scores = {}

    def reference():
        order = []
        while len(order) < 5:
            best = None
            for m in range(5):
                if m not in order:
                    shares = torch.tensor([float(o in (*order, m)) for o in range(5)])
                    scores[m] = panel.score(shares / shares.sum())
                    best = m if best is None or scores[m] > scores[best] else best
            order.append(best)
        return order

    assert in_order(panel, Uniform()(panel)) == reference()
    greedy = Greedy()(panel)
    assert in_order(panel, greedy) == reference()[: int((greedy > 0).sum())]
    assert in_order(panel, torch.tensor([0.2, 0.0, 0.5, 0.3, 0.0])) == [2, 3, 0]


def test_names_tell_the_members_apart(runs, held_out, tiny, tmp_path):
    twice = tmp_path / "other" / "seed0"
    model = tagreel.load(runs / "seed1")
    for step in (1, 2):
        weights = {name: tensor * step for name, tensor in model.state_dict().items()}
        checkpoint.save(twice, step, model, weights, facts={})
    members = [runs / "seed0", twice / "checkpoints" / "step-00000001", twice]
    found = fit_ensemble(members, held_out, tmp_path / "out", method=partial(Uniform), device="cpu")
    assert {each.name for each in found.candidates} == {
        "seed0",
        "seed0-step-00000001",
        "seed0-step-00000002",
    }
    same = [runs / "seed0", twice / "checkpoints" / "step-00000001"]
    found = fit_ensemble(same, held_out, tmp_path / "two", method=partial(Uniform), device="cpu")
    assert {each.name for each in found.candidates} == {f"{runs.name}-seed0", "other-seed0"}
    assert len(tagreel.load(tmp_path / "two").members) == 2


def test_prediction_files_alone_need_the_names_of_the_classes(runs, held_out, planted, tmp_path):
    model = tagreel.load(runs / "seed1")
    predict(model, scoring_loader(model, held_out), tmp_path / "tags.jsonl", device=CPU, top_k=30)
    members = [runs / "tags.csv", tmp_path / "tags.jsonl"]
    with pytest.raises(
        RecipeError, match="do not say how many classes there are; name the classes with --labels"
    ):
        fit_ensemble(members, held_out, tmp_path / "out", method=partial(Uniform), device="cpu")
    fit_ensemble(
        members,
        held_out,
        tmp_path / "out",
        method=partial(Uniform),
        label_names=planted.label_names,
        device="cpu",
    )
    assert tagreel.load(tmp_path / "out").label_names == planted.label_names
    assert sorted(path.name for path in (tmp_path / "out" / "members").iterdir()) == [
        f"{runs.name}-tags.parquet",
        f"{tmp_path.name}-tags.parquet",
    ]


def test_what_cannot_be_fitted_is_refused_before_anything_is_written(runs, held_out, tiny, tmp_path):
    out = tmp_path / "out"
    a, b = runs / "seed0", runs / "seed1"
    fit = partial(fit_ensemble, data=held_out, out=out, method=partial(Uniform), device="cpu")
    with pytest.raises(DataError, match="nowhere: no such file or folder; expected a run, an ensemble or"):
        fit([a, tmp_path / "nowhere"])
    for same in (a, checkpoint.find(a)):
        with pytest.raises(RecipeError, match=r"is the same model as .*seed0; give each once"):
            fit([a, b, same])
    with pytest.raises(RecipeError, match="two models or more"):
        fit([a])
    other = tagreel.build(replace(tiny, classes=119))
    checkpoint.save(tmp_path / "other", 1, other, other.state_dict(), facts={})
    with pytest.raises(RecipeError, match="other has 119 classes, seed0 has 120"):
        fit([a, tmp_path / "other"])
    with pytest.raises(RecipeError, match=r"--score .*train2.tfrecord: is among --data"):
        fit([a, b], score_on=Source([held_out.paths[0]]))
    told: list[int] = []
    with pytest.raises(
        RecipeError, match=r"--method Weighted: weights has 3 numbers for 2 models; .* seed0, s"
    ):
        fit([a, b], method=partial(Weighted, weights=(1, 2, 3)), on_batch=told.append)
    assert not told  # it is known before a video is scored
    with pytest.raises(RecipeError, match="--method Greedy: members is 0"):
        fit([a, b], method=partial(Greedy, members=0))
    assert not out.exists()
    out.mkdir()
    with pytest.raises(RecipeError, match="out: exists; expected the name of a new folder"):
        fit([a, b])


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("gredy", [], "--method gredy: there is none of that name; there are: greedy, growth, learned, "),
        ("greedy", ["member=3"], "Greedy has no option 'member'; did you mean members"),
        ("greedy", ["members=many"], "--method greedy.members: expected int"),
        ("uniform", ["a=1"], r"Uniform has no option 'a' \(it has: none\)"),
        ("greedy", ["members"], "--set members: expected OPTION=VALUE"),
    ],
)
def test_a_method_is_named_and_set_as_it_is_declared(name, settings, reason):
    with pytest.raises(RecipeError, match=reason):
        find_method(name, settings)


def test_a_methods_options_are_read_as_values():
    assert find_method("weighted", ["weights=36, 35,22.5"])().weights == (36, 35, 22.5)
    assert find_method("greedy", ["members=7", "replacement=true"])().replacement is True


def test_the_commands_from_members_to_tags(runs, shards, cli, tmp_path):
    out = tmp_path / "system"
    members = [runs / "seed0", runs / "seed1", runs / "tags.csv"]
    code, text, err = cli(
        "ensemble", "fit", *members, "--data", shards / "train2.tfrecord",
        "--score", shards / "test0.tfrecord", "--out", out, "--method", "leave-one-out", "--top-k", 50,
    )  # fmt: skip
    assert (code, err) == (0, "")
    table = text.splitlines()[:4]
    assert table[0].split("   ")[0].strip() == "member"
    assert "GAP@20 on --data   GAP@20 on --score" in table[0]
    assert {line.split()[0] for line in table[1:]} == {"seed0", "seed1", "tags"}
    assert re.search(
        r"GAP@20 on --data +0\.\d{4}   [+-]0\.\d{4} over the best single model, seed\d 0\.", text
    )
    assert f"wrote {out} and a picture of it, {out}/report/ensemble.html" in text
    assert (out / "report" / "ensemble.html").exists()

    code, shown, _ = cli("ensemble", "show", out)
    assert code == 0
    assert [line.split()[0] for line in shown.splitlines()[:4]] == [line.split()[0] for line in table]
    assert "weights by LeaveOneOut()" in shown
    assert "on --score: 50 videos, test0.tfrecord" in shown

    code, result, _ = cli("ensemble", "show", out, "--json")
    found = json.loads(result)
    assert found["size"] == sum(each["size"] for each in found["members"])
    assert sum(each["weight"] for each in found["members"]) == pytest.approx(1)
    assert found["method"] == "LeaveOneOut"

    code, result, _ = cli("evaluate", out, "--data", shards / "test0.tfrecord", "--json")
    assert code == 0
    assert json.loads(result)["gap@20"] == pytest.approx(found["splits"][1]["score"], abs=1e-7)
    assert (out / "report" / "report.html").exists()
    assert (out / "report" / "ensemble.html").exists()
    code, _, _ = cli("predict", out, "--data", shards / "test0.tfrecord", "--out", tmp_path / "tags.jsonl")
    assert code == 0
    assert len((tmp_path / "tags.jsonl").read_text().splitlines()) == 50


def test_an_ensemble_that_is_no_better_is_said_to_be(runs, shards, cli, tmp_path):
    code, text, _ = cli(
        "ensemble", "fit", runs / "seed0", runs / "seed2", "--data", shards / "train2.tfrecord",
        "--out", tmp_path / "out", "--method", "weighted", "--set", "weights=0,1",
    )  # fmt: skip
    assert code == 0
    assert "left out" in text
    assert "the ensemble is no better than that model alone" in text
    code, result, _ = cli(
        "ensemble", "fit", runs / "seed0", runs / "seed2", "--data", shards / "train2.tfrecord",
        "--out", tmp_path / "json", "--json",
    )  # fmt: skip
    found = json.loads(result)
    assert found["scores"][0] >= found["best_single"][0]
    assert [each["name"] for each in found["members"]]


def test_several_files_may_follow_score(runs, shards, cli, tmp_path):
    code, _, err = cli(
        "ensemble", "fit", runs / "seed0", runs / "seed1", "--data", shards / "train2.tfrecord",
        "--score", shards / "test0.tfrecord", shards / "train0.tfrecord", "--out", tmp_path / "out",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert checkpoint.facts(tmp_path / "out")["splits"][1]["videos"] == 90


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--by", "gap"], "--by gap: there are: gap@20, map"),
        (["--method", "best"], "--method best: there is none of that name"),
        (["--labels", "nowhere.csv"], "nowhere.csv: cannot be read"),
    ],
)
def test_wrong_options_are_one_line(arguments, reason, runs, shards, cli, tmp_path):
    code, _, err = cli(
        "ensemble", "fit", runs / "seed0", runs / "seed1", "--data", shards / "train2.tfrecord",
        "--out", tmp_path / "out", *arguments,
    )  # fmt: skip
    assert code == 2
    assert reason in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_show_wants_an_ensemble(run, cli, tmp_path):
    for path in (run, tmp_path / "nowhere"):
        code, _, err = cli("ensemble", "show", path)
        assert code == 2
        assert "is no ensemble; expected what `tagreel ensemble fit` wrote" in err


def test_one_that_was_saved_by_hand_is_shown_as_well(run, cli, tmp_path):
    from tagreel.ensemble import EnsembleTagger

    folder = checkpoint.find(run)
    mixed = EnsembleTagger({"a": tagreel.load(run), "b": tagreel.load(run)})
    checkpoint.save_ensemble(tmp_path / "out", mixed, {"a": folder, "b": Path(folder)}, facts={})
    code, out, _ = cli("ensemble", "show", tmp_path / "out")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["member", "a", "b"]


def test_one_that_was_edited_is_one_line(runs, held_out, cli, tmp_path):
    out = tmp_path / "out"
    fit_ensemble([runs / "seed0", runs / "seed1"], held_out, out, method=find_method("uniform"), device="cpu")
    whole = checkpoint.read_json(out / "ensemble.json")
    for change in (
        {"members": [{"name": "seed0", "weight": "much"}]},
        {"facts": whole["facts"] | {"candidates": [{}]}},
        {"facts": whole["facts"] | {"by": "luck"}},
        {"facts": whole["facts"] | {"splits": [{}]}},
    ):
        checkpoint.write_json(out / "ensemble.json", whole | change)
        code, _, err = cli("ensemble", "show", out)
        assert code == 2, change
        assert len(err.splitlines()) == 1
        assert "ensemble.json: not an ensemble as tagreel writes it" in err


def test_where_nothing_can_be_written_no_model_is_asked(runs, held_out, tmp_path):
    (tmp_path / "file").touch()
    out, told = tmp_path / "file" / "out", []
    with pytest.raises(RecipeError, match=r"nothing can be written to .*file; expected a folder"):
        fit_ensemble(
            [runs / "seed0", runs / "seed1"],
            held_out,
            out,
            method=find_method("uniform"),
            on_batch=told.append,
        )
    assert told == []
