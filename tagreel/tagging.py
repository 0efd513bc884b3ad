"""A video's features in, its tags out: named, with a probability, and when in the video.

The tags are those that a service shows of the model (`tagreel.tags`), from their thresholds on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tagreel.errors import DataError
from tagreel.evidence import gather, intervals
from tagreel.extractor import Frames
from tagreel.model import Model, top_classes
from tagreel.tags import TagSet
from tagreel.timeline import Lane, Timeline


def tag(
    model: Model,
    tags: TagSet,
    frames: Frames,
    *,
    title: str,
    source: str | None = None,
    threshold: float | None = None,
    top_k: int = 20,
) -> Timeline:
    """The tags of a video, given as one (T, D) array a feature, as `shown` chooses them, and their places.

    Of a merged tag the evidence is that of its most probable class. `title` and `source` are what a page says
    of the file. Raises `DataError` where there is nothing that the model reads.
    """
    read = {name: frames[name] for name in model.features if len(frames.get(name, ()))}
    if not read:
        raise DataError(f"has no {' nor '.join(model.features)}, which the model reads", path=title)
    by_class = model.score(read).cpu()
    scores = tags.apply(by_class[None])[0]
    chosen = shown(tags, scores, threshold=threshold, top_k=top_k)
    classes = [max(tags.tags[place].classes, key=by_class.tolist().__getitem__) for place in chosen]
    lanes: list[Lane] = []
    if chosen:
        curves = gather(model, read, classes).curves()
        for place, curve in zip(chosen, curves.T, strict=True):
            lanes.append(Lane(tags.names[place], float(scores[place]), curve.tolist(), intervals(curve)))
    return Timeline(title, source, max(map(len, read.values())), lanes)


def shown(tags: TagSet, scores: Tensor, *, threshold: float | None = None, top_k: int = 20) -> list[int]:
    """The places of the tags that are shown of a video with probabilities (S,), the most probable first.

    Those from their own thresholds on, or from `threshold` on; at most `top_k`.
    """
    least = tags.thresholds if threshold is None else torch.full_like(scores, threshold)
    _, places = top_classes(scores[None], top_k)
    return [place for place in places[0].tolist() if scores[place] >= least[place]]
