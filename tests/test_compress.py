from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tagreel
from tagreel import checkpoint
from tagreel import recipe as recipes
from tagreel.compress import Row, best_first, check, compress, measure, parse_size, recipe_size, show_size
from tagreel.ensemble import EnsembleTagger
from tagreel.errors import DataError, RecipeError
from tagreel.evaluate import evaluate, scoring_loader
from tagreel.layers.mixture import Mixture
from tagreel.layers.projection import Projection
from tagreel.recipe import Recipe
from tagreel.remember import remember
from tagreel.storage import STORAGES, decode, encode
from tagreel.tagger import build
from tests.conftest import InMemory, with_training

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def wide(tiny: Recipe) -> Recipe:
    """The tiny recipe with matrices that are large enough for 8 bits, and small ones."""
    return replace(tiny, body=(partial(Projection, width=400),))


def saved(recipe: Recipe, folder: Path) -> Path:
    """An untrained run of the recipe; the folder of its checkpoint."""
    torch.manual_seed(0)
    model = build(recipe)
    training = {"training": {"x": torch.ones(3)}, "position": {"step": 7}}
    return checkpoint.save(folder, 7, model, model.state_dict(), facts={"step": 7, "note": "犬"}, **training)


@pytest.fixture
def plain(wide, tmp_path) -> Path:
    return saved(wide, tmp_path / "run")


@pytest.fixture
def mixture(wide, tmp_path) -> Path:
    return saved(replace(wide, mixture=partial(Mixture, branches=2)), tmp_path / "mixture")


@pytest.fixture
def remembered(plain, training_data, tmp_path) -> Path:
    return remember(plain, training_data, tmp_path / "remembered", device="cpu").path


@pytest.fixture
def ensemble(plain, mixture, tmp_path) -> Path:
    sources = {"a": plain, "b": mixture}
    model = EnsembleTagger({name: tagreel.load(source) for name, source in sources.items()}, [1, 3])
    checkpoint.save_ensemble(tmp_path / "ensemble", model, sources, facts={})
    return tmp_path / "ensemble"


@pytest.fixture(params=["plain", "mixture", "remembered", "ensemble"])
def folder(request: pytest.FixtureRequest) -> Path:
    """A model's folder, of each kind."""
    return request.getfixturevalue(request.param)


def state(folder: Path) -> dict[str, torch.Tensor]:
    return tagreel.load(folder).state_dict()


def tensor_bytes(folder: Path) -> int:
    files = folder.rglob("*model.safetensors")
    return sum(tensor.nbytes for file in files for tensor in load_file(file).values())


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_written_is_what_was_measured(storage, folder, test_data, tmp_path):
    model = tagreel.load(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loader = scoring_loader(model, test_data)
    told: list[int] = []
    row = measure(model, storage, loader=loader, device=CPU, on_batch=told.append)
    assert told[-1] == 50
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    out = tmp_path / "new" / "small"
    taken, written = compress(folder, out, [storage])
    assert taken == storage
    assert [path.name for path in out.parent.iterdir()] == ["small"]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert written == sum(path.stat().st_size for path in files)
    assert {path.relative_to(out) for path in files} == {
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and "training" not in path.name
    }
    assert row.size == tensor_bytes(out)
    assert checkpoint.facts(out) == checkpoint.facts(folder)
    for path in (path for path in files if path.name == "model.json"):
        assert checkpoint.storage_of(path.parent) == storage

    small = tagreel.load(out)
    for name, tensor in decode(encode(before, storage), path="here").items():
        assert torch.equal(small.state_dict()[name].float(), tensor.to(before[name].dtype).float()), name
    assert evaluate(small, loader, device=CPU).metrics == row.metrics


def test_8_bits_quarter_a_model_and_hardly_change_its_scores(folder, test_data):
    """An untrained model with random weights, of which some vectors stay as they are."""
    model = tagreel.load(folder)
    batch = next(batch for _, batch in scoring_loader(model, test_data).epoch())
    rows = {storage: measure(model, storage, device=CPU) for storage in STORAGES}
    whole = rows["float32"].size
    assert rows["bfloat16"].size == rows["float16"].size
    for storage in ("int8", "codebook"):
        assert rows[storage].size < 0.45 * whole
        assert 0.003 < rows[storage].error < 0.013
    assert rows["float32"].error == rows["float32"].largest_error == 0
    assert 0 < rows["float16"].error < rows["bfloat16"].error < rows["int8"].error
    assert not rows["int8"].metrics
    with torch.inference_mode():
        scores = model.probabilities(batch)
    for storage in STORAGES:
        model.load_state_dict(decode(encode(model.state_dict(), storage), path="here"))
        with torch.inference_mode():
            assert (model.probabilities(batch) - scores).abs().max() < 0.02


def test_errors_are_shares_of_the_worst_tensor(wide):
    model = build(wide)
    row = measure(model, "bfloat16", device=CPU)
    worst, largest = 0.0, 0.0
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.any():
            off = (tensor.bfloat16().double() - tensor.double()).flatten()
            worst = max(worst, float(off.square().mean().sqrt() / tensor.double().square().mean().sqrt()))
            largest = max(largest, float(off.abs().max() / tensor.abs().max()))
    assert (row.error, row.largest_error) == pytest.approx((worst, largest), rel=1e-5)


def test_the_weights_come_back_when_scoring_fails(plain):
    model = tagreel.load(plain)
    loader = scoring_loader(model, InMemory([DataError("is damaged", path="a")]))
    with pytest.raises(DataError, match="a: is damaged"):
        measure(model, "int8", loader=loader, device=CPU)
    assert all(torch.equal(tensor, state(plain)[name]) for name, tensor in model.state_dict().items())


# ---------------------------------------------------------------------- a budget


def rows(**metrics: float) -> list[Row]:
    """A row of 400, 200 and 100 bytes, of errors 0, 1 and 3, by GAP@20 and mAP where given."""
    kinds = {"float32": (400, 0.0), "bfloat16": (200, 1.0), "codebook": (100, 3.0)}
    return [
        Row(name, size, error, error, {"gap@20": metrics[name], "map": 1 - metrics[name]} if metrics else {})
        for name, (size, error) in kinds.items()
    ]


@pytest.mark.parametrize(
    ("budget", "order"),
    [
        (1000, ["float32", "bfloat16", "codebook"]),
        (399, ["bfloat16", "codebook"]),
        (200, ["bfloat16", "codebook"]),
        (100, ["codebook"]),
    ],
)
def test_without_scores_the_most_precise_that_fits_comes_first(budget, order, wide):
    assert [row.storage for row in best_first(build(wide), rows(), budget)] == order


def test_with_scores_the_best_by_the_recipes_metric_comes_first(wide):
    scored = rows(float32=0.7, bfloat16=0.8, codebook=0.75)
    assert [row.storage for row in best_first(build(wide), scored, 400)] == [
        "bfloat16",
        "codebook",
        "float32",
    ]
    by_map = build(with_training(wide, best_by="map"))
    assert [row.storage for row in best_first(by_map, scored, 399)] == ["codebook", "bfloat16"]
    equal = rows(float32=0.7, bfloat16=0.7, codebook=0.7)
    assert best_first(build(wide), equal, 399)[0].storage == "bfloat16"


def test_a_budget_that_nothing_fits_is_one_line(wide):
    with pytest.raises(
        RecipeError, match=r"nothing fits 0\.00 MB .*; the weights of the smallest, codebook, take"
    ):
        best_first(build(wide), rows(), 99)


def test_a_budget_holds_for_the_files_and_not_for_the_weights_alone(plain, tmp_path):
    """The header, the recipe and the names of the classes count as well."""
    sizes = {}
    for storage in ("bfloat16", "int8"):
        _, sizes[storage] = compress(plain, tmp_path / storage, [storage])
    weights = tensor_bytes(tmp_path / "bfloat16")
    assert sizes["int8"] < weights < sizes["bfloat16"]
    out = tmp_path / "out"
    assert compress(plain, out, ["bfloat16", "int8"], budget=weights) == ("int8", sizes["int8"])
    assert checkpoint.storage_of(out) == "int8"
    exact = compress(plain, tmp_path / "exact", ["bfloat16", "int8"], budget=sizes["bfloat16"])
    assert exact == ("bfloat16", sizes["bfloat16"])
    with pytest.raises(RecipeError, match="the files of the smallest, int8, take") as caught:
        compress(plain, tmp_path / "none", ["bfloat16", "int8"], budget=1000)
    assert show_size(sizes["int8"]) in str(caught.value)
    assert not list(tmp_path.glob("none*"))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1GB", 10**9),
        ("1GiB", 2**30),
        ("995MiB", 995 * 2**20),
        ("10MB", 10**7),
        ("1.5 MB", 1_500_000),
        ("64kB", 64_000),
        ("64KiB", 65_536),
        ("500B", 500),
    ],
)
def test_a_size_is_read_with_its_unit(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "10", "MB", "10Mb", "1e3MB", "-1MB", "1GBs", "3iB", "1,5MB", "1TB"])
def test_a_size_without_a_unit_we_know_is_one_line(text):
    with pytest.raises(RecipeError, match=r"--budget .*: expected a size such as 10MB"):
        parse_size(text)


def test_sizes_are_shown_in_both_units():
    assert show_size(944_571_288) == "944.57 MB (900.81 MiB)"


# ---------------------------------------------------------------------- files


def test_neither_reports_nor_what_lies_beside_them_comes_along(plain, tmp_path):
    (plain / "report").mkdir()
    (plain / "report" / "report.json").write_text("{}")
    compress(plain, plain / "small", ["int8"])
    compress(plain, tmp_path / "again", ["int8"])
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["model.json", "model.safetensors"]


def test_every_model_of_a_tree_is_in_the_same_storage(plain, mixture, tmp_path):
    """An ensemble: its description, folders of models, files of predictions."""
    tree = tmp_path / "tree"
    for name, source in (("a", plain), ("b", mixture)):
        (tree / "members").mkdir(parents=True, exist_ok=True)
        (tree / "members" / name).mkdir()
        for file in source.iterdir():
            (tree / "members" / name / file.name).write_bytes(file.read_bytes())
    (tree / "members" / "c.parquet").write_bytes(b"rows")
    (tree / "ensemble.json").write_text('{"weights": [1, 2, 3]}')
    (tree / "log.jsonl").write_text("")
    compress(tree, tmp_path / "out", ["codebook"])
    found = {
        path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/**/*") if path.is_file()
    }
    assert found == {
        "ensemble.json",
        "members/c.parquet",
        *(f"members/{name}/model.{ending}" for name in "ab" for ending in ("json", "safetensors")),
    }
    for name, source in (("a", plain), ("b", mixture)):
        expected = decode(encode(state(source), "codebook"), path="here")
        written = state(tmp_path / "out" / "members" / name)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in written.items())
        assert checkpoint.storage_of(tmp_path / "out" / "members" / name) == "codebook"
    for file in ("ensemble.json", "members/c.parquet"):
        assert (tmp_path / "out" / file).read_bytes() == (tree / file).read_bytes()
    with pytest.raises(RecipeError, match=r"members/a: is in codebook already"):
        check(tmp_path / "out")


def test_what_is_in_8_bits_is_not_compressed_again(plain, tmp_path):
    compress(plain, tmp_path / "half", ["bfloat16"])
    check(tmp_path / "half")
    compress(tmp_path / "half", tmp_path / "quarter", ["int8"])
    for storage in STORAGES:
        with pytest.raises(RecipeError, match="quarter: is in int8 already; give the model that it was made"):
            compress(tmp_path / "quarter", tmp_path / "again", [storage])


def test_what_is_made_of_a_compressed_model_is_in_float32(plain, training_data, tmp_path):
    compress(plain, tmp_path / "small", ["int8"])
    made = remember(tmp_path / "small", training_data, tmp_path / "remembered", device="cpu").path
    assert checkpoint.storage_of(made) == "float32"
    check(made)


def test_an_existing_folder_is_refused(plain, tmp_path):
    (tmp_path / "out").mkdir()
    for call in (partial(check, plain), partial(compress, plain, storages=["int8"])):
        with pytest.raises(RecipeError, match=r"out: exists; expected the name of a new folder"):
            call(out=tmp_path / "out")


def test_what_a_killed_one_left_is_no_hindrance(plain, tmp_path):
    left = tmp_path / "out.partial" / "members"
    left.mkdir(parents=True)
    (left / "old.parquet").write_text("")
    compress(plain, tmp_path / "out", ["int8"])
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("storage", STORAGES)
def test_damage_to_a_compressed_model_is_noticed(storage, plain, tmp_path):
    compress(plain, tmp_path / "out", [storage])
    path = tmp_path / "out" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"model\.safetensors: is damaged: its checksum is"):
        tagreel.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored, name: stored.pop(name), "no tensor 'head.linear.weight'"),
        (lambda stored, name: stored.pop(f"{name}.codebook"), "'head.linear.weight' is uint8, the recipe"),
        (
            lambda stored, name: stored.update({name: stored[name][:, 1:]}),
            r"is \(120, 399\), the recipe says",
        ),
        (lambda stored, name: stored.update(x=torch.ones(1)), "tensor 'x' is not in the recipe's model"),
    ],
)
def test_tensors_of_another_model_are_told_apart(change, message, plain, tmp_path):
    compress(plain, tmp_path / "out", ["codebook"])
    stored = load_file(tmp_path / "out" / "model.safetensors")
    change(stored, "head.linear.weight")
    checkpoint.write_tensors(tmp_path / "out" / "model.safetensors", stored)
    with pytest.raises(DataError, match=message):
        tagreel.load(tmp_path / "out")


def test_a_run_may_start_from_a_compressed_model(plain, wide, tmp_path):
    compress(plain, tmp_path / "out", ["int8"])
    model = build(wide)
    taken = checkpoint.start_from(model, tmp_path / "out")
    assert set(taken) == set(model.state_dict())
    assert torch.equal(model.head.linear.weight, state(tmp_path / "out")["head.linear.weight"])


def test_weights_that_are_no_numbers_are_one_line(wide):
    model = build(wide)
    with torch.no_grad():
        model.head.linear.weight[0, 0] = float("nan")
    with pytest.raises(RecipeError, match=r"'head\.linear\.weight' holds numbers that are not finite"):
        measure(model, "bfloat16", device=CPU)


# ---------------------------------------------------------------------- published sizes

NL_MODELS = {
    "nlvlad-lfnl-netvlad": 154_958_464,
    "nlvlad-lfnl-netrvlad": 125_087_272,
    "nlvlad-efnl-netvlad": 111_697_852,
    "nlvlad-softbof-4k": 28_561_492,
    "nlvlad-softbof-8k": 37_338_492,
    "nlvlad-gru": 63_466_124,
}


def test_the_nextvlad_mixture_has_its_published_size():
    """944.57 MB: three branches in float32; the gate, the whitening's scale and the counters come on top."""
    branch, floats = 78_714_274, 4
    assert round(3 * branch * floats / 1e6, 2) == 944.57
    gate = (4 * 1152 + 1152 * 3 + 3) * floats  # batch norm with its statistics, a fully-connected layer
    scales, counters = 3 * 1024 * floats, 19 * 8
    stored = recipe_size(recipes.find("nextvlad-mix3-t3-460k"))
    assert stored == 3 * branch * floats + gate + scales + counters == 944_615_996
    assert recipe_size(recipes.find("nextvlad-single-460k")) == branch * floats + 1024 * floats + 6 * 8


def test_the_six_nonlocal_models_have_their_published_size():
    """993.9 MiB: what is trained, in bfloat16. A GRU has one bias here, so no second one counts."""
    assert round(sum(NL_MODELS.values()) * 2 / 2**20, 1) == 993.9
    stored = {name: recipe_size(recipes.find(name), "bfloat16") for name in NL_MODELS}
    assert stored["nlvlad-gru"] == NL_MODELS["nlvlad-gru"] * 2
    # The means and variances of batch norm, and 24 counters of 8 bytes.
    assert sum(stored.values()) == sum(NL_MODELS.values()) * 2 + 68_348 * 2 + 24 * 8
    assert round(sum(stored.values()) / 2**20, 2) == 994.07


def test_a_recipes_size_is_that_of_its_file(wide, tmp_path):
    folder = saved(replace(wide, mixture=partial(Mixture, branches=2)), tmp_path / "run")
    for storage in STORAGES:
        compress(folder, tmp_path / storage, [storage])
        recipe = tagreel.load(tmp_path / storage).recipe
        assert recipe_size(recipe, storage) == tensor_bytes(tmp_path / storage)


def test_a_recipe_of_open_widths_has_no_size(wide):
    with pytest.raises(RecipeError, match="classes is not known yet"):
        recipe_size(replace(wide, classes=None))


# ---------------------------------------------------------------------- the command


def test_the_table_alone_needs_no_folder(cli, plain, shards):
    code, out, err = cli("compress", plain, "--data", shards / "test0.tfrecord", "--device", "cpu")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["storage", "MB", "MiB", "error", "largest", "GAP@20", "mAP"]
    assert [line.split()[0] for line in lines[1:6]] == list(STORAGES)
    assert "next: tagreel compress" in lines[6]
    _, out, _ = cli("compress", plain, "--device", "cpu", "--json")
    result = json.loads(out)
    assert [row["storage"] for row in result["rows"]] == list(STORAGES)
    assert result["rows"][0]["size"] == tensor_bytes(plain)


def test_a_model_is_written_and_evaluated_like_any_other(cli, plain, shards, tmp_path):
    out, data = tmp_path / "small", shards / "test0.tfrecord"
    code, text, err = cli("compress", plain.parents[1], "--out", out, "--storage", "int8", "--device", "cpu")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["float32", "int8"]
    assert f"wrote {out}: int8, 0.0" in text
    assert checkpoint.storage_of(out) == "int8"
    code, text, _ = cli("evaluate", out, "--data", data, "--device", "cpu", "--report", tmp_path / "report")
    assert code == 0


def test_a_budget_takes_what_scores_best_within_it(cli, plain, shards, tmp_path):
    out = tmp_path / "small"
    arguments = ("compress", plain, "--out", out, "--data", shards, "--device", "cpu", "--json")
    code, text, err = cli(*arguments, "--budget", "150kB")
    assert code == 0, err
    result = json.loads(text)
    fitting = [row for row in result["rows"] if row["size"] <= 150_000]
    assert 0 < len(fitting) < 5
    best = max(fitting, key=lambda row: row["metrics"]["gap@20"])
    assert result["storage"] == checkpoint.storage_of(out) == best["storage"]
    assert result["bytes"] == sum(path.stat().st_size for path in out.iterdir()) <= 150_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--storage", "int8"], "need --out NEW"),
        (["--budget", "1MB"], "need --out NEW"),
        (["--out", "new"], "give one of them"),
        (["--out", "new", "--storage", "int8", "--budget", "1MB"], "give one of them"),
        (["--out", "new", "--storage", "int4"], "int4"),
        (["--out", "new", "--budget", "1"], "expected a size such as 10MB"),
        (["--out", "new", "--budget", "1kB"], "nothing fits"),
        (["--out", ".", "--storage", "int8"], "exists"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, cli, plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("compress", plain, "--device", "cpu", *arguments)
    assert code == 2
    assert not out or "nothing fits" in err  # all else is known before anything is measured
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_how_a_model_scores_is_kept_in_it(cli, run, shards, tmp_path):
    segmented = "inference=tagreel.inference.SegmentedInference"
    arguments = ("compress", run, "--storage", "float32", "--out", tmp_path / "kept", "--set", segmented)
    assert cli(*arguments)[0] == 0
    data = ("--data", f"{shards}/test*", "--json")
    kept, chosen, plain = (
        json.loads(cli("evaluate", *model, *data)[1])["gap@20"]
        for model in ([tmp_path / "kept"], [run, "--set", segmented], [run])
    )
    assert kept == chosen != plain
    code, _, err = cli(*arguments[:-3], tmp_path / "other", "--set", "classes=3")
    assert code == 2
    assert "training has settled it" in err
