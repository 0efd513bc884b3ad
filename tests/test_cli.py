from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tagreel.recipe import to_json
from tests.conftest import REPOSITORY, with_training

COMMANDS = ("demo", "recipes", "check", "segments", "train", "pretrain", "evaluate", "predict", "remember")


@pytest.fixture
def recipe_file(tmp_path, tiny) -> Path:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(to_json(with_training(tiny, steps=3))))
    return path


@pytest.fixture
def copy_of_run(run, tmp_path) -> Path:
    """A finished run to write reports into."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def process(*arguments: object, code: str = "-m tagreel", **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code.split(" ", 1), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def fails(cli, *arguments: object) -> str:
    """The one line of a command that a user can mend."""
    code, out, err = cli(*arguments)
    assert code == 2
    assert not out or list(json.loads(out)) == ["error"]
    assert "Traceback" not in err
    *before, line = err.splitlines()
    assert line.startswith("tagreel: ")
    assert not [other for other in before if other.startswith("tagreel: ")]
    return line


# ---------------------------------------------------------------------- help


@pytest.mark.parametrize(
    "command",
    [(), *((name,) for name in COMMANDS), ("recipes", "show")],
    ids=lambda c: " ".join(c) or "tagreel",
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_helps(command, flag, cli):
    code, out, err = cli(*command, flag)
    assert (code, err) == (0, "")
    assert f"Usage: tagreel {' '.join(command)}".strip() in out
    if command:
        assert "--json" in out
        for option in re.findall(r"^  (-\S+(?:, -\S+)*)", out, flags=re.MULTILINE):
            # Each option is followed by words that say what it does.
            after = out[out.index(f"  {option}") + len(option) :]
            assert len(re.split(r"\n  -", after)[0].split()) >= 2, option
    else:
        for name in COMMANDS:
            assert re.search(rf"^  {name} +[A-Z]\w+ ", out, flags=re.MULTILINE), name
        assert "tagreel demo" in out


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from tagreel.cli import run; code = run(sys.argv[1:]);"
        "heavy = {'torch', 'numpy', 'pyarrow', 'safetensors'} & set(sys.modules);"
        "sys.exit(code or (repr(heavy) if heavy else 0))"
    )
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        done = process(*arguments, code=f"-c {code}")
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_without_a_command_the_help_is_shown(cli):
    _, out, err = cli()
    assert "Usage: tagreel" in out + err


def test_the_version_is_that_of_the_package(cli):
    import tagreel

    assert cli("--version") == (0, f"tagreel {tagreel.__version__}\n", "")


# ---------------------------------------------------------------------- the way of a user


def test_train_evaluate_predict_by_hand(recipe_file, shards, tmp_path, cli):
    out = tmp_path / "runs" / "first"
    code, text, err = cli(
        *("train", recipe_file, "--data", f"{shards}/train*", "--validate", f"{shards}/test*"),
        *("--labels", shards / "labels.txt", "--out", out, "--device", "cpu", "--log-every", 1),
    )
    assert (code, err) == (0, "")
    assert re.search(r"^training: 2,280 parameters, 100 videos, 3 steps, on cpu$", text, flags=re.MULTILINE)
    steps = re.findall(
        r"^step +(\d+)   loss [\d.]+ +GAP@20 0\.\d{4} +[\d,]+ videos/s   waiting +\d+%   eta \d+s$",
        text,
        flags=re.MULTILINE,
    )
    assert steps == ["1", "2", "3"]
    assert re.search(
        r"^validated at 3 \(epoch [\d.]+\)   GAP@20 .* mAP .* Hit@1 .* PERR", text, flags=re.MULTILINE
    )
    assert f"done: {out} at step 3" in text
    assert f"next: tagreel evaluate {out} --data SRC" in text

    code, text, err = cli("evaluate", out, "--data", f"{shards}/test*", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "GAP@20" in text
    assert f"wrote {out / 'report' / 'report.html'}" in text
    assert (out / "report" / "report.html").stat().st_size > 10_000
    assert json.loads((out / "report" / "report.json").read_text())["videos"] == 50

    tags = tmp_path / "tags.csv"
    code, text, err = cli(
        *("predict", out, "--data", f"{shards}/test*", "--out", tags, "--device", "cpu", "--top-k", 3)
    )
    assert (code, err) == (0, "")
    assert f"wrote {tags}: 50 videos × 3 tags" in text
    with tags.open(newline="") as file:
        assert len(list(csv.reader(file))) == 51


def test_evaluate_needs_nothing_but_the_folder(copy_of_run, shards, tmp_path, cli, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = copy_of_run.rename(elsewhere / "moved")
    monkeypatch.chdir(elsewhere)
    code, out, err = cli("evaluate", "moved", "--data", f"{shards}/test*", "--device", "cpu", "--json")
    assert code == 0, err
    assert json.loads(out)["report"] == str(Path("moved/report"))
    assert (moved / "report" / "report.html").exists()


def json_line(cli, *arguments: object) -> dict:
    code, out, err = cli(*arguments, "--json")
    assert code == 0, err
    (line,) = out.splitlines()  # all else is on stderr
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def test_json_of_every_command(copy_of_run, recipe_file, shards, tmp_path, cli):
    test = ("--data", f"{shards}/test*", "--device", "cpu")
    found = json_line(cli, "recipes")
    assert "smoke" in [recipe["name"] for recipe in found["recipes"]]
    found = json_line(cli, "recipes", "show", "smoke", "--set", "training.batch_size=7")
    assert found["configuration"]["training"]["batch_size"] == 7
    found = json_line(cli, "check", f"{shards}/test*")
    assert (found["examples"], found["damage"]) == (50, [])
    found = json_line(
        *(cli, "train", recipe_file, "--data", f"{shards}/train*", "--validate", f"{shards}/test*"),
        *("--out", tmp_path / "r", "--device", "cpu"),
    )
    assert (found["run"], found["step"], found["damaged"]) == (str(tmp_path / "r"), 3, 0)
    assert found["best"]["step"] == 3
    assert 0 < found["best"]["gap@20"] < 1
    found = json_line(cli, "evaluate", copy_of_run, *test)
    assert {"gap@20", "map", "map_top20", "hit@1", "perr", "videos", "damaged", "report"} <= set(found)
    assert (found["videos"], found["damaged"]) == (50, 0)
    assert all(0 <= found[key] <= 1 for key in ("gap@20", "map", "map_top20", "hit@1", "perr"))
    out = tmp_path / "t.parquet"
    found = json_line(cli, "predict", copy_of_run, *test, "--out", out)
    assert found == {"out": str(out), "whole": True, "videos": 50, "damaged": 0}


def test_the_best_checkpoint_is_evaluated_unless_another_is_named(copy_of_run, shards, tmp_path, cli):
    steps = [int(path.name[5:]) for path in (copy_of_run / "checkpoints").iterdir()]
    first, last = min(steps), max(steps)
    best = json.loads((copy_of_run / "best.json").read_text())
    (copy_of_run / "best.json").write_text(json.dumps({**best, "checkpoint": f"step-{first:08d}"}))
    seen = {}
    for which in ("best", "last", f"step-{first}"):
        arguments = ("--data", f"{shards}/test*", "--device", "cpu", "--checkpoint", which)
        json_line(cli, "evaluate", copy_of_run, *arguments, "--report", tmp_path / which)
        seen[which] = json.loads((tmp_path / which / "report.json").read_text())["step"]
    assert seen == {"best": first, "last": last, f"step-{first}": first}


def test_overrides_reach_the_model_and_the_training(recipe_file, shards, tmp_path, cli):
    arguments = (
        "train",
        recipe_file,
        "--data",
        f"{shards}/train*",
        "--out",
        tmp_path / "r",
        "--device",
        "cpu",
    )
    sets = ("--set", "training.batch_size=50", "--set", "streams.rgb.pool=tagreel.pools.max.Max")
    found = json_line(cli, *arguments, *sets, "--epochs", 1)
    assert found["step"] == 2
    kept = json.loads((tmp_path / "r" / "recipe.json").read_text())
    assert kept["streams"]["rgb"]["pool"]["class"] == "tagreel.pools.max.Max"
    assert kept["training"]["steps"] is None


def test_the_demo_runs_and_is_replaced(tmp_path, cli, monkeypatch, tiny):
    from tagreel import demo as demo_module
    from tagreel import recipe as recipes

    splits = {"train": (0, 80, 4), "validate": (1000, 20, 1), "test": (2000, 40, 1)}
    monkeypatch.setattr(demo_module, "SPLITS", splits)
    short = with_training(recipes.find("smoke"), steps=4)
    monkeypatch.setattr(recipes, "find", lambda name: short)
    out = tmp_path / "demo"
    first = json_line(cli, "demo", "--out", out, "--device", "cpu")
    assert first["videos"] == 40
    assert first["gap@20"] < first["best_possible"]["gap@20"]
    (out / "mine.txt").write_text("kept")
    again = json_line(cli, "demo", "--out", out, "--device", "cpu")
    assert again["gap@20"] == first["gap@20"]
    assert (out / "mine.txt").exists()
    assert (out / "run" / "report" / "report.html").exists()
    other = json_line(cli, "demo", "--out", out, "--device", "cpu", "--seed", 1)
    assert other["best_possible"] != first["best_possible"]
    code, text, _ = cli("demo", "--out", out, "--device", "cpu")
    assert code == 0
    assert f"tagreel evaluate {out / 'run'} --data '{out / 'data'}/test*'" in text
    monkeypatch.undo()
    # The commands that it names work as they are printed.
    assert cli("check", out / "data")[0] == 0
    assert cli("evaluate", out / "run", "--data", f"{out / 'data'}/test*", "--device", "cpu")[0] == 0


def test_the_demo_leaves_other_peoples_folders_alone(tmp_path, cli):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "is not empty and no demo" in fails(cli, "demo", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# ---------------------------------------------------------------------- mistakes


def test_mistakes_in_train_are_one_line(recipe_file, shards, tmp_path, cli):
    data, out = f"{shards}/train*", tmp_path / "r"

    def train(recipe=recipe_file, data=data, more=()) -> str:
        return fails(cli, "train", recipe, "--data", data, "--out", out, "--device", "cpu", "--json", *more)

    assert "no such file or folder" in train(data=tmp_path / "nowhere")
    assert "no file matches this pattern" in train(data=f"{tmp_path}/*.tfrecord")
    assert "did you mean smoke?" in train(recipe="smokee")
    assert "No such file" in train(recipe=tmp_path / "nowhere.json")
    assert "did you mean batch_size?" in train(more=("--set", "training.batchsize=4"))
    assert "expected int" in train(more=("--set", "training.batch_size=many"))
    assert "expected PATH=VALUE" in train(more=("--set", "training.batch_size"))
    assert "training.epochs is 0" in train(more=("--epochs", 0))
    assert "cannot be read: No such file" in train(more=("--labels", tmp_path / "nowhere.csv"))
    (tmp_path / "latin.txt").write_bytes("Geräusch\n".encode("latin-1"))
    assert "latin.txt: is not UTF-8 text" in train(more=("--labels", tmp_path / "latin.txt"))
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    assert "there are 2 label names and 120 classes" in train(more=("--labels", tmp_path / "few.txt"))
    few = ("--labels", tmp_path / "few.txt", "--set", "classes=2")
    assert re.search(r"train\d.tfrecord, record \d+: label \d+, but the model has 2 classes", train(more=few))
    few = ("--labels", tmp_path / "few.txt", "--set", "classes=none")
    assert "but the model has 2 classes" in train(more=few)
    swapped = ("--set", "features.rgb=6", "--set", "features.audio=12")
    assert "are two streams swapped?" in train(more=swapped)
    assert "device 'tpu' cannot be used here" in train(more=("--device", "tpu"))
    assert "Invalid learning rate" in train(more=("--set", "training.optimizer.lr=-1"))
    assert "head: expected" in train(more=("--set", "head=os.system"))
    assert "there is no tagreel.heads.none.None" in train(more=("--set", "head=tagreel.heads.none.None"))
    (tmp_path / "file").write_text("")
    arguments = ("train", recipe_file, "--data", data, "--device", "cpu")
    assert "file" in fails(cli, *arguments, "--out", tmp_path / "file")
    assert "Not a directory" in fails(cli, *arguments, "--out", tmp_path / "file" / "run")
    # After all that the folder is still good for a run.
    assert cli(*arguments, "--out", out)[0] == 0
    assert "already holds a run; go on with it by --resume" in train()


def test_mistakes_in_evaluate_and_predict_are_one_line(copy_of_run, run, shards, tmp_path, cli):
    test = ("--data", f"{shards}/test*", "--device", "cpu")
    out = ("--out", tmp_path / "x.csv")
    for command, more in (("evaluate", ()), ("predict", out)):
        assert "nowhere: holds no checkpoint" in fails(cli, command, tmp_path / "nowhere", *test, *more)
        assert "no such file or folder" in fails(cli, command, run, "--data", tmp_path / "no", *more)
        line = fails(cli, command, run, *test, *more, "--checkpoint", "step-77")
        assert "no checkpoint 'step-77'; it has: step-" in line
    labels = ("--labels", shards / "labels.txt")
    assert "run has its own names of the classes" in fails(cli, "evaluate", run, *test, *labels)
    assert "the ending must be one of .parquet, .jsonl, .csv" in fails(
        cli, "predict", run, *test, "--out", tmp_path / "x.xlsx"
    )
    (tmp_path / "wide.npz").unlink(missing_ok=True)
    np.savez(tmp_path / "wide.npz", id=np.array(["a"]), rgb=np.zeros((1, 5), np.float32))
    line = fails(cli, "evaluate", run, "--data", tmp_path / "wide.npz", "--device", "cpu")
    assert re.search(r"wide.npz, record 0: 'rgb' is 5 wide, the model expects 12", line)
    for path in (copy_of_run / "checkpoints").glob("*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    assert "cannot be read as safetensors" in fails(cli, "evaluate", copy_of_run, *test)
    assert not (tmp_path / "x.csv").exists()


def test_numbers_that_are_not_finite_are_named(run, tmp_path, cli):
    rgb = np.zeros((3, 12), np.float32)
    rgb[1, 4] = np.nan
    np.savez(tmp_path / "x.npz", id=np.array(["a", "b", "c"]), rgb=rgb, audio=np.zeros((3, 6), np.float32))
    arguments = (
        "predict",
        run,
        "--data",
        tmp_path / "x.npz",
        "--out",
        tmp_path / "x.jsonl",
        "--device",
        "cpu",
    )
    assert "x.npz, record 1: 'rgb' holds numbers that are not finite" in fails(cli, *arguments)
    assert json_line(cli, *arguments, "--skip-damaged", 1)["damaged"] == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument 'RECIPE'"),
        (["train", "smoke", "--out", "x"], "Missing option '--data'"),
        (["evaluate", "x", "--data", "y", "--batch-size", "0"], "Invalid value for '--batch-size'"),
        (["predict", "x", "--data", "y", "--out", "z.csv", "--top-k", "many"], "Invalid value for '--top-k'"),
        (["train", "smoke", "--data", "y", "--out", "z", "--seed", "-1"], "Invalid value for '--seed'"),
        (["check"], "Missing argument"),
        (["recipes", "show"], "Missing argument"),
    ],
)
def test_wrong_arguments_are_told_with_the_usage(arguments, reason, cli):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert reason in err
    assert "Traceback" not in err


def test_settings_of_a_recipe_are_shown_with_the_paths_that_set_takes(cli):
    code, out, _ = cli("recipes", "show", "smoke")
    assert code == 0
    paths = re.findall(r"^  ([\w.]+) = (\S+)$", out, flags=re.MULTILINE)
    assert ("streams.rgb.pool.clusters", "32") in paths
    for path, value in paths:
        code, changed, err = cli("recipes", "show", "smoke", "--set", f"{path}={value}")
        assert code == 0, (path, value, err)
        assert f"  {path} = {value}" in changed


def test_an_interrupt_exits_with_130(cli, run, shards, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("tagreel.evaluate.evaluate", interrupted)
    code, out, err = cli("evaluate", run, "--data", f"{shards}/test*", "--device", "cpu")
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def test_a_bug_is_not_dressed_up_as_a_users_mistake(cli, run, shards, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("tagreel.evaluate.evaluate", broken)
    with pytest.raises(ZeroDivisionError):
        cli("evaluate", run, "--data", f"{shards}/test*", "--device", "cpu")


# ---------------------------------------------------------------------- as a process


def test_the_module_runs_and_a_mistake_has_no_traceback(tmp_path):
    done = process("check", tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tagreel: {tmp_path / 'nowhere'}: no such file or folder\n"


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m tagreel recipes | head -1"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, shell=True, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith("recipe")
    assert done.stderr == ""


def test_a_bare_star_is_several_sources(cli, run, shards, tmp_path):
    files = sorted(shards.glob("train*.tfrecord"))
    code, out, _ = cli("predict", run, "--data", *files, "--out", tmp_path / "tags.csv", "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["videos"] == 100


def test_steps_and_epochs_together_are_refused(cli, shards, tmp_path):
    arguments = ("train", "smoke", "--data", shards, "--out", tmp_path / "run", "--steps", 3, "--epochs", 2)
    code, _, err = cli(*arguments)
    assert code == 2
    assert "--epochs and --steps both say how long" in err


def test_a_run_goes_on_without_saying_its_labels_again(cli, shards, tiny, tmp_path):
    path = tmp_path / "open.json"
    path.write_text(json.dumps(to_json(with_training(replace(tiny, classes=None), steps=3))))
    arguments = ("train", path, "--data", f"{shards}/train*.tfrecord", "--out", tmp_path / "run")
    code, out, err = cli(*arguments, "--labels", shards / "labels.txt")
    assert code == 0, err
    assert "needs about" in out
    code, out, err = cli(*arguments, "--steps", 5, "--resume")
    assert code == 0, err
    assert "resuming at step 3" in out


def test_what_a_tagger_remembers_changes_its_scores(cli, shards, run, tmp_path):
    code, out, err = cli("remember", run, "--data", f"{shards}/train*.tfrecord", "--out", tmp_path / "memory")
    assert code == 0, err
    assert "100 videos" in out
    scores = []
    for model in (run, tmp_path / "memory"):
        arguments = ("--data", f"{shards}/test*.tfrecord", "--report", tmp_path / "report", "--json")
        code, out, err = cli("evaluate", model, *arguments)
        assert code == 0, err
        scores.append(json.loads(out)["gap@20"])
    assert scores[0] != scores[1]


def test_an_error_is_json_too_when_asked(cli, tmp_path):
    code, out, err = cli("evaluate", tmp_path, "--data", tmp_path / "none", "--json")
    assert code == 2
    assert json.loads(out)["error"] in err


def test_json_before_show_counts(cli):
    code, out, _ = cli("recipes", "--json", "show", "smoke")
    assert code == 0
    assert json.loads(out)["parameters"] == 332_478


def test_a_checkpoints_folder_knows_no_other_checkpoint(cli, run, shards):
    folder = next((run / "checkpoints").iterdir())
    code, _, err = cli("evaluate", folder, "--checkpoint", "step-999999", "--data", shards / "test0.tfrecord")
    assert code == 2
    assert "needs the run's folder" in err
