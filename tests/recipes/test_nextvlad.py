"""The NeXtVLAD paper's sizes, each as a formula and to the last digit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from tagreel import recipe as recipes
from tagreel.heads.logistic import Logistic
from tagreel.layers.context_gating import ContextGating
from tagreel.layers.projection import Projection
from tagreel.layers.se_gating import SEGating
from tagreel.pools.netvlad import NetVLAD
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.sampling import AllFrames, RandomFrames
from tagreel.tagger import build, count_parameters

TABLE_1 = {
    "nextvlad-netvlad-k128": (297_603_222, 0.8474),
    "nextvlad-netvlad-random-k256": (290_779_670, 0.8507),
    "nextvlad-netvlad-small-k128": (87_949_878, 0.8582),
    "nextvlad-g32-d02-k128": (38_731_334, 0.8681),
    "nextvlad-g16-d02-k128": (53_268_014, 0.8685),
    "nextvlad-g16-d05-k128": (53_268_014, 0.8697),
    "nextvlad-g8-d05-k128": (88_889_378, 0.8723),
}
WITH_NEXTVLAD = ["nextvlad-g32-d02-k128", "nextvlad-g16-d05-k128", "nextvlad-g8-d05-k128"]


def _count(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _stream(dim, groups, clusters):
    """Parameters of one NeXtVLAD of expansion 2: expansion, attention, clusters, centres, batch norm."""
    e, g, k = 2 * dim, groups, clusters
    d = e // g
    return dim * e + e + e * g + g + e * g * k + 2 * g * k + d * k + 2 * d * k


def _wrapper(descriptor, reduction, hidden=2048, classes=3862):
    """Fully-connected layer and its batch norm, SE gate with its own, logistic layer."""
    h, squeezed = hidden, hidden // reduction
    return descriptor * h + 2 * h + 2 * h * squeezed + 2 * squeezed + h * classes + classes


@pytest.mark.parametrize(("name", "expected"), [(n, size) for n, (size, _) in TABLE_1.items()])
def test_rows_of_table_1_have_their_parameters(name, expected):
    recipe = recipes.find(name)
    assert count_parameters(recipe) == recipe.about.parameters == expected


@pytest.mark.parametrize(("name", "published"), [(n, gap) for n, (_, gap) in TABLE_1.items()])
def test_rows_of_table_1_say_what_was_published(name, published):
    about = recipes.find(name).about
    assert list(about.published.values()) == [published]
    assert about.table == "table 1"


@pytest.mark.parametrize(
    ("name", "temperature", "steps"),
    [
        *((f"nextvlad-mix3-t3-{steps}k", 3.0, steps) for steps in (120, 250, 346, 460, 647)),
        ("nextvlad-mix3-t0-120k", 0.0, 120),
    ],
)
def test_mixtures_are_three_branches_and_a_gate(name, temperature, steps):
    recipe = recipes.find(name)
    assert count_parameters(recipe) == recipe.about.parameters == 3 * 78_643_170 + 2 * 1152 + 1152 * 3 + 3
    assert recipe.mixture.keywords == {"branches": 3, "temperature": temperature}
    assert recipe.training.steps == 1000 * steps


@pytest.mark.parametrize(
    ("groups", "clusters", "reduction", "expected"),
    [(8, 128, 8, 88_889_378), (8, 112, 16, 78_643_170), (16, 128, 8, 53_268_014), (32, 128, 8, 38_731_334)],
)
def test_sizes_of_nextvlad_are_a_formula(groups, clusters, reduction, expected):
    pools = _stream(1024, groups, clusters) + _stream(128, groups // 2, clusters // 2)
    assert pools + _wrapper(2304 * clusters // groups, reduction) == expected
    for dim, share in ((1024, 1), (128, 2)):
        with torch.device("meta"):
            pool = NeXtVLAD(dim, clusters=clusters // share, groups=groups // share)
        assert _count(pool) == _stream(dim, groups // share, clusters // share)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nextvlad-g8-d05-k128", 88_970_274),
        ("nextvlad-single-460k", 78_714_274),
        ("nextvlad-g16-d05-k128", 53_314_606),
        ("nextvlad-g32-d02-k128", 38_764_614),
    ],
)
def test_with_moving_statistics_a_row_has_the_size_of_the_authors_checkpoint(name, expected):
    with torch.device("meta"):
        model = build(recipes.find(name))
    statistics = [b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
    assert _count(model) + sum(b.numel() for b in statistics) == expected


def test_three_branches_of_the_submission_are_the_papers_944_megabytes():
    with torch.device("meta"):
        model = build(recipes.find("nextvlad-single-460k"))
    statistics = [b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
    floats = 3 * (_count(model) + sum(b.numel() for b in statistics))
    assert floats * 4 / 1e6 == pytest.approx(944.57, abs=0.005)


def test_parts_of_the_best_model_are_as_large_as_in_the_authors_code():
    with torch.device("meta"):
        model = build(recipes.find("nextvlad-g8-d05-k128"))
    assert _count(model.streams["rgb"]) == 4_313_096
    assert _count(model.streams["rgb"].pool.out_norm) == 65_536
    assert _count(model.streams["audio"]) == 112_388
    assert model.descriptor_dim == 36_864
    assert [_count(part) for part in model.body] == [0, 75_497_472, 4_096, 1_049_088]
    assert _count(model.head) == 7_913_238


@pytest.mark.parametrize(("groups", "expected"), [(8, 71_352_320), (16, 39_895_040), (32, 27_336_704)])
def test_equation_9_counts_the_weights_of_the_visual_stream_and_its_projection(groups, expected):
    name = {8: "nextvlad-g8-d05-k128", 16: "nextvlad-g16-d05-k128", 32: "nextvlad-g32-d02-k128"}[groups]
    recipe = recipes.find(name)
    with torch.device("meta"):
        model = build(replace(recipe, streams={"rgb": recipe.streams["rgb"]}))
    pool, projection = model.streams["rgb"].pool, model.body[1]
    weights = (pool.expand.weight, pool.attention.weight, pool.assignment, pool.centres)
    N, G, K, H = 1024, groups, 128, 2048
    formula = 2 * N * (N + G + K * (G + (H + 1) / G))
    assert sum(w.numel() for w in weights) + projection.linear.weight.numel() == formula == expected


def test_netvlad_is_about_four_times_as_large_as_nextvlad_in_equation_9():
    # N · K · (H + 2) against the row above: a ratio of about G / λ.
    with torch.device("meta"):
        pool = NetVLAD(1024, clusters=128)
        projection = Projection(pool.out_dim, width=2048, bias=False)
    weights = _count(pool) - _count(pool.assignment.norm) + _count(projection)
    assert weights == 1024 * 128 * (2048 + 2) == 268_697_600
    assert weights / 71_352_320 == pytest.approx(8 / 2, rel=0.06)


def test_sizes_of_the_netvlad_rows_are_those_of_the_paper():
    published = {"k128": 297.60e6, "random-k256": 290.78e6, "small-k128": 87.95e6}
    for name, size in published.items():
        assert count_parameters(recipes.find(f"nextvlad-netvlad-{name}")) == pytest.approx(size, abs=5e3)


def test_the_papers_274_million_are_netvlad_random_without_its_audio():
    recipe = recipes.find("nextvlad-netvlad-random-k256")
    visual = replace(recipe, streams={"rgb": recipe.streams["rgb"]}, features={"rgb": 1024})
    assert count_parameters(visual) == 273_969_430
    assert count_parameters(visual) == pytest.approx(273.97e6, abs=5e3)


def test_other_readings_of_the_netvlad_rows_have_other_sizes():
    recipe = recipes.find("nextvlad-netvlad-k128")
    gated = replace(recipe, body=(*recipe.body[:-1], partial(SEGating, reduction=8)))
    assert count_parameters(gated) == pytest.approx(294.45e6, abs=5e3)
    small = recipes.find("nextvlad-netvlad-small-k128")
    audio = replace(small.streams["audio"], pool=partial(NetVLAD, clusters=64))
    halved = replace(small, streams={**small.streams, "audio": audio})
    assert count_parameters(halved) == pytest.approx(83.75e6, abs=5e3)


@pytest.mark.parametrize("name", [*TABLE_1, "nextvlad-single-460k"])
def test_all_share_the_wrapper_of_the_authors_code(name):
    recipe = recipes.find(name)
    assert recipe.streams["rgb"].transforms[0].func.__name__ == "ReverseWhitening"
    assert not recipe.joint_l2_norm
    assert [part.func.__name__ for part in recipe.body][:2] == ["Dropout", "Projection"]
    assert recipe.body[0].keywords == {"rate": 0.2 if "d02" in name else 0.5}
    assert recipe.body[1].keywords["width"] == (1024 if "random" in name else 2048)
    gate = ContextGating if "netvlad" in name else SEGating
    assert recipe.body[-1].func is gate
    assert recipe.head.func is Logistic
    assert recipe.training.head_l2 == 1e-5
    assert recipe.training.batch_size == 160


def test_frames_are_random_in_training_where_the_name_says_so_and_all_elsewhere():
    for name in [*TABLE_1, "nextvlad-single-460k"]:
        recipe = recipes.find(name)
        assert recipe.sampling.func is (RandomFrames if "random" in name else AllFrames)
        assert recipe.evaluation_sampling.func is AllFrames


def test_the_submission_decays_later_and_trains_longer_than_table_1():
    local, final = recipes.find("nextvlad-g8-d05-k128"), recipes.find("nextvlad-single-460k")
    assert (local.training.epochs, local.training.steps) == (5, None)
    assert final.training.steps == 460_000
    assert local.training.schedule()(2_000_000, 0) == final.training.schedule()(2_500_000, 0) == 0.8
    assert final.training.schedule()(2_499_999, 0) == 1.0
    assert final.body[-1].keywords == {"reduction": 16}
    assert list(final.about.published.values()) == [0.87846, 0.87910]


@pytest.mark.parametrize("name", [*WITH_NEXTVLAD, "nextvlad-netvlad-small-k128", "nextvlad-netvlad-k128"])
def test_one_is_trained_at_a_small_size(name):
    torch.manual_seed(0)
    recipe = recipes.find(name)
    for setting in ("body.1.width=32", "streams.rgb.pool.clusters=4", "streams.audio.pool.clusters=2"):
        recipe = recipes.override(recipe, setting)
    model = build(replace(recipe, features={"rgb": 64, "audio": 32}, classes=5))
    streams = {"rgb": torch.randn(3, 6, 64), "audio": torch.randn(3, 6, 32)}
    mask = torch.arange(6) < torch.tensor([[6], [1], [3]])
    logits = model(streams, {"rgb": mask, "audio": mask})
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
