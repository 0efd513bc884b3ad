"""Tags of a live or hours-long input in constant memory: of all that came so far, or of its last seconds.

Where the pools of a model are additive (`layers/sums.py`), the sums over the frames are all that has to be
kept of them. Every frame counts, also where the recipe's `evaluation_sampling` would pick some. Frames are
read in float32 and summed in float64, also where the recipe asks for bfloat16: what one second changes among
hours is less than that rounds away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.batch import frame_mask
from tagreel.ensemble import EnsembleTagger
from tagreel.errors import DataError, RecipeError
from tagreel.inference import keep_top
from tagreel.layers.sums import Sums
from tagreel.model import Model
from tagreel.tagger import Network, Tagger

_AT_ONCE = 256  # seconds; memory beside the sums grows with it

State = tuple[Sums, ...]
"""What a model keeps of frames: the sums of each of its pools."""


class Stream:
    """Takes the seconds of one input as they come, and says at any time how probable the tags are.

    `scores` are those of all seconds so far; with a `window` those of the last `window` seconds, which moves
    in steps of `step`: until a step is complete, its seconds stand beside the window before it. Memory is
    constant: the sums of a model, with a window about window / step of them. Raises `RecipeError`, which
    names the part, for a model that is not additive.
    """

    def __init__(self, model: Model, *, window: int | None = None, step: int = 5) -> None:
        if step < 1 or (window is not None and (window < step or window % step)):
            raise RecipeError(
                f"window={window}, step={step}; expected a step of 1 second or more and a window of one or "
                "more steps"
            )
        self._sums = Additive(model)
        self._model, self._step = model, _AT_ONCE if window is None else step
        self._window = None if window is None else Window(window // step)
        self._state: State | None = None  # of all seconds, or of the step that is not complete
        self._filled = 0  # seconds of that step
        self._seen: set[str] = set()
        self._device = next(model.parameters()).device
        self.seconds = 0

    @torch.inference_mode()
    def feed(self, frames_by_stream: Mapping[str, Any]) -> None:
        """Take the next stretch of time: for each feature its frames (n, D), one a second, bytes or floats.

        All features begin at the same second. One that has fewer frames than the others, or is not given,
        has none at the end of this stretch; the next stretch begins after the longest. Raises `DataError`
        for frames that are misshapen.
        """
        frames = {
            name: checked(name, frames_by_stream[name], width, self._device, "feed")
            for name, width in self._model.features.items()
            if name in frames_by_stream
        }
        self._seen |= {name for name, rows in frames.items() if len(rows)}
        length = max(map(len, frames.values()), default=0)
        first = 0
        while first < length:
            last = min(first + self._step - self._filled, length)
            self._take({name: rows[first:last] for name, rows in frames.items()}, last - first)
            first = last

    @torch.inference_mode()
    def scores(self) -> Tensor:
        """Probabilities (C,); raises `DataError` before there is a frame of every feature that is needed."""
        for name in self._model.features:
            if name not in self._seen and (name not in self._model.optional or not self._seen):
                raise DataError(f"no {name!r} yet; got: {', '.join(sorted(self._seen))}", path="feed")
        past = None if self._window is None else self._window.total()
        state = joined(*(part for part in (past, self._state) if part is not None))
        with evaluating(self._model):
            return self._sums.probabilities(state)[0]

    def _take(self, frames: Mapping[str, Tensor], length: int) -> None:
        """Add frames that all lie within one step."""
        streams, masks = {}, {}
        for name, width in self._model.features.items():
            rows = frames.get(name, torch.zeros(0, width, device=self._device))
            streams[name] = F.pad(rows, (0, 0, 0, length - len(rows)))[None]
            masks[name] = frame_mask(torch.tensor([len(rows)], device=self._device), length)
        with evaluating(self._model):
            state = self._sums.accumulate(streams, masks)
        self._state = state if self._state is None else joined(self._state, state)
        self.seconds += length
        self._filled = (self._filled + length) % self._step
        if self._window is not None and self._filled == 0:
            self._window.push(self._state)
            self._state = None


class Window:
    """What the last `size` states are together, without ever subtracting one.

    Two stacks: the older states as sums from each to the end of the older ones, the newer as they are, with
    their sum. When no older one is left the newer become older. So a state is added three times at most,
    nothing drifts, and maxima can be kept as well, which no subtraction undoes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._older: list[State] = []  # the last one is the sum of all
        self._newer: list[State] = []
        self._newest: State | None = None  # the sum of the newer ones

    def push(self, state: State) -> None:
        """Let a state in, and out the one that came `size` before it."""
        self._newer.append(state)
        self._newest = state if self._newest is None else joined(self._newest, state)
        if len(self._older) + len(self._newer) <= self.size:
            return
        if not self._older:
            while self._newer:
                newer = self._newer.pop()
                self._older.append(joined(newer, self._older[-1]) if self._older else newer)
            self._newest = None
        self._older.pop()

    def total(self) -> State | None:
        """The sum of the states in the window; None when there are none."""
        parts = [*self._older[-1:], *([] if self._newest is None else [self._newest])]
        return joined(*parts) if parts else None


class Additive:
    """A model whose probabilities follow from sums over frames: a tagger, or an ensemble of taggers.

    To be used while the model is `evaluating`. Raises `RecipeError`, which names the part, for another model.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._taggers = list(_taggers(model))
        with torch.inference_mode(), evaluating(model):
            for tagger in self._taggers:
                _check(tagger)

    def accumulate(self, streams: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> State:
        """The sums over frames (B, T, D) and masks (B, T) of every feature, all of the same T."""
        state: list[Sums] = []
        for tagger in self._taggers:
            frames = tagger.frames(streams, masks)
            if tagger.mixture is not None:
                state.append(tagger.mixture.accumulate(frames, masks))
            for network in tagger.networks:
                pairs = [(branch.pool, branch.read(frames, masks)) for branch in _branches(network).values()]
                state += [pool.accumulate(*read) for pool, read in pairs]
        return tuple(sums.double() for sums in state)

    def logits(self, state: State) -> Tensor:
        """Logits (B, C) of what `accumulate` gave; of an ensemble those of its members' mean probability."""
        return _logits(self._model, iter(state))

    def probabilities(self, state: State) -> Tensor:
        """Probabilities (B, C) of what `accumulate` gave."""
        return torch.sigmoid(self.logits(state)).float()


def joined(*states: State) -> State:
    """The state of several stretches of the same videos together."""
    return tuple(reduce(add, parts) for parts in zip(*states, strict=True))


def checked(name: str, frames: Any, width: int, device: torch.device, where: str) -> Tensor:
    """Frames (n, D) on the device; raises `DataError` when that is not what they are."""
    if not isinstance(frames, Tensor):
        frames = torch.from_numpy(np.require(frames, requirements=["C", "W"]))
    if frames.ndim != 2 or frames.shape[1] != width:
        found = " × ".join(map(str, frames.shape))
        raise DataError(f"{name!r} is {found}; expected frames × {width:,}", path=where)
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        kind = str(frames.dtype).removeprefix("torch.")
        raise DataError(f"{name!r} is {kind}; expected uint8 bytes or floats", path=where)
    if frames.is_floating_point() and not frames.isfinite().all():
        raise DataError(f"{name!r} holds numbers that are not finite", path=where)
    return cast(Tensor, frames.to(device))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """With the model in evaluation, as which it may not have been."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _taggers(model: Model) -> Iterator[Tagger]:
    """The taggers of which a model consists, in the order in which their sums stand in a state."""
    if isinstance(model, Tagger):
        yield model
    elif isinstance(model, EnsembleTagger):
        for member in model.members:
            yield from _taggers(cast(Model, member))
    else:
        raise RecipeError(
            f"{model.name} cannot read a stream: it holds predictions; expected a trained model"
        )


def _branches(network: Network) -> dict[str, Any]:
    """The streams of a network by name: their features, transforms and pools."""
    return dict(network.streams.items())


def _check(tagger: Tagger) -> None:
    """Raise `RecipeError` for the first part that does not look at each frame by itself, or keeps no sums."""
    recipe = tagger.recipe
    if recipe.inference is not None:
        raise RecipeError(
            f"inference: {recipe.inference.func.__name__} looks at several views of a whole video, which a "
            "stream is not; it can be read with --set inference=None"
        )
    if tagger.mixture is not None and tagger.mixture.gate_reads != "frames":
        raise RecipeError(
            f"mixture: gate={tagger.mixture.gate_reads!r} counts rows of a whole video, which a stream is "
            "not; only gate='frames' can be streamed"
        )
    for network in tagger.networks:
        for name, branch in _branches(network).items():
            if not hasattr(branch.pool, "accumulate"):
                raise RecipeError(
                    f"streams.{name}.pool: {type(branch.pool).__name__} needs all frames of a video at once; "
                    "what can be streamed are pools of sums over frames, as NeXtVLAD or Mean"
                )
            _check_transforms(name, branch, sum(tagger.features[feature] for feature in branch.inputs))


def _check_transforms(name: str, branch: Any, width: int) -> None:
    """See for some frames whether they come out the same one by one as together."""
    like = next(branch.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(1, 6, width, generator=generator).to(like)
    mask = torch.ones(1, 6, dtype=torch.bool, device=frames.device)
    for index, transform in enumerate(branch.transforms):
        together = transform(frames, mask)
        alone = torch.cat([transform(frames[:, t : t + 1], mask[:, :1]) for t in range(6)], dim=1)
        if not torch.allclose(together, alone, rtol=1e-3, atol=1e-3 * together.abs().max().item()):
            raise RecipeError(
                f"streams.{name}.transforms.{index}: {type(transform).__name__} looks at several frames at "
                "once; what can be streamed are transforms of each frame by itself"
            )
        frames = together


def _logits(model: Model, parts: Iterator[Sums]) -> Tensor:
    if isinstance(model, Tagger):
        return _of_tagger(model, parts)
    assert isinstance(model, EnsembleTagger)
    mean = torch.zeros((), dtype=torch.float64)
    for weight, member in zip(model.weights.tolist(), model.members, strict=True):
        # In float64, or what is nearly certain would be certain, and its logit infinite.
        scores = torch.sigmoid(_logits(cast(Model, member), parts).double())
        scores = scores if model.top_k is None else keep_top(scores, model.top_k)
        mean = mean.to(scores.device) + weight * scores
    return torch.logit(mean, eps=1e-15)


def _of_tagger(tagger: Tagger, parts: Iterator[Sums]) -> Tensor:
    """The logits of a tagger, which takes its own sums from those of all."""
    seen = None if tagger.mixture is None else tagger.mixture.finish(next(parts))
    descriptors = [_descriptor(network, parts) for network in tagger.networks]
    if seen is not None:
        descriptors.append(seen)
    return tagger.classify(torch.cat([part.float() for part in descriptors], dim=1))


def _descriptor(network: Network, parts: Iterator[Sums]) -> Tensor:
    pooled = [branch.pool.finish(next(parts)).float() for branch in _branches(network).values()]
    return torch.cat(pooled, dim=1) if network.join is None else network.join(pooled)
