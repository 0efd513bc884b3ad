from __future__ import annotations

import ast
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tagreel import recipe as recipes
from tagreel.errors import RecipeError
from tagreel.heads.logistic import Logistic
from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.mean import Mean
from tagreel.pools.netvlad import NetVLAD
from tagreel.recipe import (
    About,
    Ensemble,
    Recipe,
    Stream,
    Training,
    ensemble_from_json,
    find,
    find_any,
    find_ensemble,
    from_json,
    override,
    to_json,
)
from tagreel.sampling import AllFrames
from tagreel.schedule import Cosine
from tagreel.tagger import build, count_parameters

every_recipe = pytest.mark.parametrize("name", list(recipes.names()))


def _recipe(**changes):
    settings = {
        "features": {"rgb": 4, "audio": 3},
        "classes": 5,
        "streams": {"rgb": Stream(pool=partial(NetVLAD, clusters=6)), "audio": Stream(pool=partial(Mean))},
        "head": partial(Logistic),
        "loss": partial(CrossEntropy),
        "sampling": partial(AllFrames),
        "evaluation_sampling": partial(AllFrames),
        "training": Training(
            optimizer=partial(torch.optim.AdamW, lr=0.1, betas=(0.8, 0.9)), schedule=partial(Cosine)
        ),
    }
    return Recipe(**(settings | changes))


def _overridden(recipe, *settings):
    for setting in settings:
        recipe = override(recipe, setting)
    return recipe


def _error(*settings, recipe=None):
    with pytest.raises(RecipeError) as caught:
        _overridden(recipe or _recipe(), *settings)
    return str(caught.value)


# ------------------------------------------------------------------ the recipes of the package


@every_recipe
def test_every_recipe_builds_and_runs(name):
    recipe = recipes.find(name)
    with torch.device("meta"):
        open_widths = {feature: 8 for feature, width in recipe.features.items() if width is None}
        model = build(recipe, features=open_widths, classes=9 if recipe.classes is None else None)
        streams = {feature: torch.zeros(2, 3, width) for feature, width in model.features.items()}
        masks = {feature: torch.ones(2, 3, dtype=torch.bool) for feature in streams}
        logits = model.eval()(streams, masks)
        loss = recipe.loss()(logits, torch.zeros(2, model.classes))
    assert logits.shape == (2, model.classes)
    assert loss.shape == ()
    recipe.training.optimizer(model.parameters())
    assert 0 < recipe.training.schedule()(1, 1000) <= 1
    recipe.sampling()
    recipe.evaluation_sampling()


@every_recipe
def test_every_recipe_travels_as_json(name):
    recipe = recipes.find(name)
    text = json.dumps(to_json(recipe))
    again = from_json(json.loads(text))
    assert to_json(again) == to_json(recipe)
    assert again.about == recipe.about
    assert again.streams.keys() == recipe.streams.keys()
    assert again.head.func is recipe.head.func
    assert count_parameters(again) == count_parameters(recipe)


@every_recipe
def test_every_recipe_says_what_it_is_and_has_the_parameters_it_says(name):
    about = recipes.find(name).about
    assert about.name == name
    assert about.summary
    if about.published:
        assert about.paper
    if about.parameters is not None:
        assert count_parameters(recipes.find(name)) == about.parameters


def test_what_earlier_versions_noted_of_a_recipe_is_passed_over():
    data = to_json(recipes.find("smoke"))
    data["about"]["checked"] = "parameter count"
    assert from_json(data).about == recipes.find("smoke").about
    data["about"]["summry"] = "a slip"
    with pytest.raises(RecipeError, match="not a recipe as tagreel writes it"):
        from_json(data)


def test_no_two_files_name_a_recipe_alike():
    names = []
    for path in Path(importlib.import_module("tagreel.recipes").__path__[0]).rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign):
                names += [target.id.replace("_", "-") for target in node.targets if target.id[0] != "_"]
    assert sorted(names) == sorted([*recipes.names(), *recipes.ensembles(), *recipes.unpublished()])


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("nextvlad-g8-d05-k128", [], 88_889_378),
        ("nextvlad-single-460k", [], 78_643_170),
        (
            "nextvlad-g8-d05-k128",
            ["streams.rgb.pool.groups=16", "streams.audio.pool.groups=8"],
            53_268_014,
        ),
        (
            "nextvlad-g8-d05-k128",
            ["streams.rgb.pool.groups=32", "streams.audio.pool.groups=16"],
            38_731_334,
        ),
        ("willow-gated-netvlad-256", [], 333_229_888),
        ("willow-gated-netvlad-256", ["classes=3862"], 321_528_380),
        (
            "willow-gated-netvlad-256",
            ["streams.rgb.pool.clusters=128", "streams.audio.pool.clusters=64"],
            190_344_640,
        ),
        ("willow-netvlad-256", [], 309_929_176),
        (
            "willow-netvlad-256",
            ["streams.rgb.pool.clusters=128", "streams.audio.pool.clusters=64"],
            167_043_928,
        ),
        ("starter-logistic-video", [], 4_452_886),
        ("starter-logistic-video", ["classes=4716"], 5_437_548),
        ("starter-moe-video", ["classes=4716"], 27_173_592),
        ("starter-moe-video", ["classes=4716", "head.null_expert=false"], 21_740_760),
        (
            "starter-moe-video",
            ["classes=4716", "head.null_expert=false", "head.experts=8"],
            86_963_040,
        ),
    ],
)  # fmt: skip
def test_parameters_are_those_of_the_authors_models(name, settings, expected):
    assert count_parameters(_overridden(recipes.find(name), *settings)) == expected


# ------------------------------------------------------------------ finding


def test_underscores_are_as_good_as_hyphens():
    assert to_json(recipes.find("starter_moe_video")) == to_json(recipes.find("starter-moe-video"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("nextvlad-g8-d05-k182", "nextvlad-g8-d05-k128"),
        ("nextvlad-singel-460k", "nextvlad-single-460k"),
        ("smoek", "smoke"),
        ("Smoke", "smoke"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_one_that_was_meant(name, meant):
    with pytest.raises(RecipeError, match=rf"^no recipe '{name}'; did you mean {meant}\? \(tagreel recipes"):
        recipes.find(name)


def test_a_name_like_no_other_is_answered_with_where_to_look():
    with pytest.raises(RecipeError, match=r"^no recipe 'qqqqqqq'; \(tagreel recipes lists them all\)$"):
        recipes.find("qqqqqqq")


OF_MINE = """
from dataclasses import replace
from tagreel.recipes.smoke import smoke as _smoke
my_tagger = replace(_smoke, classes=7)
"""


def test_a_recipe_is_found_in_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OF_MINE)
    for name in (f"{path}:my_tagger", f"{path}:my-tagger", str(path)):
        found = recipes.find(name)
        assert (found.classes, found.about.name) == (7, "my-tagger")
    with pytest.raises(RecipeError, match=r"mine\.py: say which recipe, .*mine\.py:NAME; it has: my-tagger$"):
        recipes.find(f"{path}:other")
    path.write_text(OF_MINE + "second = my_tagger\n")
    with pytest.raises(RecipeError, match=r"it has: my-tagger, second$"):
        recipes.find(str(path))
    with pytest.raises(RecipeError, match=r"missing\.py: No such file"):
        recipes.find(f"{tmp_path}/missing.py:x")


def test_a_recipe_is_found_in_a_json_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(to_json(_recipe())))
    assert to_json(recipes.find(str(path))) == to_json(_recipe())
    with pytest.raises(RecipeError, match=r"missing\.json: No such file"):
        recipes.find(str(tmp_path / "missing.json"))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{", b"[" * 100_000, b""])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"bad\.json: not JSON"):
        recipes.find(str(path))


# ------------------------------------------------------------------ checking


def _partial_of(func, /, **options):
    """A partial that a type checker would not let pass."""
    return partial(func, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"streams": {"rgb": Stream(pool=_partial_of(NetVLAD, cluster=6))}},
            "streams.rgb.pool: NetVLAD has no option 'cluster'; did you mean clusters? "
            "(it has: clusters, batch_norm)",
        ),
        (
            {"streams": {"rgb": Stream(pool=_partial_of(NetVLAD, dim=6))}},
            "streams.rgb.pool: NetVLAD has no option 'dim'",
        ),
        ({"streams": {"rgb": Stream(pool=_partial_of(NetVLAD, clusters="6"))}}, "clusters: expected int"),
        ({"streams": {"rgb": Stream(pool=_partial_of(NetVLAD, clusters=True))}}, "clusters: expected int"),
        ({"streams": {"rgb": Stream(pool=_partial_of(NetVLAD, batch_norm=1))}}, "batch_norm: expected bool"),
        ({"streams": {"rgb": Stream(pool=NetVLAD)}}, "streams.rgb.pool: expected partial"),
        ({"streams": {"rgb": partial(NetVLAD)}}, "streams: expected Mapping[str, Stream]"),
        ({"streams": {}}, "streams: a recipe needs at least one"),
        ({"streams": {"flow": Stream(pool=partial(Mean))}}, "no feature 'flow'; the recipe has: rgb, audio"),
        ({"optional": ("flow",)}, "optional: no feature 'flow'; there are: rgb, audio"),
        ({"optional": ["audio"]}, "optional: expected tuple[str, ...], found ['audio']"),
        ({"head": partial(Logistic, 4)}, "head: partial(Logistic, ...) takes its options by keyword"),
        (
            {"head": _partial_of(Logistic, init="heh")},
            "head.init: expected Literal['xavier', 'he'], found 'heh'",
        ),
        ({"classes": 5.0}, "classes: expected int | None, found 5.0"),
        ({"features": {"rgb": "4"}}, "features: expected Mapping[str, int | None]"),
        ({"body": (partial(Mean), Mean)}, "body: expected tuple[partial"),
        (
            {"body": (partial(Mean), _partial_of(Mean, rate=1))},
            "body.1: Mean has no option 'rate' (it has: none)",
        ),
    ],
)
def test_what_does_not_fit_is_named_when_the_recipe_is_made(changes, message):
    with pytest.raises(RecipeError) as caught:
        _recipe(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("setting", ["batch_size", "accumulate", "epochs", "clip_norm"])
@pytest.mark.parametrize("value", [0, -1])
def test_what_must_be_positive_is_checked(setting, value):
    with pytest.raises(RecipeError, match=rf"training\.{setting} is {value}; expected more than 0"):
        _recipe(training=replace(_recipe().training, **{setting: value}))


class _Nested(nn.Module):
    def __init__(self, dim: int, *, inner: partial | None = None) -> None:
        super().__init__()
        self.out_dim = dim


def test_parts_inside_of_parts_are_checked_too():
    with pytest.raises(RecipeError, match=r"streams\.rgb\.pool\.inner: NetVLAD has no option 'cluster'"):
        _recipe(streams={"rgb": Stream(pool=partial(_Nested, inner=_partial_of(NetVLAD, cluster=1)))})


# ------------------------------------------------------------------ overriding


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("streams.rgb.pool.clusters=128", lambda r: r.streams["rgb"].pool.keywords == {"clusters": 128}),
        (
            "streams.rgb.pool.batch_norm=false",
            lambda r: r.streams["rgb"].pool.keywords["batch_norm"] is False,
        ),
        (" training.batch_size = 1_024 ", lambda r: r.training.batch_size == 1024),
        ("training.optimizer.lr=2e-4", lambda r: r.training.optimizer.keywords["lr"] == 2e-4),
        (
            "training.optimizer.betas=(0.5, 0.6)",
            lambda r: r.training.optimizer.keywords["betas"] == (0.5, 0.6),
        ),
        ("training.optimizer.betas.1=0.99", lambda r: r.training.optimizer.keywords["betas"] == (0.8, 0.99)),
        ("training.optimizer.amsgrad=True", lambda r: r.training.optimizer.keywords["amsgrad"] is True),
        ("training.clip=none", lambda r: r.training.clip == "none"),
        ("about.paper=1706.06905", lambda r: r.about.paper == "1706.06905"),
        ("training.steps=none", lambda r: r.training.steps is None),
        ("features.rgb=None", lambda r: r.features == {"rgb": None, "audio": 3}),
        ("optional=['audio']", lambda r: r.optional == ("audio",)),
        ("about.summary=a = b", lambda r: r.about.summary == "a = b"),
        ("head=tagreel.heads.mixture_of_experts.MixtureOfExperts", lambda r: r.head.func is MixtureOfExperts),
        ("training.optimizer=torch.optim.SGD", lambda r: r.training.optimizer.func is torch.optim.SGD),
    ],
)
def test_one_setting_is_changed_and_no_other(setting, read):
    before = to_json(_recipe())
    changed = override(_recipe(), setting)
    assert read(changed)
    assert to_json(_recipe()) == before
    back, key = to_json(changed), setting.strip().split(".")[0].split("=")[0].strip()
    assert {**back, key: None} == {**before, key: None}


def test_an_item_of_a_tuple_is_changed_by_its_number():
    recipe = recipes.find("nextvlad-g8-d05-k128")
    changed = override(recipe, "body.3.reduction=16")
    assert changed.body[3].keywords == {"reduction": 16}
    assert changed.body[:3] == recipe.body[:3]
    swapped = override(recipe, "streams.rgb.transforms.0=tagreel.layers.l2_norm.L2Norm")
    assert swapped.streams["rgb"].transforms[0].func.__name__ == "L2Norm"
    assert override(recipe, "streams.rgb.transforms=[]").streams["rgb"].transforms == ()


def test_a_changed_class_takes_options_of_its_own():
    changed = _overridden(
        _recipe(), "head=tagreel.heads.mixture_of_experts.MixtureOfExperts", "head.experts=4"
    )
    assert (changed.head.func, changed.head.keywords) == (MixtureOfExperts, {"experts": 4})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "streams.rgb.pool.cluster=8",
            "streams.rgb.pool: NetVLAD has no option 'cluster'; did you mean clusters? "
            "(it has: clusters, batch_norm)",
        ),
        ("streams.rbg.pool.clusters=8", "streams: there is no 'rbg'; did you mean rgb? (it has: rgb, audio)"),
        (
            "training.batchsize=8",
            "training: there is no setting 'batchsize'; did you mean batch_size? (it has: ",
        ),
        (
            "trainings=8",
            "recipe: there is no setting 'trainings'; did you mean training? (it has: features, ",
        ),
        ("training.optimizer.betas.2=0.9", "betas: there is no item '2' (it has: 0, 1)"),
        ("training.optimizer.betas.-1=0.9", "betas: there is no item '-1'; did you mean 1? (it has: 0, 1)"),
        ("classes.rgb=1", "classes.rgb: classes is 5 and has nothing inside"),
        ("streams.rgb.pool.clusters=many", "streams.rgb.pool.clusters: expected int, found 'many'"),
        ("streams.rgb.pool.clusters=1.5", "streams.rgb.pool.clusters: expected int, found 1.5"),
        (
            "streams.rgb.pool=mean",
            "streams.rgb.pool: expected partial[Any], found 'mean'; a class is named with its module",
        ),
        (
            "inference=tagreel.sampling.AllFrames",
            "inference: AllFrames is for another place; expected a class whose objects are called with "
            "(scores, view, batch)",
        ),
        ("evaluation_sampling=tagreel.inference.MultiCrop", "MultiCrop is for another place; expected"),
        ("loss=tagreel.sampling.AllFrames", "loss: AllFrames is for another place; expected"),
        ("training.best_by=gap", "training.best_by: expected Literal['gap@20', 'map'"),
        ("training.batch_size=0", "training.batch_size is 0; expected more than 0"),
        ("training.subset=(70, 0)", "training.subset is (70, 0); expected (size, number), each at least 1"),
        ("training.subset=70", "training.subset: expected tuple[int, int] | None, found 70"),
        ("training.batch_size", "--set training.batch_size: expected PATH=VALUE, for example"),
        ("=3", "recipe: there is no setting ''"),
        (
            "head=tagreel.heads.logistic.Logistics",
            "there is no tagreel.heads.logistic.Logistics in this version",
        ),
        ("head=tagreel.head.logistic.Logistic", "there is no tagreel.head.logistic.Logistic in this version"),
        ("head=os.system", "head: expected partial[Any], found 'os.system'"),
        ("head=tagreel.recipe.Path", "tagreel.recipe.Path is not a class of a trusted package"),
        ("head=tagreel.recipe.override", "tagreel.recipe.override is not a class of a trusted package"),
    ],
)
def test_a_setting_that_cannot_be_is_answered_with_what_can(setting, message):
    assert message in _error(setting)


# ------------------------------------------------------------------ JSON


def test_json_spells_out_every_default():
    pool = to_json(_recipe())["streams"]["rgb"]["pool"]
    assert pool == {"class": "tagreel.pools.netvlad.NetVLAD", "options": {"clusters": 6, "batch_norm": True}}


def _with_class(name, *, options=None):
    data = to_json(_recipe())
    data["head"] = {"class": name, "options": options or {}}
    return json.loads(json.dumps(data))


@pytest.fixture
def nothing_runs(monkeypatch):
    """Fail if anything is called that a recipe must never reach, or imported from elsewhere."""

    def forbidden(*arguments, **keywords):
        raise AssertionError(f"this ran: {arguments} {keywords}")

    for owner, name in ((os, "system"), (os, "posix_spawn"), (subprocess, "Popen"), (runpy, "run_path")):
        monkeypatch.setattr(owner, name, forbidden)
    real = importlib.import_module

    def watched(name, *arguments):
        assert f"{name}.".startswith(("tagreel.", "torch.optim.")), f"imported {name}"
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", watched)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "posix.system",
        "builtins.eval",
        "builtins.exec",
        "subprocess.Popen",
        "tagreelx.evil.Class",
        "torch.nn.Linear",
        "torch.load",
        "torch.optimx.Adam",
        "tagreel.cli.os.system",
        "tagreel.parts.importlib.import_module",
        "tagreel.recipe.Path",
        "tagreel.parts.partial",
        "tagreel.recipe.runpy.run_path",
        "tagreel.recipe.find",
        "tagreel.tagger.nn.Module",
        "torch.optim.lr_scheduler.partial",
        "tagreel.recipe.__builtins__",
        "tagreel.parts._SAFE_PACKAGES",
        "tagreel",
        "tagreel.",
        "tagreel..recipe.Recipe",
        ".os.system",
        "",
    ],
)
def test_a_class_that_is_not_ours_is_refused_and_nothing_runs(name):
    with pytest.raises(RecipeError, match=r"^model\.json: ") as caught:
        from_json(_with_class(name, options={}), where="model.json")
    assert "trusted package" in str(caught.value) or "there is no" in str(caught.value)


def test_a_package_of_ones_own_is_taken_when_trusted(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text(
        "from torch import nn\n\n\nclass Head(nn.Linear):\n"
        "    def __init__(self, dim: int, classes: int, *, scale: float = 1.0) -> None:\n"
        "        super().__init__(dim, classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = _with_class("my_parts.Head", options={"scale": 2.0})
    with pytest.raises(
        RecipeError, match=r"my_parts\.Head is not of a trusted package \(tagreel, torch\.optim\)"
    ):
        from_json(data)
    trusting = from_json(data, trust=("my_parts",))
    assert trusting.head.func.__name__ == "Head"
    assert to_json(trusting) == data
    assert override(_recipe(), "head=my_parts.Head", trust=("my_parts",)).head.func is trusting.head.func


@pytest.mark.parametrize(
    "break_it",
    [
        lambda data: [],
        lambda data: None,
        lambda data: "recipe",
        lambda data: {},
        lambda data: {**data, "streams": None},
        lambda data: {**data, "streams": {"rgb": []}},
        lambda data: {**data, "streams": {"rgb": {}}},
        lambda data: {**data, "training": {}},
        lambda data: {**data, "training": {**data["training"], "batchsize": 1}},
        lambda data: {**data, "unknown": 1},
        lambda data: {**data, "about": {"nobody": 1}},
        lambda data: {**data, "head": None},
        lambda data: {**data, "head": {"class": "tagreel.heads.logistic.Logistic", "options": {"x": 1}}},
        lambda data: {**data, "head": {"class": 5, "options": {}}},
        lambda data: {**data, "head": {"class": "tagreel.heads.logistic.Logistic", "options": [1]}},
        lambda data: {**data, "head": {"class": "tagreel.heads.logistic.Logistic"}},
        lambda data: {**data, "classes": "5"},
    ],
)
def test_json_that_is_no_recipe_is_named(break_it):
    with pytest.raises(RecipeError, match=r"^model\.json: "):
        from_json(break_it(to_json(_recipe())), where="model.json")


def test_an_option_that_is_gone_is_answered_with_those_there_are():
    data = _with_class("tagreel.heads.mixture_of_experts.MixtureOfExperts", options={"expert": 3})
    with pytest.raises(
        RecipeError, match=r"head: MixtureOfExperts has no option 'expert'; did you mean experts\?"
    ):
        from_json(data)


# ------------------------------------------------------------------ files of one's own

OWN = """
from dataclasses import replace
from functools import partial
from torch import nn
from tagreel.recipe import find

class Sum(nn.Module):
    def __init__(self, dim, *, scale=1.0):
        super().__init__()
        self.out_dim, self.scale = dim, scale
    def forward(self, frames, mask=None):
        return self.scale * (frames * mask[..., None]).sum(1)

def hidden():
    class Inner(Sum):
        pass
    return Inner

smoke = find("smoke")
own = replace(smoke, streams={k: replace(s, pool=partial(Sum, scale=2.0)) for k, s in smoke.streams.items()})
local = replace(smoke, streams={k: replace(s, pool=partial(hidden())) for k, s in smoke.streams.items()})
"""


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    path = tmp_path / "my_own_recipes.py"
    path.write_text(OWN)
    yield path
    sys.modules.pop("my_own_recipes", None)


def test_a_class_beside_the_recipe_is_found_again_when_it_is_trusted(own_file, tmp_path):
    data = to_json(find(f"{own_file}:own"))
    assert data["streams"]["rgb"]["pool"]["class"] == "my_own_recipes.Sum"
    again = from_json(data, trust=("my_own_recipes",))
    assert build(again).streams["rgb"].pool.scale == 2.0
    with pytest.raises(RecipeError, match="if you know it: --trust my_own_recipes"):
        from_json(data)
    (tmp_path / "own.json").write_text(json.dumps(data))
    assert to_json(find(str(tmp_path / "own.json"), trust=("my_own_recipes",))) == data


def test_a_class_that_no_name_leads_to_is_refused_before_training(own_file):
    with pytest.raises(RecipeError, match=r"hidden\.<locals>\.Inner cannot be found again by that name"):
        to_json(find(f"{own_file}:local"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("x = (", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_does_not_run_is_one_line(text, reason, tmp_path):
    path = tmp_path / "broken_recipes.py"
    path.write_text(text)
    with pytest.raises(RecipeError, match=f"broken_recipes.py: {reason}"):
        find(str(path))


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("streams.rgb.pool.clusters=0", "streams.rgb.pool"),
        ("streams.rgb.pool.expansion=0", "streams.rgb.pool"),
        ("streams.rgb.pool=tagreel.heads.logistic.Logistic", "streams.rgb.pool"),
        ("head=tagreel.pools.mean.Mean", "head"),
        ("loss=tagreel.pools.mean.Mean", "loss"),
        ("training.schedule=torch.optim.Adam", "training.schedule"),
        ("training.epochs=1e999", "training.epochs"),
        ("training.ema=1", "training.ema"),
        ("training.mixup=-1", "training.mixup"),
        ("training.steps=0", "training.steps"),
        ("body.0.rate=2", "body.0"),
        ("features.rgb=0", "features.rgb"),
        ("classes=0", "classes"),
        ("batch_norm_momentum=5", "batch_norm_momentum"),
        ("sampling.max_frames=0", "sampling"),
    ],
)
def test_a_value_out_of_range_is_one_line_that_names_the_setting(setting, named):
    with pytest.raises(RecipeError, match=f"^{re.escape(named)}"):
        build(override(find("smoke"), setting))


def test_setting_epochs_ends_counting_in_steps():
    recipe = override(find("willow-netvlad-256"), "training.epochs=2")
    assert (recipe.training.epochs, recipe.training.steps) == (2, None)


# ------------------------------------------------------------------ ensembles


def _ensemble(**changes):
    settings = {"members": {"one": _recipe(), "two": _recipe(classes=None)}, "weights": {"one": 3, "two": 1}}
    return Ensemble(**(settings | changes))


def test_weights_count_by_their_share_of_their_sum():
    assert _ensemble().shares == {"one": 0.75, "two": 0.25}
    assert _ensemble(weights=None).shares == {"one": 0.5, "two": 0.5}
    backwards = _ensemble(weights={"two": 0.5, "one": 0}).shares
    assert list(backwards.items()) == [("one", 0), ("two", 1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": {}}, "members: an ensemble needs at least one"),
        ({"members": {"one": "smoke"}, "weights": None}, "members: expected Mapping[str, Recipe], found {"),
        ({"members": {"a/b": _recipe()}, "weights": None}, "members: 'a/b' is to name a folder; expected"),
        ({"members": {"..": _recipe()}, "weights": None}, "members: '..' is to name a folder"),
        ({"members": {"": _recipe()}, "weights": None}, "members: '' is to name a folder"),
        (
            {"weights": {"one": 1, "tow": 1, "two": 1}},
            "weights: there is no member 'tow'; did you mean two? (it has: one, two)",
        ),
        ({"weights": {"one": 1}}, "weights: there is none for 'two'; give it 0 to leave it out"),
        ({"weights": {"one": 1, "two": -0.5}}, "weights.two is -0.5; expected 0 or more"),
        ({"weights": {"one": 1, "two": float("nan")}}, "weights.two is nan; expected 0 or more"),
        ({"weights": {"one": float("inf"), "two": 1}}, "weights.one is inf; expected 0 or more"),
        ({"weights": {"one": 1e308, "two": 1e308}}, "weights: their sum is inf; expected more than 0"),
        ({"weights": {"one": 0, "two": 0.0}}, "weights: their sum is 0.0; expected more than 0, and finite"),
        ({"weights": {"one": 1, "two": "1"}}, "weights: expected Mapping[str, float] | None"),
        ({"weights": (1, 1)}, "weights: expected Mapping[str, float] | None"),
        ({"top_k": 0}, "top_k is 0; expected at least 1"),
        ({"top_k": 1.5}, "top_k: expected int | None, found 1.5"),
        ({"storage": "float8"}, "storage: expected Literal['float32', 'bfloat16', 'float16', 'int8',"),
        ({"about": About(parameters="many")}, "about.parameters: expected int | None, found 'many'"),
        (
            {"members": {"one": _recipe(), "two": _recipe(classes=6)}},
            "members.two.classes is 6, that of one 5; expected the same",
        ),
        (
            {"members": {"one": _recipe(), "two": _recipe(features={"rgb": 8, "audio": None})}},
            "members.two.features.rgb is 8, that of one 4; expected the same",
        ),
    ],
)  # fmt: skip
def test_an_ensemble_that_cannot_be_is_answered_with_what_can(changes, message):
    with pytest.raises(RecipeError) as caught:
        _ensemble(**changes)
    assert str(caught.value).startswith(message)


def test_members_may_read_different_features():
    image = _recipe(features={"image": 7}, streams={"image": Stream(pool=partial(Mean))})
    assert set(_ensemble(members={"one": _recipe(), "two": image}).members) == {"one", "two"}


def test_the_storages_of_an_ensemble_are_those_there_are():
    from tagreel.storage import STORAGES

    assert [_ensemble(storage=storage).storage for storage in STORAGES] == list(STORAGES)


def test_an_ensemble_travels_as_json():
    ensemble = _ensemble(top_k=7, storage="bfloat16", about=About(name="x", published={"GAP@20": 0.5}))
    data = json.loads(json.dumps(to_json(ensemble)))
    again = ensemble_from_json(data)
    assert to_json(again) == to_json(ensemble) == data
    assert (again.shares, again.top_k, again.storage) == (ensemble.shares, 7, "bfloat16")
    assert again.about == ensemble.about
    assert again.members["one"].head.func is Logistic
    assert to_json(ensemble_from_json(to_json(_ensemble(weights=None)))) == to_json(_ensemble(weights=None))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda data: [], "not an ensemble as tagreel writes it"),
        (lambda data: None, "not an ensemble as tagreel writes it"),
        (lambda data: {}, "not an ensemble as tagreel writes it: 'members'"),
        (lambda data: {**data, "members": ["one"]}, "not an ensemble as tagreel writes it"),
        (lambda data: {**data, "members": {"one": {}}}, "members.one: not a recipe as tagreel writes it"),
        (lambda data: {**data, "weights": {"one": 1}}, "weights: there is none for 'two'"),
        (lambda data: {**data, "weights": {"one": "1", "two": 1}}, "weights: expected Mapping"),
        (lambda data: {**data, "unknown": 1}, "not an ensemble as tagreel writes it"),
        (lambda data: {**data, "about": {"nobody": 1}}, "not an ensemble as tagreel writes it"),
        (
            lambda data: {**data, "members": {"one": _with_class("os.system")}, "weights": None},
            "members.one: os.system is not of a trusted package",
        ),
    ],
)  # fmt: skip
def test_json_that_is_no_ensemble_is_named(break_it, message):
    with pytest.raises(RecipeError) as caught:
        ensemble_from_json(break_it(to_json(_ensemble())), where="mine.json")
    assert str(caught.value).startswith(f"mine.json: {message}")


def test_one_setting_of_an_ensemble_is_changed():
    before = to_json(_ensemble())
    assert override(_ensemble(), "weights.two=5").weights == {"one": 3, "two": 5}
    assert override(_ensemble(), "top_k=20").top_k == 20
    changed = override(_ensemble(), "members.two.streams.rgb.pool.clusters=9")
    assert changed.members["two"].streams["rgb"].pool.keywords == {"clusters": 9}
    assert to_json(changed.members["one"]) == before["members"]["one"]
    longer = override(
        _ensemble(members={"one": find("willow-netvlad-256")}, weights=None), "members.one.training.epochs=2"
    )
    assert (longer.members["one"].training.epochs, longer.members["one"].training.steps) == (2, None)
    with pytest.raises(RecipeError, match=r"^weights: there is no 'three' \(it has: one, two\)$"):
        override(_ensemble(), "weights.three=1")


def test_an_ensemble_is_found_by_name_and_its_members_know_theirs():
    found = find_ensemble("willow_ens7")
    assert to_json(found) == to_json(find_any("willow-ens7"))
    assert found.about.name == "willow-ens7"
    assert [recipe.about.name for recipe in found.members.values()] == list(found.members)
    assert isinstance(find_any("smoke"), Recipe)
    assert not set(recipes.ensembles()) & set(recipes.names())


@pytest.mark.parametrize(
    ("search", "name", "message"),
    [
        (find, "willow-ens7", "willow-ens7 is an ensemble of 7; expected a single recipe, such as willow"),
        (find_ensemble, "smoke", "smoke is a recipe; expected an ensemble of several"),
        (find_ensemble, "willow-ens8", "no ensemble 'willow-ens8'; did you mean willow-ens7? (tagreel"),
        (find_any, "willow-ens8", "no recipe 'willow-ens8'; did you mean willow-ens7? (tagreel"),
        (find_ensemble, "nowhere.json", "nowhere.json: No such file"),
    ],
)  # fmt: skip
def test_what_is_not_found_is_told_apart_from_what_is_of_the_other_kind(search, name, message):
    with pytest.raises(RecipeError) as caught:
        search(name)
    assert str(caught.value).startswith(message)


def test_an_ensemble_is_found_in_a_file_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    path = tmp_path / "my_ensembles.py"
    path.write_text(
        "from dataclasses import replace\nfrom tagreel.recipe import Ensemble, find\n"
        "my_tagger = replace(find('smoke'), classes=7)\n"
        "my_system = Ensemble(members={'one': my_tagger, 'two': my_tagger})\n"
    )
    for name in (f"{path}:my_system", f"{path}:my-system", str(path)):
        assert list(find_ensemble(name).members) == ["one", "two"]
    assert find(str(path)).about.name == "my-tagger"
    with pytest.raises(
        RecipeError, match=r"my_system is an ensemble of 2; expected a single recipe, such as one$"
    ):
        find(f"{path}:my_system")
    with pytest.raises(RecipeError, match=r"say which recipe, .*:NAME; it has: my-tagger, my-system$"):
        find_any(str(path))
    with pytest.raises(RecipeError, match=r"say which ensemble, .*:NAME; it has: my-system$"):
        find_ensemble(f"{path}:other")
    (tmp_path / "system.json").write_text(json.dumps(to_json(find_ensemble(str(path)))))
    assert isinstance(find_any(f"{tmp_path}/system.json"), Ensemble)
    with pytest.raises(RecipeError, match=r"system\.json is an ensemble of 2; expected a single recipe"):
        find(f"{tmp_path}/system.json")
    (tmp_path / "one.json").write_text(json.dumps(to_json(find(str(path)))))
    with pytest.raises(RecipeError, match=r"one\.json is a recipe; expected an ensemble of several$"):
        find_ensemble(f"{tmp_path}/one.json")
    sys.modules.pop("my_ensembles", None)
