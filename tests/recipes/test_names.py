"""Every row of the papers' results tables by its name, against names.csv, which was read from the papers.

That each is built at its published size, and has the parameters that it states, is in the recipes' contract.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tagreel import recipe as recipes
from tagreel.catalogue import SOURCES, Item, catalogue, parts_of
from tagreel.claims import TABLES
from tagreel.errors import RecipeError
from tagreel.files import read_json

TESTS = Path(__file__).parents[1]
RESULTS = TESTS.parent / "docs" / "results"
with (TESTS / "recipes" / "names.csv").open(encoding="utf-8") as file:
    TABLE = {row["name"]: row for row in csv.DictReader(file)}
OURS = {"thu-loss-ignore-easy-negatives-02"}
"""A published variant that no table has."""


@pytest.fixture(scope="module")
def items() -> dict[str, Item]:
    return {item.name: item for item in catalogue()}


def test_the_table_is_as_long_as_those_of_the_papers():
    assert len(TABLE) == 211
    kinds = [row["kind"] for row in TABLE.values()]
    assert (kinds.count("model"), kinds.count("ensemble"), kinds.count("data-size")) == (140, 23, 48)


def test_names_sources_kinds_and_parameters_are_those_of_the_table(items):
    published = {name: item for name, item in items.items() if item.about.paper}
    assert set(published) == set(TABLE) | OURS
    for name, row in TABLE.items():
        item = published[name]
        assert row["paper"] in item.about.paper.lower(), name
        assert (item.about.table, item.kind) == (row["table"], row["kind"]), name
        assert item.parameters == (int(row["parameters"]) if row["parameters"] else None), name


@pytest.mark.parametrize("name", TABLE)
def test_the_published_figures_are_those_of_the_table(name, items):
    expected = sorted(map(float, TABLE[name]["figures"].split()))
    assert sorted(items[name].about.published.values()) == pytest.approx(expected, abs=1e-9)


def test_every_name_resolves_but_those_of_which_the_papers_do_not_say_enough(items):
    for name, row in TABLE.items():
        if row["cannot"]:
            assert items[name].cannot == row["cannot"]
            assert (items[name].parameters, items[name].size, items[name].members) == (None, None, ())
            with pytest.raises(RecipeError, match=f"^{name} cannot be built: the paper says"):
                recipes.find_any(name)
        else:
            assert recipes.find_any(name).about.name == name
    assert list(recipes.unpublished()) == [name for name, row in TABLE.items() if row["cannot"]]


def test_a_size_in_bytes_holds_all_parameters_and_little_else(items):
    for name, item in items.items():
        if item.parameters is not None:
            width = (
                2 if name.startswith("nlvlad-final") or name in ("audioset-system", "youtube8m-system") else 4
            )
            assert width * item.parameters <= item.size <= 1.2 * width * item.parameters, name


def test_the_data_size_study_takes_three_disjoint_sets_of_each_size():
    for name, row in TABLE.items():
        if row["kind"] == "data-size":
            _, size, number = name.rsplit("-", 2)
            assert recipes.find(name).training.subset == (1000 * int(size[:-1]), int(number[1:]))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_can_be_reproduced_has_the_rows_of_the_paper(name):
    """In the paper's order, but for those that cannot be built; a claim is about two of them."""
    table = TABLES[name]
    entries = [entry for row in table.rows for entry in table.recipes(row)]
    source = TABLE[entries[0]]
    same = [
        other
        for other, row in TABLE.items()
        if (row["paper"], row["table"]) == (source["paper"], source["table"]) and not row["cannot"]
    ]
    assert set(entries) == set(same)
    for claim in table.claims:
        assert {claim.better, claim.worse} <= set(table.rows)
        assert claim.better != claim.worse
        figures = [
            float(TABLE[row]["figures"].split()[0])
            for row in (claim.better, claim.worse)
            if row in TABLE and TABLE[row]["figures"]
        ]
        assert len(figures) < 2 or figures[0] > figures[1], claim


# ---------------------------------------------------------------------- what was verified


def test_a_verified_part_is_held_against_a_reference_in_its_test():
    for part in _noted()["parts"]:
        _, *place, name = part.split(".")
        text = TESTS.joinpath(*place[:-1], f"test_{place[-1]}.py").read_text(encoding="utf-8")
        assert name in text, part


def test_every_part_of_a_published_recipe_is_verified():
    for name, recipe in recipes.names().items():
        if recipe.about.paper:
            assert parts_of(recipe) <= set(_noted()["parts"]), name


def test_what_was_trained_is_in_the_results():
    models = read_json(RESULTS / "published_sizes.json")
    stepped = [_model(recipes.find(name)) for name in models]
    for name in _noted()["step"]:
        assert _model(recipes.find(name)) in stepped, name
    for data, trained in _noted()["small"].items():
        rows = set()
        for path in RESULTS.glob(f"reproduce-*-{data}.json"):
            result = read_json(path)
            rows |= {entry for row in result["rows"] for entry in TABLES[result["table"]].recipes(row)}
        assert set(trained) <= rows


def test_every_word_has_a_meaning(items):
    words = {word for item in items.values() for word in item.verified}
    assert words <= set(SOURCES)
    assert {"published", "code", "layers", "name", "parts", "step"} <= words
    assert items["cmu-m34"].verified[0] == "name"
    assert items["cmu-moe2"].verified[0] == "layers"
    assert items["nextvlad-g16-d02-k128"].verified[0] == "code"
    assert items["smoke"].verified == ()


def _noted():
    return read_json(Path(recipes.__file__).parent / "recipes" / "verified.json")


def _model(recipe):
    aside = ("about", "training", "sampling", "evaluation_sampling", "inference", "loss")
    return {key: value for key, value in recipes.to_json(recipe).items() if key not in aside}


# ---------------------------------------------------------------------- filters

LARGEST = [f"willow-datasize-lstm-1150k-s{number}" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"paper": "NeXtVLAD", "table": "table 3"}, "nextvlad-mix3-t0-120k nextvlad-mix3-t3-120k"),
        ({"paper": "1706.06905", "table": "2", "words": ["gated", "experts"]}, "willow-glu-cg"),
        ({"kind": "ensemble", "paper": "tsinghua"}, "thu-ens16 thu-ens36"),
        ({"kind": "data-size", "words": ["lstm", "1150k"]}, " ".join(LARGEST)),
        ({"paper": "willow", "kind": "ensemble"}, "willow-ens7 willow-ens25"),
        ({"words": ["nosuch"]}, ""),
    ],
)
def test_the_catalogue_is_filtered(options, expected):
    assert [item.name for item in catalogue(**options)] == expected.split()


def test_members_are_the_models_that_an_ensemble_has():
    members = {item.name: item for item in catalogue(kind="member", paper="willow")}
    assert list(members) == list(recipes.find_ensemble("willow-ens7").members)
    assert members["willow-rel-gru-1200"].member_of == ("willow-ens7",)
    assert {item.kind for item in members.values()} == {"model"}
