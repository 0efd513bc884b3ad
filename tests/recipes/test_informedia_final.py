"""CMU Informedia's final ensemble, row by row as it is printed."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import pytest
import torch

from tagreel.layers.dropout import Dropout
from tagreel.layers.l2_norm import L2Norm
from tagreel.layers.latent_concepts import LatentConcepts
from tagreel.recipe import find, find_ensemble, names, to_json
from tagreel.tagger import build, count_parameters

# The name in the paper; GAP, mAP and PERR in percent; the weight.
TABLE = """
m01  NetVLAD8 180f MoRE8 2400 deep ckpt274921     81.294  45.541  74.1  36
m02  NetVLAD8 180f MoRE8 2400 deep ckpt280260     81.194  45.564  74.0  35
m03  NetVLAD8 180f MoRE8 1600 deep ckpt265814     81.249  46.883  74.1  34
m04  MoRE30 LC deep 1st                           82.851  50.228  75.6  31
m05  MoRE30 LC deep drop 1st                      82.004  49.866  75.1  28
m06  MoRE28 LC deep 1st                           80.427  48.214  73.7  28
m07  MoRE30 LC deep 2nd                           82.868  50.522  75.6  28
m08  NetVLAD4 180f MoRE8 2400 deep                82.164  48.077  74.9  27
m09  MoRE30 LC deep drop 2nd                      82.038  50.232  75.2  27
m10  MoRE30 LC deep drop 3rd                      82.786  50.744  75.6  27
m11  MoHCE16 LC 1st                               82.702  48.593  75.3  27
m12  NetVLAD2 180f MoRE8 2400 deep dp             82.066  48.380  74.8  26
m13  MoRE28 LC deep 2nd                           81.867  48.782  74.8  26
m14  MoHCE16 LC 2nd                               81.881  47.614  74.6  26
m15  NetVLAD8 180f MoRE8                          81.827  45.308  74.3  26
m16  MoRE30 LC deep 3rd                           81.734  49.663  74.8  25
m17  MoRE30 LC deep l3 1st                        81.104  48.789  74.3  25
m18  MoRE28 LC deep 3rd                           82.783  50.472  75.5  25
m19  MoHCE12 concat deep LC                       83.281  50.412  76.0  25
m20  MoRE28 LC deep 4th                           82.669  50.575  75.5  25
m21  NetVLAD8 1200                                82.005  45.612  74.4  25
m22  NetVLAD4 180f MoRE8 2400 deep dp ckpt304488  81.650  47.577  74.5  24
m23  MoRE28 LC deep 5th                           81.854  50.080  74.9  24
m24  NetVLAD4 180f MoRE8 2400 deep dp ckpt299007  81.604  47.610  74.4  24
m25  NetVLAD1 180f MoRE8 4096 deep dp             82.318  48.627  75.1  24
m26  NetVLAD4 180f MoRE8 2400                     81.971  45.607  74.5  24
m27  MoRE28 LC deep 6th                           81.669  49.510  74.6  23
m28  NetVLAD2 180f MoRE8 2400 deep                82.102  48.281  74.8  23
m29  MoRE30 LC deep l3 2nd                        82.476  49.810  75.2  23
m30  NetVLAD4 180f MoRE8                          81.942  45.330  74.4  23
m31  MoRE28 LC residual                           82.753  50.314  75.5  22
m32  NetVLAD2 180f MoRE8 2400 deep dp (2nd)       82.108  48.327  74.9  22
m33  NetVLAD1 180f MoRE8 4096 deep                82.048  48.309  74.7  22
m34  NetVLAD1 180f MoRE8 2400 deep dp             82.472  48.387  75.1  22
m35  MoRE28 LC deep 7th                           82.700  50.016  75.4  22
"""
ROWS = [
    ("cmu-" + member, *rest) for member, *rest in (re.split("  +", row) for row in TABLE.split("\n")[1:-1])
]
every_row = pytest.mark.parametrize(
    ("name", "printed", "gap", "mean_ap", "perr", "weight"), ROWS, ids=[row[0] for row in ROWS]
)
on_frames = [(row[0], row[1]) for row in ROWS if row[1].startswith("NetVLAD")]
at_video_level = [(row[0], row[1]) for row in ROWS if not row[1].startswith("NetVLAD")]

C, CODE, HIDDEN = 4716, 4096, 4096
LATENT_CONCEPTS = 60_905_280


def _trunk(width, layers):
    first = width * HIDDEN + HIDDEN + 2 * HIDDEN
    return first + (layers - 1) * (HIDDEN * HIDDEN + HIDDEN + 2 * HIDDEN)


def _residual_experts(width, experts, layers=2):
    return _trunk(width, layers) + (HIDDEN + 1 + width) * C * experts


def _hypercolumn_experts(width, experts):
    return _trunk(width, 2) + (width + 2 * HIDDEN + 1 + width) * C * experts


def _width(printed):
    return next((int(word) for word in printed.split() if re.fullmatch(r"[1-9]\d{3}", word)), 2400)


def _parameters(printed):
    """Those of the model that the name is read as."""
    kind, number = re.match(r"(\D+)(\d+)", printed).groups()
    number = int(number)
    if kind == "NetVLAD":
        coding = 1152 * CODE + 2 * CODE + 2 * CODE * number + 2 * number
        compressing = (CODE * number + 1) * _width(printed)
        concepts = LATENT_CONCEPTS if "deep" in printed else 0
        return coding + compressing + _residual_experts(_width(printed), 8) + concepts
    if kind == "MoHCE":
        return _hypercolumn_experts(1152, number) + LATENT_CONCEPTS
    return _residual_experts(1152, number, 3 if "l3" in printed else 2) + LATENT_CONCEPTS


@every_row
def test_a_row_is_as_it_is_printed(name, printed, gap, mean_ap, perr, weight):
    recipe = find(name)
    assert recipe.about.published == {
        "GAP@20 (local validation)": pytest.approx(float(gap) / 100, abs=1e-12),
        "mAP (local validation)": pytest.approx(float(mean_ap) / 100, abs=1e-12),
        "PERR (local validation)": pytest.approx(float(perr) / 100, abs=1e-12),
    }
    assert recipe.about.summary.startswith(f"{printed}: ")
    assert find_ensemble("cmu-final").weights[name] == int(weight)
    assert count_parameters(recipe) == recipe.about.parameters == _parameters(printed)


def test_the_ensemble_has_these_members_and_no_other():
    final = find_ensemble("cmu-final")
    assert list(final.members) == [row[0] for row in ROWS]
    assert {name for name in names() if re.fullmatch(r"cmu-m\d\d", name)} == set(final.members)
    assert to_json(final.members["cmu-m19"]) == to_json(find("cmu-m19"))
    assert (final.top_k, final.storage) == (None, "float32")


def test_weights_add_up_and_video_level_models_have_more_than_half():
    final = find_ensemble("cmu-final")
    video_level = [name for name, _ in at_video_level]
    assert sum(final.weights.values()) == 904
    assert len(video_level) == 19
    assert sum(final.weights[name] for name in video_level) == 487
    assert sum(final.shares.values()) == pytest.approx(1, abs=1e-12)
    assert sum(final.shares[name] for name in video_level) == pytest.approx(0.5387, abs=5e-5)
    assert sum(final.shares[name] for name, _ in on_frames) == pytest.approx(0.4613, abs=5e-5)


def test_it_has_21_billion_parameters():
    total = sum(recipe.about.parameters for recipe in find_ensemble("cmu-final").members.values())
    assert total == sum(_parameters(row[1]) for row in ROWS) == 21_103_811_338


@pytest.mark.parametrize(("name", "printed"), on_frames)
def test_a_netvlad_is_what_its_name_says(name, printed):
    recipe = find(name)
    assert recipe.streams["frames"].pool.keywords["clusters"] == int(printed[len("NetVLAD")])
    assert recipe.body[0].keywords["width"] == _width(printed)
    assert [part.func for part in recipe.body[1:]] == ([Dropout] if " dp" in printed else [])
    deep = "deep" in printed
    assert [part.func for part in recipe.late] == ([LatentConcepts] if deep else [])
    assert recipe.training.late_epochs == (10 if deep else 0)
    step = re.search(r"ckpt(\d+)", printed)
    assert recipe.training.steps == (int(step[1]) if step else 360_000)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("cmu-m10", "cmu-more30-lc-da"),
        ("cmu-m18", "cmu-more28-lc-da"),
        ("cmu-m19", "cmu-mohce12-lc-si-da"),
        ("cmu-m01", "cmu-netvlad-k8-lc"),
        ("cmu-m24", "cmu-netvlad-k4-lc"),
        ("cmu-m32", "cmu-netvlad-k2-lc"),
        ("cmu-m34", "cmu-netvlad-k1-lc"),
    ],
)
def test_rows_that_tables_1_and_2_have_as_well_are_those_models(name, row):
    member, single = find(name), find(row)
    # Table 2 has the GAP of one of the two checkpoints with four clusters, and the mAP of the other.
    tolerance = {"abs": 6e-4 if "k4" in row else 2.5e-4}
    assert list(member.about.published.values()) == pytest.approx(
        list(single.about.published.values()), **tolerance
    )
    expected = replace(single, about=member.about)
    if "netvlad" in row:
        steps = member.training.steps
        expected = replace(expected, training=replace(expected.training, steps=steps))
    else:  # which reads stored means
        expected = replace(expected, features=member.features, streams=member.streams)
    assert to_json(member) == to_json(expected)


@pytest.mark.parametrize(("name", "printed"), at_video_level)
def test_of_frames_a_video_level_model_makes_what_table_1_makes_of_their_means(name, printed):
    def small(recipe, features):
        return replace(
            recipe,
            features=features,
            classes=5,
            body=(partial(L2Norm, parts=(8, 4)),),
            head=partial(recipe.head.func, **{**recipe.head.keywords, "hidden": 16}),
            late=(partial(LatentConcepts, concepts=6),),
        )

    torch.manual_seed(0)
    row = replace(find("cmu-more30-lc-da"), head=find(name).head)
    from_means = build(small(row, {"mean_rgb": 8, "mean_audio": 4})).eval()
    from_frames = build(small(find(name), {"rgb": 8, "audio": 4})).eval()
    from_frames.load_state_dict(from_means.state_dict())
    frames = {"rgb": torch.randn(3, 7, 8), "audio": torch.randn(3, 7, 4)}
    counts = [7, 1, 4]
    means = {
        f"mean_{feature}": torch.stack([x[i, :count].mean(0, keepdim=True) for i, count in enumerate(counts)])
        for feature, x in frames.items()
    }
    mask = torch.arange(7) < torch.tensor(counts)[:, None]
    one = torch.ones(3, 1, dtype=torch.bool)
    torch.testing.assert_close(
        from_frames(frames, dict.fromkeys(frames, mask)), from_means(means, dict.fromkeys(means, one))
    )
