"""The six models of Non-local NetVLAD, each size to the last digit and as published."""

from __future__ import annotations

import pytest
import torch

from tagreel import recipe as recipes
from tagreel.tagger import build, count_parameters

# Parameters, the size published in MiB, GAP of the single model and of its averaged checkpoints.
MODELS = {
    "nlvlad-lfnl-netvlad": (154_958_464, 593, 0.8703, 0.8716),
    "nlvlad-lfnl-netrvlad": (125_087_272, 478, 0.8687, 0.8704),
    "nlvlad-efnl-netvlad": (111_697_852, 427, 0.8674, 0.8704),
    "nlvlad-softbof-4k": (28_561_492, 109, 0.8525, 0.8574),
    "nlvlad-softbof-8k": (37_338_492, 143, 0.8512, 0.8563),
    "nlvlad-gru": (63_466_124, 243, 0.8568, 0.8612),
}
every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_has_its_parameters_and_the_published_scores(name):
    recipe = recipes.find(name)
    parameters, _, single, averaged = MODELS[name]
    assert count_parameters(recipe) == recipe.about.parameters == parameters
    assert list(recipe.about.published.values()) == [single, averaged]
    assert "1810.00207" in recipe.about.paper


@every_model
def test_is_of_the_published_size(name):
    parameters, published, *_ = MODELS[name]
    assert parameters * 4 / 2**20 == pytest.approx(published, rel=0.006)


def test_all_six_in_bfloat16_are_under_the_challenges_limit_as_the_authors_count_it():
    total = sum(count_parameters(recipes.find(name)) for name in MODELS)
    assert total == 521_109_696
    assert total * 2 / 2**20 == pytest.approx(993.9, abs=0.05)


def test_parameters_of_the_first_model_are_a_formula():
    N, A, K, H, C, E = 1024, 128, 64, 1024, 3862, 8
    half = K // 2
    pools = 2 * N * K + 2 * K + 4 * N * K + 2 * A * half + 2 * half + 4 * A * half
    after = (N * K + A * half) * H + H + H * H + 2 * H
    experts = H * C * (E + 1) + H * C * E + C * E
    assert 2 * (N + A) + pools + after + experts + C * C + 2 * C == MODELS["nlvlad-lfnl-netvlad"][0]


@every_model
def test_scales_frames_jointly_and_only_clusters_see_random_ones(name):
    recipe = recipes.find(name)
    assert recipe.joint_l2_norm
    assert recipe.batch_norm_momentum == 0.001
    ordered = name == "nlvlad-gru"
    assert recipe.sampling.func.__name__ == ("AllFrames" if ordered else "RandomFrames")
    for stream in recipe.streams.values():
        assert len(stream.transforms) == (0 if ordered else 1)


@every_model
def test_only_the_non_local_models_are_gated(name):
    recipe = recipes.find(name)
    non_local = "fnl" in name
    gates = [part.func.__name__ for part in (*recipe.body, *recipe.output)]
    assert [gate for gate in gates if "Gating" in gate] == (
        ["ContextGating", "ProbabilityGating"] if non_local else []
    )


@pytest.mark.parametrize(
    ("name", "stream", "inner", "scale", "reuse_phi"),
    [
        ("nlvlad-lfnl-netvlad", "rgb", 64, 1 / 64, False),
        ("nlvlad-lfnl-netvlad", "audio", 32, 1 / 64, False),
        ("nlvlad-lfnl-netrvlad", "rgb", 512, 1024**-0.5, True),
        ("nlvlad-lfnl-netrvlad", "audio", 64, 128**-0.5, True),
        ("nlvlad-efnl-netvlad", "frames", 64, 1152**-0.5, True),
    ],
)
def test_attention_over_clusters_is_that_of_the_authors_code(name, stream, inner, scale, reuse_phi):
    with torch.device("meta"):
        block = build(recipes.find(name)).streams[stream].pool.non_local
    assert block.theta.shape[1] == inner
    assert block.scale == scale
    assert block.reuse_phi is reuse_phi


def test_picture_and_sound_meet_early_or_late_as_the_names_say():
    widths = {
        "nlvlad-lfnl-netvlad": 1024 * 64 + 128 * 32,
        "nlvlad-efnl-netvlad": 1152 * 64,
        "nlvlad-gru": 2400,
    }
    for name, width in widths.items():
        with torch.device("meta"):
            assert build(recipes.find(name)).descriptor_dim == width


@every_model
def test_it_trains_at_a_small_size(name):
    torch.manual_seed(0)
    recipe = recipes.find(name)
    settings = ["features.rgb=12", "features.audio=6", "classes=5"]
    settings += ["body.0.width=8"] if recipe.body else []
    for stream in recipe.streams:
        settings += [
            f"streams.{stream}.pool.units=(7, 7)"
            if name == "nlvlad-gru"
            else f"streams.{stream}.pool.clusters=3"
        ]
    for setting in settings:
        recipe = recipes.override(recipe, setting)
    model = build(recipe)
    streams = {"rgb": torch.randn(3, 6, 12), "audio": torch.randn(3, 6, 6)}
    mask = torch.arange(6) < torch.tensor([[6], [1], [3]])
    logits = model(streams, {"rgb": mask, "audio": mask})
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    idle = {n for n, p in model.named_parameters() if p.grad is None}
    assert all(name.endswith("non_local.g") for name in idle)
    assert bool(idle) == ("netrvlad" in name or "efnl" in name)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
