"""A planted problem whose best possible score is known: for tests, and for the first 30 seconds.

Every video has one of 24 scenes, seen in its `rgb` frames, and one of 12 sounds, heard in its `audio` frames,
both drawn from a long-tailed prior. A frame shows one of its scene's words, or one of the words that all
scenes share, in any order. Words come in pairs of opposite sign, and a scene uses both of a pair, so that the
mean over the frames says little: which words occur together carries the labels. A label applies with a
probability that depends on the scene, the sound, or both. The posterior of every label given the frames
therefore has a closed form, and no tagger can on average score better than it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tagreel.batch import Example

Floats = NDArray[np.float64]

SCENES = [
    "beach",
    "kitchen",
    "stadium",
    "forest",
    "street",
    "stage",
    "classroom",
    "garage",
    "harbour",
    "studio",
    "mountain",
    "market",
    "airport",
    "workshop",
    "river",
    "farm",
    "castle",
    "desert",
    "office",
    "playground",
    "library",
    "garden",
    "snow",
    "cave",
]
SOUNDS = [
    "speech",
    "guitar",
    "engine",
    "crowd",
    "piano",
    "birds",
    "drums",
    "rain",
    "violin",
    "bell",
    "laughter",
    "silence",
]


@dataclass(frozen=True)
class _Words:
    """The mixture of words that each topic shows in one stream."""

    means: Floats  # (W, D)
    weights: Floats  # (S, W), rows sum to one
    noise: float

    def posterior(self, frames: NDArray[np.uint8], prior: Floats) -> Floats:
        """P(topic | frames), (S,)."""
        x = frames.astype(np.float64) * (4 / 255) - 2.0  # the true inverse of the quantiser
        distances = ((x[:, None, :] - self.means) ** 2).sum(-1)  # (T, W)
        likelihood = np.exp(-(distances - distances.min(1, keepdims=True)) / (2 * self.noise**2))
        log_posterior = np.log(prior) + np.log(likelihood @ self.weights.T).sum(0)
        posterior = np.exp(log_posterior - log_posterior.max())
        return np.asarray(posterior / posterior.sum())


class Planted:
    """The generator: `example(i)` is always the same video; `posterior` its best possible scores."""

    def __init__(self, *, seed: int = 0, rgb: int = 64, audio: int = 32) -> None:
        rng = np.random.default_rng((seed, 0))
        self.seed = seed
        self.scene_prior = _long_tail(len(SCENES))
        self.sound_prior = _long_tail(len(SOUNDS))
        self.scene_words = _words(rng, topics=len(SCENES), dim=rgb)
        self.sound_words = _words(rng, topics=len(SOUNDS), dim=audio)
        self.label_names, self.label_probability = _labels(rng)  # (C,), (scenes, sounds, C)

    @property
    def classes(self) -> int:
        """The number of labels, C."""
        return len(self.label_names)

    def example(self, index: int) -> Example:
        """Video number `index`: 12 to 60 frames of both streams, and its labels."""
        rng = np.random.default_rng((self.seed, 1, index))
        scene = rng.choice(len(SCENES), p=self.scene_prior)
        sound = rng.choice(len(SOUNDS), p=self.sound_prior)
        frames = int(rng.integers(12, 61))
        applies = rng.random(self.classes) < self.label_probability[scene, sound]
        return Example(
            id=f"planted-{index:06d}",
            labels=np.flatnonzero(applies),
            streams={
                "rgb": _show(rng, self.scene_words, scene, frames),
                "audio": _show(rng, self.sound_words, sound, frames),
            },
        )

    def examples(self, first: int, count: int) -> Iterator[Example]:
        """Videos `first` ... `first + count - 1`."""
        return (self.example(index) for index in range(first, first + count))

    def posterior(self, example: Example) -> Floats:
        """P(label | frames) of every label, (C,): nobody who knows the frames alone can do better."""
        scene = self.scene_words.posterior(example.streams["rgb"], self.scene_prior)
        sound = self.sound_words.posterior(example.streams["audio"], self.sound_prior)
        return np.asarray(np.einsum("s,a,sac->c", scene, sound, self.label_probability))


def _long_tail(count: int) -> Floats:
    weights = 1.0 / (np.arange(count) + 2.0)
    return np.asarray(weights / weights.sum())


def _words(
    rng: np.random.Generator, *, topics: int, dim: int, pairs: int = 16, noise: float = 0.35
) -> _Words:
    """Each topic shows three of the pairs in 70 % of its frames; the others are the same for all topics."""
    directions = rng.normal(size=(pairs, dim))
    directions *= 1.6 / np.linalg.norm(directions, axis=1, keepdims=True)
    means = np.concatenate([directions, -directions])
    weights = np.full((topics, 2 * pairs), 0.3 / (2 * pairs))
    for topic in range(topics):
        for pair in rng.choice(pairs, size=3, replace=False):
            tilt = rng.uniform(0.25, 0.75)
            weights[topic, pair] += 0.7 / 3 * tilt
            weights[topic, pairs + pair] += 0.7 / 3 * (1 - tilt)
    return _Words(means=means, weights=weights, noise=noise)


def _show(rng: np.random.Generator, words: _Words, topic: int, frames: int) -> NDArray[np.uint8]:
    shown = rng.choice(len(words.means), size=frames, p=words.weights[topic])
    x = words.means[shown] + rng.normal(scale=words.noise, size=(frames, words.means.shape[1]))
    quantized: NDArray[np.uint8] = np.round((np.clip(x, -2, 2) + 2) * (255 / 4)).astype(np.uint8)
    return quantized


def _labels(rng: np.random.Generator) -> tuple[list[str], Floats]:
    """Three labels a scene, two a sound, and one for each scene together with one sound."""
    names: list[str] = []
    columns: list[Floats] = []
    scenes, sounds = len(SCENES), len(SOUNDS)
    for scene, name in enumerate(SCENES):
        for suffix, low, high in (("", 0.9, 0.98), (" at night", 0.3, 0.6), (" with people", 0.4, 0.8)):
            column = np.full((scenes, sounds), 0.002)
            column[scene] = rng.uniform(low, high)
            names.append(name + suffix)
            columns.append(column)
    for sound, name in enumerate(SOUNDS):
        for suffix, low, high in (("", 0.85, 0.95), (" close up", 0.2, 0.6)):
            column = np.full((scenes, sounds), 0.002)
            column[:, sound] = rng.uniform(low, high)
            names.append(name + suffix)
            columns.append(column)
    for scene, name in enumerate(SCENES):
        column = np.full((scenes, sounds), 0.001)
        sound = int(rng.integers(min(6, sounds)))
        column[scene, sound] = rng.uniform(0.7, 0.95)
        names.append(f"{name}, {SOUNDS[sound]}")
        columns.append(column)
    return names, np.stack(columns, axis=-1)
