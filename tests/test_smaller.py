from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from tagreel.layers.reverse_whitening import ReverseWhitening
from tagreel.recipe import find, find_ensemble, names
from tagreel.sampling import Crop, RandomFrames
from tagreel.smaller import EPOCHS, Facts, facts_of, smaller
from tagreel.source import Source
from tagreel.tagger import count_parameters

PLANTED = Facts(features={"rgb": 64, "audio": 32}, classes=120, frames=60, videos=6000)
AUDIOSET = Facts(features={"audio_embedding": 128}, classes=527, frames=10, videos=22_000)
MEANS = Facts(features={"mean_rgb": 1024, "mean_audio": 128}, classes=3862, frames=1, videos=26_000)
PUBLISHED = [
    name for name, recipe in names().items() if recipe.about.paper and name != "thu-separated-tasks-25"
]


def _pools(recipe):
    return {name: stream.pool.keywords.get("clusters") for name, stream in recipe.streams.items()}


def test_clusters_and_widths_shrink_alike():
    small = smaller(find("willow-gated-netvlad-256"), PLANTED)
    assert _pools(small) == {"rgb": 32, "audio": 16}
    assert small.body[0].keywords["width"] == 128
    # The published one is 1 / sqrt(clusters), and so is this.
    assert small.body[0].keywords["std"] == pytest.approx(32**-0.5)
    assert [part.func for part in small.body] == [part.func for part in find("willow-gated-netvlad-256").body]
    assert (small.features, small.classes) == ({"rgb": 64, "audio": 32}, 120)


def test_few_clusters_stay_as_many_and_experts_and_groups_do():
    for clusters in (1, 2, 4, 8):
        small = smaller(find(f"cmu-netvlad-k{clusters}-lc"), PLANTED)
        assert _pools(small) == {"frames": clusters}
    assert smaller(find("cmu-more24"), PLANTED).head.keywords["experts"] == 24
    assert smaller(find("nextvlad-g16-d05-k128"), PLANTED).streams["rgb"].pool.keywords["groups"] == 16


def test_an_option_that_the_recipe_leaves_to_its_default_shrinks_too():
    assert "hidden" not in find("cmu-more8").head.keywords
    assert smaller(find("cmu-more8"), PLANTED).head.keywords["hidden"] == 512


def test_recurrent_layers_shrink_twice_as_much():
    assert smaller(find("willow-gru"), PLANTED).streams["frames"].pool.keywords["units"] == (75, 75)


def test_a_transform_is_as_much_wider_than_its_frames_as_before():
    small = smaller(find("nextvlad-netvlad-small-k128"), PLANTED)
    assert [part.keywords["width"] for part in small.streams["rgb"].transforms] == [16]
    [_, code] = smaller(find("cmu-dbow"), PLANTED).streams["frames"].transforms
    assert code.keywords["width"] == round(4096 * 96 / 1152)


def test_features_that_the_data_lack_are_left_out_with_their_streams():
    small = smaller(find("willow-gated-netvlad-256"), AUDIOSET)
    assert small.features == {"audio_embedding": 128}
    assert {name: stream.inputs for name, stream in small.streams.items()} == {"rgb": ("audio_embedding",)}
    early = smaller(find("willow-netvlad-early"), AUDIOSET)
    assert early.streams["frames"].inputs == ("audio_embedding",)
    only_sound = replace(AUDIOSET, features={"audio": 32})
    assert list(smaller(find("willow-gated-netvlad-256"), only_sound).streams) == ["audio"]


def test_frames_stand_for_means_and_means_for_frames():
    assert smaller(find("cmu-more8"), PLANTED).features == {"rgb": 64, "audio": 32}
    assert smaller(find("willow-avg-lr"), MEANS).features == {"mean_rgb": 1024, "mean_audio": 128}


def test_widths_of_modalities_are_those_of_the_data():
    [scaled, _] = smaller(find("cmu-dbow"), PLANTED).streams["frames"].transforms
    assert scaled.keywords["parts"] == (64, 32)
    assert smaller(find("cmu-m04"), AUDIOSET).body[0].keywords["parts"] == (128,)


def test_whitening_is_not_undone_where_there_was_none():
    published = find("nextvlad-g8-d05-k128")
    assert [part.func for part in published.streams["rgb"].transforms] == [ReverseWhitening]
    assert smaller(published, PLANTED).streams["rgb"].transforms == ()


def test_as_large_a_share_of_a_video_is_read():
    small = smaller(find("willow-lstm"), PLANTED)
    assert (small.sampling.func, small.sampling.keywords) == (RandomFrames, {"frames": 30})
    crop = smaller(find("thu-bilstm-moe"), AUDIOSET)
    assert (crop.sampling.func, crop.evaluation_sampling.func) == (Crop, Crop)
    assert {key: crop.sampling.keywords[key] for key in ("starts", "stride")} == {"starts": 4, "stride": 2}
    assert crop.evaluation_sampling.keywords["starts"] == 2
    member = find_ensemble("thu-ens16").members["thu-bilstm-moe-full"]
    assert smaller(member, AUDIOSET).inference.keywords["stride"] == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_recipe_fits_other_data_and_is_trained_like_the_others(name):
    for facts in (PLANTED, AUDIOSET):
        small = smaller(find(name), facts)
        count = count_parameters(small)
        assert count is not None
        assert count < 0.1 * find(name).about.parameters
        training = small.training
        first = smaller(find("willow-avg-lr"), facts).training
        for setting in ("optimizer", "schedule", "batch_size", "steps", "accumulate"):
            assert repr(getattr(training, setting)) == repr(getattr(first, setting))
        assert training.steps == -(-EPOCHS * facts.videos // training.batch_size)
        assert training.late_epochs < EPOCHS


def test_late_parts_join_at_the_same_share_of_the_training():
    published = find("cmu-more24-lc").training
    share = published.late_epochs / (published.steps * published.batch_size / 4_906_660)
    assert smaller(find("cmu-more24-lc"), PLANTED).training.late_epochs == pytest.approx(share * EPOCHS)


def test_a_subset_is_as_large_a_share_of_the_data():
    small = smaller(find("willow-datasize-lstm-70k-s3"), PLANTED)
    assert small.training.subset == (round(70_000 / 4_906_660 * 6000), 3)


def test_by_how_much_is_the_callers_choice():
    small = smaller(find("willow-gated-netvlad-256"), PLANTED, by=64)
    assert _pools(small) == {"rgb": 8, "audio": 8}
    assert small.body[0].keywords["width"] == 16


def test_facts_are_those_of_the_data(shards, planted):
    data = Source(f"{shards}/train*.tfrecord")
    facts = facts_of(data, 120)
    assert facts == Facts(
        features={"rgb": 12, "audio": 6},
        classes=120,
        frames=max(len(frames) for example in planted.examples(0, 40) for frames in example.streams.values()),
        videos=100,
    )


def test_a_part_without_sizes_stays_as_it_is():
    recipe = find("willow-cg-cg")
    assert smaller(recipe, PLANTED).output[0].func is recipe.output[0].func
    assert isinstance(smaller(recipe, PLANTED).loss, partial)
