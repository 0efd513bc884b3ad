from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from tagreel.errors import RecipeError
from tagreel.inference import SegmentedInference
from tagreel.loader import Loader, collate
from tagreel.model import build
from tests.conftest import video


def _batch(*lengths):
    return collate([video(str(n), frames=n) for n in lengths], features={"rgb": 4})


def _means(batch):
    """Scores that say which frames were seen: each video's mean."""
    mask = batch.masks()["rgb"][..., None]
    return (batch.streams["rgb"] * mask).sum(1) / mask.sum(1)


def test_segmented_inference_is_the_weighted_sum_over_the_video_and_its_thirds():
    batch = _batch(7, 9, 122, 3)
    found = SegmentedInference()(_means, batch)
    for row, length in enumerate((7, 9, 122, 3)):
        frames = batch.streams["rgb"][row, :length].float()
        third = length // 3
        expected = 0.7 * frames.mean(0)
        for part in range(3):
            expected += 0.1 * frames[part * third : (part + 1) * third].mean(0)
        torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize("length", [1, 2])
def test_a_video_too_short_for_segments_is_scored_whole(length):
    batch = _batch(length, 30)
    torch.testing.assert_close(SegmentedInference()(_means, batch)[0], _means(batch)[0])


def test_other_weights_and_numbers_of_segments():
    batch = _batch(8)
    frames = batch.streams["rgb"][0].float()
    expected = 0.5 * frames.mean(0) + 0.25 * frames[:4].mean(0) + 0.25 * frames[4:].mean(0)
    torch.testing.assert_close(SegmentedInference(segments=2, whole=0.5)(_means, batch)[0], expected)


@pytest.mark.parametrize("options", [{"segments": 0}, {"whole": 1.5}])
def test_what_cannot_be_is_refused_in_the_recipe(options, tiny):
    with pytest.raises(RecipeError, match="inference: segments="):
        replace(tiny, inference=partial(SegmentedInference, **options))


def test_a_model_scores_by_its_recipes_inference_everywhere(tiny, training_data):
    torch.manual_seed(0)
    plain = build(tiny).eval()
    segmented = build(replace(tiny, inference=partial(SegmentedInference))).eval()
    segmented.load_state_dict(plain.state_dict())
    loader = Loader(training_data, features=plain.features, classes=120, batch_size=4)
    batch = loader.batch(0, 0)
    expected = SegmentedInference()(plain.probabilities, batch)
    assert not torch.allclose(plain.probabilities(batch), expected, atol=1e-4)
    torch.testing.assert_close(segmented.probabilities(batch), expected)
    frames = {name: x[:1] for name, x in batch.streams.items()}
    counts = batch.num_frames["rgb"][:1]
    torch.testing.assert_close(segmented.scores(frames, counts), expected[:1])
