"""What every model is: features in, probabilities of classes out; and what is asked of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tagreel.batch import Batch
from tagreel.errors import DataError, RecipeError
from tagreel.parts import Part
from tagreel.provenance import Provenance


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag of a video: the class, its name, and the probability that it applies."""

    id: int
    name: str
    probability: float


class Model(nn.Module, ABC):
    """Whatever gives probabilities to videos: a tagger, several of them, a file of their predictions.

    `features` are the streams that it looks at and their widths, of which a video may lack the `optional`
    ones; `label_names` name its `classes`; `reads` makes the sampler by which a loader is to read videos for
    it; `batch_size` is how many it is used to at once; `provenance` is what made the features
    that it was trained on, if that is known. `settings` says, in JSON, what it is beside weights.
    """

    name: str
    features: dict[str, int]
    optional: tuple[str, ...]
    classes: int
    label_names: list[str]
    has_label_names: bool
    batch_size: int
    provenance: Provenance | None = None

    def name_classes(self, classes: int, label_names: Sequence[str] | None) -> None:
        """Set the classes and their names; raises `RecipeError` when their numbers differ."""
        self.classes = classes
        self.label_names = list(label_names) if label_names is not None else _numbered(classes)
        self.has_label_names = label_names is not None and list(label_names) != _numbered(classes)
        if len(self.label_names) != classes:
            raise RecipeError(
                f"there are {len(self.label_names):,} label names and {classes:,} classes; give the names of "
                "this data set with --labels FILE, or their number with --set classes=N"
            )

    @property
    @abstractmethod
    def reads(self) -> Part:
        """What makes the sampler by which a loader is to read videos for it."""

    @abstractmethod
    def settings(self) -> Any:
        """What it is beside its weights, in JSON."""

    @abstractmethod
    def probabilities(self, batch: Batch) -> Tensor:
        """Probabilities (B, C) of a batch that lies on this model's device and was read as `reads` says."""

    @torch.inference_mode()
    def scores(self, frames_by_stream: Mapping[str, Any], num_frames: Any = None) -> Tensor:
        """Probabilities (B, C) of videos given as arrays or tensors, one (B, T, D) a feature.

        uint8 frames are read as YouTube-8M bytes, floats as they are. `num_frames` (B,) says how many
        frames of each video are real, all if None. Raises `DataError` for a feature that is missing or
        misshapen.
        """
        device = next(self.parameters(), torch.empty(0)).device
        size = max(map(len, frames_by_stream.values()), default=0)
        streams, lengths = {}, {}
        for name, width in self.features.items():
            if name not in frames_by_stream:
                if name not in self.optional:
                    raise DataError(f"no {name!r}; got: {', '.join(frames_by_stream)}", path="predict")
                streams[name] = torch.zeros(size, 1, width, device=device)
                lengths[name] = torch.zeros(size, dtype=torch.int64, device=device)
                continue
            frames = _on_device(frames_by_stream[name], device)
            if frames.ndim != 3 or len(frames) != size or frames.shape[1] < 1 or frames.shape[2] != width:
                found = " × ".join(map(str, frames.shape))
                raise DataError(
                    f"{name!r} is {found}; expected videos × frames × {width:,}, of {size:,} videos and at "
                    "least one frame",
                    path="predict",
                )
            if frames.dtype != torch.uint8 and not frames.is_floating_point():
                kind = str(frames.dtype).removeprefix("torch.")
                raise DataError(f"{name!r} is {kind}; expected uint8 bytes or floats", path="predict")
            counts = torch.full((len(frames),), frames.shape[1], device=device)
            if num_frames is not None and frames.shape[1] > 1:
                counts = _on_device(num_frames, device)
                if counts.shape != (len(frames),) or not ((counts >= 1) & (counts <= frames.shape[1])).all():
                    raise DataError(
                        f"num_frames is {counts.tolist()}; expected {len(frames):,} numbers from 1 to "
                        f"{frames.shape[1]:,}",
                        path="predict",
                    )
            streams[name], lengths[name] = frames, counts
            if frames.is_floating_point() and not frames.isfinite().all():
                raise DataError(f"{name!r} holds numbers that are not finite", path="predict")
        none = torch.zeros(0, dtype=torch.int64, device=device)
        batch = Batch(
            ids=[""] * size,
            streams=streams,
            num_frames=lengths,
            label_ids=none,
            label_counts=none.new_zeros(size),
        )
        training = self.training
        self.eval()
        try:
            return self.probabilities(batch)
        finally:
            self.train(training)

    def predict(self, frames_by_stream: Mapping[str, Any], *, top_k: int = 20) -> list[Tag]:
        """The `top_k` most probable tags of one video, given as one (T, D) array a feature; best first.

        Of its frames the model sees those that it `reads`, as when files are scored.
        """
        best, classes = top_classes(self.score(frames_by_stream)[None], top_k)
        return [
            Tag(id=label, name=self.label_names[label], probability=probability)
            for probability, label in zip(best[0].tolist(), classes[0].tolist(), strict=True)
        ]

    def score(self, frames_by_stream: Mapping[str, Any]) -> Tensor:
        """Probabilities (C,) of one video, given as `predict` takes it."""
        videos = {name: _on_device(frames, None) for name, frames in frames_by_stream.items()}
        for name, frames in videos.items():
            if frames.ndim != 2:
                found = " × ".join(map(str, frames.shape))
                raise DataError(
                    f"{name!r} is {found}; expected frames × width; `scores` takes many videos",
                    path="predict",
                )
        longest = max(map(len, videos.values()), default=0)
        choice = self.reads()(longest, (0,))
        seen = {name: frames[choice] if len(frames) == longest else frames for name, frames in videos.items()}
        return self.scores({name: frames[None] for name, frames in seen.items()})[0]


def top_classes(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The `top_k` highest scores (B, k) of each video and their classes (B, k); the lower class among equals.

    `torch.topk` returns any of equal classes, so the few videos that have some are sorted whole.
    """
    k = min(top_k, scores.shape[1])
    best, classes = torch.topk(scores, min(k + 1, scores.shape[1]))
    tied = (best[:, 1:] == best[:, :-1]).any(1)
    if tied.any():
        ordered = scores[tied].sort(dim=1, descending=True, stable=True)
        best[tied], classes[tied] = ordered.values[:, : best.shape[1]], ordered.indices[:, : best.shape[1]]
    return best[:, :k], classes[:, :k]


def _numbered(classes: int) -> list[str]:
    """Names for classes that nobody named."""
    return [f"class {c}" for c in range(classes)]


def _on_device(values: Any, device: torch.device | None) -> Tensor:
    """A tensor of what a caller has: a tensor anywhere, an array (read-only or a view as well), a list."""
    if not isinstance(values, Tensor):
        values = torch.from_numpy(np.require(values, requirements=["C", "W"]))
    return values.to(device)  # type: ignore[no-any-return]
