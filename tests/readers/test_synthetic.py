from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tagreel.batch import Example
from tagreel.metrics.gap import GlobalAveragePrecision
from tagreel.readers.synthetic import Planted

VIDEOS = 600


@pytest.fixture(scope="module")
def planted():
    return Planted()


@pytest.fixture(scope="module")
def videos(planted):
    return list(planted.examples(0, VIDEOS))


@pytest.fixture(scope="module")
def labels(planted, videos):
    dense = np.zeros((VIDEOS, planted.classes))
    for row, video in zip(dense, videos, strict=True):
        row[video.labels] = 1
    return dense


@pytest.fixture(scope="module")
def posterior(planted, videos):
    return np.stack([planted.posterior(video) for video in videos])


def _log_loss(scores, labels):
    """Of every video; a proper score, which only the true probabilities minimise on average."""
    p = np.clip(scores, 1e-12, 1 - 1e-12)
    return -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(1)


def _gap(scores, labels):
    metric = GlobalAveragePrecision()
    metric.update(torch.tensor(scores), torch.tensor(labels))
    return metric.compute()


def test_a_video_is_bytes_of_both_streams_with_as_many_frames(planted, videos):
    lengths = set()
    for video in videos:
        assert {name: x.shape[1] for name, x in video.streams.items()} == {"rgb": 64, "audio": 32}
        assert {x.dtype for x in video.streams.values()} == {np.dtype(np.uint8)}
        assert len(video.streams["rgb"]) == len(video.streams["audio"])
        lengths.add(len(video.streams["rgb"]))
        assert video.labels.dtype == np.int64
        assert (np.diff(video.labels) > 0).all()
        assert set(video.labels) <= set(range(planted.classes))
        assert video.rated is None
    assert (min(lengths), max(lengths)) == (12, 60)
    assert len({video.id for video in videos}) == VIDEOS


def test_there_is_a_distinct_name_for_each_class(planted):
    assert planted.classes == len(set(planted.label_names)) == 120


def test_a_video_depends_on_its_number_and_the_seed_alone(planted, videos):
    for again in (planted.example(17), Planted(seed=0).example(17), next(planted.examples(17, 1))):
        assert np.array_equal(again.labels, videos[17].labels)
        for name, frames in again.streams.items():
            assert np.array_equal(frames, videos[17].streams[name])
    other = Planted(seed=1).example(17)
    assert (
        other.streams["rgb"].shape != videos[17].streams["rgb"].shape
        or (other.streams["rgb"] != videos[17].streams["rgb"]).any()
    )
    assert not np.array_equal(videos[18].streams["rgb"][:12], videos[17].streams["rgb"][:12])


@pytest.mark.parametrize(("rgb", "audio"), [(12, 6), (3, 8)])
def test_any_widths_can_be_asked_for(rgb, audio):
    planted = Planted(rgb=rgb, audio=audio)
    video = planted.example(0)
    assert {name: x.shape[1] for name, x in video.streams.items()} == {"rgb": rgb, "audio": audio}
    scores = planted.posterior(video)
    assert ((scores > 0) & (scores < 1)).all()


def _cut(video, *, rgb=None, audio=None):
    """The first frames of a video: less to go by, and as much a draw of the generator."""
    streams = {"rgb": video.streams["rgb"][:rgb], "audio": video.streams["audio"][:audio]}
    return Example(id=video.id, labels=video.labels, streams=streams)


def test_the_posterior_is_bayes_rule():
    planted = Planted(rgb=3, audio=2)
    video = _cut(planted.example(5), rgb=3, audio=3)

    def weigh(words, frames, prior):
        joint = []
        for topic in range(len(prior)):
            p = prior[topic]
            for frame in frames:
                x = [q * 4 / 255 - 2 for q in frame.tolist()]
                p *= sum(
                    words.weights[topic, w]
                    * math.exp(
                        -sum((a - b) ** 2 for a, b in zip(x, mean, strict=True)) / (2 * words.noise**2)
                    )
                    for w, mean in enumerate(words.means)
                )
            joint.append(p)
        return [p / sum(joint) for p in joint]

    scenes = weigh(planted.scene_words, video.streams["rgb"], planted.scene_prior)
    sounds = weigh(planted.sound_words, video.streams["audio"], planted.sound_prior)
    expected = sum(
        p * q * planted.label_probability[scene, sound]
        for scene, p in enumerate(scenes)
        for sound, q in enumerate(sounds)
    )
    assert max(scenes) < 0.9  # three frames leave the answer open
    np.testing.assert_allclose(planted.posterior(video), expected, rtol=1e-9)


@pytest.mark.parametrize("frames", [1, 3, 8, None])
def test_the_posterior_is_calibrated_however_much_it_sees(planted, videos, labels, frames):
    posterior = np.stack([planted.posterior(_cut(video, rgb=frames, audio=frames)) for video in videos])
    checked = 0
    # Σ (y - p) / sqrt(Σ p(1 - p)) over videos is standard normal for every class if p is the probability.
    for part in (posterior < 0.1, (posterior >= 0.1) & (posterior < 0.6), posterior >= 0.6):
        surprise = (part * (labels - posterior)).sum(0)
        variance = (part * posterior * (1 - posterior)).sum(0)
        z = (surprise / np.sqrt(np.maximum(variance, 1e-12)))[variance > 1]
        if not len(z):
            continue
        checked += len(z)
        assert 0.6 < np.sqrt((z**2).mean()) < 1.4
        assert np.abs(z).max() < 4.5
    assert checked > 60


def _logit(p):
    return np.log(p / (1 - p))


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda p: _sigmoid(1.3 * _logit(p)), id="surer"),
        pytest.param(lambda p: _sigmoid(_logit(p) / 1.3), id="less sure"),
        pytest.param(lambda p: _sigmoid(_logit(p) + 0.4), id="higher"),
        pytest.param(lambda p: _sigmoid(_logit(p) - 0.4), id="lower"),
        pytest.param(lambda p: 0.95 * p + 0.05 * p.mean(0), id="mixed with the prior"),
        pytest.param(lambda p: np.tile(p.mean(0), (len(p), 1)), id="the prior"),
        pytest.param(
            lambda p: _sigmoid(_logit(p) + 0.5 * np.random.default_rng(0).normal(size=p.shape)), id="noisy"
        ),
    ],
)
def test_no_change_of_the_posterior_scores_better(labels, posterior, other):
    loss = _log_loss(other(posterior), labels) - _log_loss(posterior, labels)
    assert loss.mean() > 3 * loss.std() / np.sqrt(VIDEOS)


def test_whoever_sees_less_scores_worse(planted, videos, labels, posterior):
    best = _log_loss(posterior, labels)

    for rgb, audio in ((4, None), (None, 4), (None, 0)):
        scores = np.stack([planted.posterior(_cut(video, rgb=rgb, audio=audio)) for video in videos])
        loss = _log_loss(scores, labels) - best
        assert loss.mean() > 3 * loss.std() / np.sqrt(VIDEOS)
        assert _gap(scores, labels) < _gap(posterior, labels)


def test_the_order_of_the_frames_says_nothing(planted, videos, posterior):
    for video, expected in zip(videos[:20], posterior, strict=False):
        backwards = {name: frames[::-1] for name, frames in video.streams.items()}
        turned = Example(id=video.id, labels=video.labels, streams=backwards)
        np.testing.assert_allclose(planted.posterior(turned), expected, rtol=1e-9)


def test_the_mean_of_the_frames_does_not_show_what_the_frames_show(planted, videos, labels, posterior):
    """The best linear scores of the mean, fitted on other videos, stay far below the posterior."""

    def means(examples):
        rows = [np.concatenate([x.mean(0) for x in example.streams.values()]) for example in examples]
        rows = np.stack(rows) * (4 / 255) - 2
        return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)

    training = list(planted.examples(10_000, 1500))
    targets = np.zeros((1500, planted.classes))
    for row, example in zip(targets, training, strict=True):
        row[example.labels] = 1
    x = means(training)
    weights = np.linalg.solve(x.T @ x + 0.1 * np.eye(x.shape[1]), x.T @ targets)
    assert _gap(means(videos) @ weights, labels) < _gap(posterior, labels) / 2
