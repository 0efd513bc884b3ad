from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tagreel.errors import RecipeError
from tagreel.evaluate import evaluate, scoring_loader
from tagreel.inference import MultiCrop, RepeatedSampling, SegmentedInference, keep_top
from tagreel.loader import collate
from tagreel.recorded import Recorded
from tagreel.sampling import AllFrames, RandomFrames, view
from tagreel.tagger import build, set_inference
from tests.conftest import video


def _batch(*lengths):
    return collate([video(str(n), frames=n) for n in lengths], features={"rgb": 4})


def _means(batch):
    """Scores that say which frames were seen: each video's mean."""
    mask = batch.masks()["rgb"][..., None]
    return (batch.streams["rgb"] * mask).sum(1) / mask.sum(1)


def _whole(batch, draw):
    return batch


def test_segmented_inference_is_the_weighted_sum_over_the_video_and_its_thirds():
    batch = _batch(7, 9, 122, 3)
    found = SegmentedInference()(_means, _whole, batch)
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
    torch.testing.assert_close(SegmentedInference()(_means, _whole, batch)[0], _means(batch)[0])


def test_other_weights_and_numbers_of_segments():
    batch = _batch(8)
    frames = batch.streams["rgb"][0].float()
    expected = 0.5 * frames.mean(0) + 0.25 * frames[:4].mean(0) + 0.25 * frames[4:].mean(0)
    inference = SegmentedInference(segments=2, whole=0.5)
    torch.testing.assert_close(inference(_means, _whole, batch)[0], expected)


def test_a_part_is_shown_as_the_recipe_shows_a_video():
    batch = _batch(60, 13)

    def first_two(videos, draw):
        return view(videos, AllFrames(max_frames=2))

    found = SegmentedInference()(_means, first_two, batch)
    for row, length in enumerate((60, 13)):
        frames, third = batch.streams["rgb"][row].float(), length // 3
        starts = (0, third, 2 * third)
        expected = 0.7 * frames[:2].mean(0) + 0.1 * sum(frames[s : s + 2].mean(0) for s in starts)
        torch.testing.assert_close(found[row], expected)


def test_repeated_sampling_is_the_mean_over_independent_draws():
    batch = _batch(90, 4)

    def drawn(videos, draw):
        return view(videos, RandomFrames(frames=5), draw)

    found = RepeatedSampling(times=3)(_means, drawn, batch)
    expected = (_means(drawn(batch, 0)) + _means(drawn(batch, 1)) + _means(drawn(batch, 2))) / 3
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(_means(drawn(batch, 0)), _means(drawn(batch, 1)))
    torch.testing.assert_close(RepeatedSampling(times=1)(_means, drawn, batch), _means(drawn(batch, 0)))


def test_multi_crop_averages_the_best_classes_of_every_crop():
    batch = _batch(230, 12, 2)
    found = MultiCrop(starts=5, stride=5, frames=45, top_k=2)(_means, _whole, batch)
    for row, length in enumerate((230, 12, 2)):
        expected = torch.zeros(4)
        for start in range(5):
            kept = list(range(min(start, length - 1), length, 5))[:45]
            scores = batch.streams["rgb"][row, kept].float().mean(0)
            for c in scores.argsort(descending=True)[:2]:
                expected[c] += scores[c] / 5
        torch.testing.assert_close(found[row], expected)


def test_keep_top_keeps_all_where_there_are_not_more():
    scores = torch.rand(3, 4)
    assert torch.equal(keep_top(scores, 9), scores)
    assert torch.equal((keep_top(scores, 1) > 0).sum(1), torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (partial(SegmentedInference, segments=0), "inference: segments="),
        (partial(SegmentedInference, whole=1.5), "inference: segments="),
        (partial(RepeatedSampling, times=0), "inference: times is 0"),
        (partial(MultiCrop, stride=0), "inference: stride is 0"),
    ],
)
def test_what_cannot_be_is_refused_in_the_recipe(part, reason, tiny):
    with pytest.raises(RecipeError, match=reason):
        replace(tiny, inference=part)


def test_a_model_scores_by_its_recipes_inference_everywhere(tiny, training_data):
    torch.manual_seed(0)
    plain = build(tiny).eval()
    segmented = build(replace(tiny, inference=partial(SegmentedInference))).eval()
    segmented.load_state_dict(plain.state_dict())
    batch = scoring_loader(segmented, training_data, batch_size=4).batch(0, 0)
    sampler = tiny.evaluation_sampling()
    expected = SegmentedInference()(plain.probabilities, lambda b, draw: view(b, sampler, draw), batch)
    assert not torch.allclose(plain.probabilities(batch), expected, atol=1e-4)
    torch.testing.assert_close(segmented.probabilities(batch), expected)
    frames = {name: x[:1] for name, x in batch.streams.items()}
    counts = batch.num_frames["rgb"][:1]
    torch.testing.assert_close(segmented.scores(frames, counts), expected[:1])


def test_another_inference_can_be_chosen_for_a_trained_model(tiny, training_data):
    torch.manual_seed(0)
    drawn = partial(RandomFrames, frames=4)
    model = build(replace(tiny, evaluation_sampling=drawn)).eval()
    assert scoring_loader(model, training_data).sampling.frames == 4
    set_inference(model, ["inference=tagreel.inference.RepeatedSampling", "inference.times=8"])
    loader = scoring_loader(model, training_data)
    assert loader.sampling.max_frames is None  # or the draws would be of what was drawn
    first, again = (evaluate(model, loader, device=torch.device("cpu")).metrics for _ in range(2))
    assert first == again
    assert set_inference(model, ["inference=none"]) is None
    assert model.reads == drawn


@pytest.mark.parametrize("setting", ["head.experts=3", "training.ema=0", "streams.rgb.pool.clusters=2"])
def test_what_training_settled_cannot_be_set_on_its_model(setting, tiny):
    with pytest.raises(RecipeError, match="training has settled it"):
        set_inference(build(tiny), [setting])


def test_predictions_cannot_be_made_otherwise(tmp_path, cli, shards):
    tags = tmp_path / "tags.jsonl"
    tags.write_text('{"id": "a", "labels": [1], "probabilities": [0.5]}\n')
    with pytest.raises(RecipeError, match=r"--set inference=none: tags.jsonl holds predictions"):
        set_inference(Recorded(tags), ["inference=none"])
    arguments = ("--data", shards / "test0.tfrecord", "--set", "inference.times=3")
    code, _, err = cli("evaluate", tags, *arguments)
    assert code == 2
    assert "--set inference.times=3: tags.jsonl holds predictions" in err


def test_a_view_takes_the_same_frames_of_every_stream_and_leaves_vectors():
    rng = np.random.default_rng(0)
    example = video("a", frames=20)
    example.streams["audio"] = example.streams["rgb"][:, :2] + 1
    example.streams["mean"] = rng.random((1, 3), np.float32)
    batch = collate([example, video("b", frames=3)], features={"rgb": 4, "audio": 2, "mean": 3})
    seen = view(batch, RandomFrames(frames=6))
    assert seen.num_frames["rgb"].tolist() == [6, 6]
    assert seen.num_frames["audio"].tolist() == [6, 0]  # the second video has none
    assert torch.equal(seen.streams["audio"][0], seen.streams["rgb"][0][:, :2] + 1)
    assert torch.equal(seen.streams["mean"], batch.streams["mean"])


def test_a_view_depends_on_the_video_and_the_draw_alone():
    both, alone = _batch(50, 70), _batch(70)
    seen, by_itself = (view(batch, RandomFrames(frames=9)).streams["rgb"] for batch in (both, alone))
    assert torch.equal(seen[1], by_itself[0])
    other = view(alone, RandomFrames(frames=9), draw=1).streams["rgb"]
    assert not torch.equal(by_itself, other)


def test_a_video_is_scored_by_the_same_frames_wherever_it_lies(tiny, training_data):
    """Alone, in a batch of others, and by an inference that draws once."""
    torch.manual_seed(0)
    model = build(replace(tiny, evaluation_sampling=partial(RandomFrames, frames=4))).eval()
    first = scoring_loader(model, training_data, batch_size=7).batch(0, 1)
    again = scoring_loader(model, training_data, batch_size=14).batch(0, 0)
    assert first.ids == again.ids[7:]
    torch.testing.assert_close(model.probabilities(first), model.probabilities(again)[7:])
    set_inference(model, ["inference=tagreel.inference.RepeatedSampling", "inference.times=1"])
    whole = scoring_loader(model, training_data, batch_size=14).batch(0, 0)
    torch.testing.assert_close(model.probabilities(whole)[7:], _alone(model, first))


def _alone(model, batch):
    set_inference(model, ["inference=none"])
    return model.probabilities(batch)
