"""What `tagreel recipes` lists and shows."""

from __future__ import annotations

import json
import sys

import pytest

from tagreel.compress import recipe_size
from tagreel.recipe import ensembles, find, find_ensemble, names, to_json, unpublished


def _json(cli, *arguments):
    code, out, err = cli("recipes", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_recipes_are_listed_then_the_ensembles_then_what_cannot_be_built(cli):
    code, out, _ = cli("recipes")
    assert code == 0
    head, *lines = out.splitlines()
    everything = [*names(), *ensembles(), *unpublished()]
    assert head.split() == ["recipe", "parameters", "MB", "published", "verified", "what", "it", "is"]
    assert [line.split()[0] for line in lines[: len(everything)]] == everything
    assert lines[len(everything) + 1].startswith(f"{len(everything)} in all; ")
    [final] = [line for line in lines if line.startswith("cmu-final ")]
    assert "21,103,811,338    84,420.3   GAP@20 0.84662     name parts step " in final
    assert "   35 models: " in final
    [unknown] = [line for line in lines if line.startswith("willow-ens25 ")]
    assert "not published           -   GAP@20 0.84967" in unknown
    assert "\n  layers     it follows from the paper's layers; the code was never published\n" in out


def test_the_list_is_filtered_and_comes_as_json(cli):
    found = _json(cli, "--paper", "willow", "--kind", "ensemble")["recipes"]
    assert [row["name"] for row in found] == ["willow-ens7", "willow-ens25"]
    assert found[0].pop("verified")[:3] == ["code", "parts", "step"]
    assert found[0] == {
        "name": "willow-ens7",
        "kind": "ensemble",
        "paper": "Willow, arXiv 1706.06905",
        "table": "table 4",
        "summary": "All released, alike in weight",
        "published": {"GAP@20 (Kaggle private)": 0.84688},
        "parameters": 1_270_145_936,
        "bytes": sum(recipe_size(recipe) for recipe in find_ensemble("willow-ens7").members.values()),
        "members": list(find_ensemble("willow-ens7").members),
        "member_of": [],
        "cannot": None,
    }
    assert "25 in all, not which" in found[1]["cannot"]


def test_a_filter_that_nothing_fits_is_one_line(cli):
    message = "tagreel: no recipe fits; `tagreel recipes` lists them all\n"
    assert cli("recipes", "--find", "nosuch") == (2, "", message)


def test_a_row_that_cannot_be_built_is_shown_with_the_reason(cli):
    code, out, _ = cli("recipes", "show", "cmu-ens26")
    assert code == 0
    assert "\n  paper        CMU Informedia, arXiv 1707.01408, table 3\n" in out
    assert "\n  published    GAP@20 (local validation) 0.8456\n" in out
    assert "\n  cannot be built: the paper says that 17 of its models are video-level" in out
    found = _json(cli, "show", "cmu-ens26")
    assert found["about"]["published"]["GAP@20 (local validation)"] == 0.8456
    assert found["cannot"].startswith("the paper says that 17")
    code, _, err = cli("train", "cmu-ens26", "--data", "x", "--out", "y")
    assert (code, err.startswith("tagreel: cmu-ens26 cannot be built: the paper says")) == (2, True)


def test_a_recipe_is_shown_with_how_far_it_was_verified(cli):
    _, out, _ = cli("recipes", "show", "nextvlad-g8-d05-k128")
    assert "\n  verified     the paper gives the number of parameters, or the size, and it agrees\n" in out
    _, out, _ = cli("recipes", "show", "nextvlad-g8-d05-k128", "--set", "classes=7")
    assert "verified" not in out


def test_an_ensemble_is_shown_with_weights_and_sizes(cli):
    code, out, _ = cli("recipes", "show", "cmu-final")
    assert code == 0
    assert "\n  parameters   21,103,811,338\n" in out
    assert "\n  float32      84,420.32 MB (80,509.49 MiB), batch norm's statistics included\n" in out
    assert "\n  published    GAP@20 (test) 0.84662\n" in out
    [row] = [line.split() for line in out.splitlines() if line.startswith("cmu-m34 ")]
    assert row[:7] == ["cmu-m34", "22", "2.43%", "347,224,066", "1,389.07", "GAP@20", "0.82472"]


def test_a_size_is_that_of_the_storage(cli):
    code, out, _ = cli("recipes", "show", "nlvlad-final-r10")
    assert code == 0
    assert "\n  bfloat16     1,042.36 MB (994.07 MiB), batch norm's statistics included\n" in out
    assert "averaged checkpoints; scored by RepeatedSampling(times=10)\n" in out
    code, out, _ = cli("recipes", "show", "nlvlad-final-r10", "--set", "storage=float32")
    assert "\n  float32      2,084.71 MB (1,988.14 MiB)" in out


def test_how_much_of_a_prediction_counts_is_said(cli):
    assert "\n  top_k        50: " in cli("recipes", "show", "willow-ens7")[1]
    assert "top_k" not in cli("recipes", "show", "thu-ens16")[1]


def test_an_ensemble_as_json(cli):
    found = _json(cli, "show", "thu-ens16", "--set", "weights.thu-bilstm-moe-full=5")
    ensemble = find_ensemble("thu-ens16")
    size = sum(recipe_size(recipe) for recipe in ensemble.members.values())
    assert (found["name"], found["parameters"], found["bytes"]) == ("thu-ens16", 316_339_444, size)
    assert list(found["members"]) == list(ensemble.members)
    assert {member["share"] for member in found["members"].values()} == {0.25}
    assert sum(member["bytes"] for member in found["members"].values()) == size
    assert found["configuration"]["members"] == to_json(ensemble)["members"]
    assert found["about"]["published"] == {
        "GAP@20 (Kaggle public)": 0.83477,
        "GAP@20 (Kaggle private)": 0.8347,
    }


def test_a_recipe_as_json_says_its_size(cli):
    found = _json(cli, "show", "smoke")
    assert (found["parameters"], found["bytes"]) == (332_478, recipe_size(find("smoke")))


def test_sizes_that_the_data_decide_are_not_guessed(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    path = tmp_path / "open_sizes.py"
    path.write_text(
        "from dataclasses import replace\nfrom tagreel.recipe import Ensemble, find\n"
        "one = find('smoke')\n_open = replace(one, classes=None)\n"
        "system = Ensemble(members={'one': one, 'two': _open})\n"
    )
    code, out, _ = cli("recipes", "show", f"{path}:system")
    assert code == 0
    assert "  parameters   depends on the data\n" in out
    assert "MB (" not in out
    assert [line.split()[3:5] for line in out.splitlines() if line.startswith("two ")] == [["by", "the"]]
    found = _json(cli, "show", f"{path}:system")
    assert (found["parameters"], found["bytes"], found["members"]["two"]["bytes"]) == (None, None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("show", "cmu-finl"),
            "no recipe 'cmu-finl'; did you mean cmu-final? (tagreel recipes lists them all)",
        ),
        (("show", "willow-ens7", "--set", "top_k=0"), "top_k is 0; expected at least 1"),
        (("show", "cmu-final", "--set", "weights.cmu-m01=-1"), "weights.cmu-m01 is -1; expected 0 or more"),
    ],
)
def test_what_cannot_be_shown_is_one_line(arguments, message, cli):
    assert cli("recipes", *arguments) == (2, "", f"tagreel: {message}\n")
