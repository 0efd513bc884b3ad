"""Several models as one: the weighted mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tagreel.batch import Batch
from tagreel.errors import RecipeError
from tagreel.inference import keep_top
from tagreel.model import Model
from tagreel.parts import Part
from tagreel.provenance import Provenance, difference, merged
from tagreel.sampling import AllFrames, view


class EnsembleTagger(Model):
    """p = Σ_m w_m p_m over `members` by name, their `weights` divided by their sum (None: all count alike).

    With `top_k` only each member's `top_k` highest probabilities of a video count, its others as 0 (Willow:
    50, Tsinghua: 20). A member of weight 0 is not kept. A video may lack what every member that reads it can
    do without. Raises `RecipeError` when members differ in classes, their names, or the width of a feature.
    """

    def __init__(
        self,
        members: Mapping[str, Model],
        weights: Sequence[float] | None = None,
        *,
        top_k: int | None = None,
    ) -> None:
        super().__init__()
        given = [1.0] * len(members) if weights is None else list(weights)
        if len(given) != len(members):
            raise RecipeError(f"weights: {len(given):,} for {len(members):,} members; expected one each")
        for name, weight in zip(members, given, strict=True):
            if not 0 <= weight < math.inf:
                raise RecipeError(f"the weight of {name} is {weight}; expected 0 or more")
        if not sum(given):
            raise RecipeError("an ensemble needs a member of weight more than 0")
        if top_k is not None and top_k < 1:
            raise RecipeError(f"top_k is {top_k}; expected at least 1")
        _check_agreement(members)
        kept = {name: weight / sum(given) for name, weight in zip(members, given, strict=True) if weight}
        self.member_names = list(kept)
        self.members = nn.ModuleList(members[name] for name in kept)
        self.weights = torch.tensor(list(kept.values()), dtype=torch.float64)
        self.top_k = top_k
        self.features = {name: width for model in self._models for name, width in model.features.items()}
        self.optional = tuple(
            name
            for name in self.features
            if all(name in model.optional for model in self._models if name in model.features)
        )
        named = next((model.label_names for model in self._models if model.has_label_names), None)
        self.name_classes(self._models[0].classes, named)
        self.batch_size = min(model.batch_size for model in self._models)
        self.provenance = merged(model.provenance for model in self._models)

    @property
    def name(self) -> str:  # type: ignore[override]
        """How many there are."""
        return f"ensemble of {len(self.members):,}"

    @property
    def reads(self) -> Part:
        """What all members read who look at a video; every frame where they differ."""
        parts = [model.reads for model in self._models if model.features]
        if all(_same(part, parts[0]) for part in parts[1:]):
            return parts[0] if parts else self._models[0].reads
        return partial(AllFrames, max_frames=None)

    def settings(self) -> Any:
        """The members' settings and weights."""
        columns = (self.member_names, self.weights.tolist(), self._models)
        members = [
            {"name": name, "weight": weight, "settings": model.settings()}
            for name, weight, model in zip(*columns, strict=True)
        ]
        return {"members": members, "top_k": self.top_k}

    def probabilities(self, batch: Batch) -> Tensor:
        """Probabilities (B, C), the weighted mean of the members'."""
        total = torch.zeros(())
        for weight, scores in zip(self.weights.tolist(), self.each(batch), strict=True):
            total = total.to(scores.device).add(scores, alpha=weight)
        return total

    def each(self, batch: Batch) -> Iterator[Tensor]:
        """The probabilities (B, C) of one member after the other, as they enter the mean.

        A video is shown once to all members that read it alike.
        """
        whole = self.reads
        seen: list[tuple[Part, Batch]] = [(whole, batch)]
        for model in self._models:
            wanted = model.reads if model.features else whole
            shown = next((videos for part, videos in seen if _same(part, wanted)), None)
            if shown is None:
                shown = view(batch, wanted())
                seen.append((wanted, shown))
            streams = {name: shown.streams[name] for name in model.features}
            counts = {name: shown.num_frames[name] for name in model.features}
            scores = model.probabilities(replace(shown, streams=streams, num_frames=counts, sizes=None))
            yield scores if self.top_k is None else keep_top(scores, self.top_k)

    @property
    def _models(self) -> list[Model]:
        return list(self.members)  # type: ignore[arg-type]


def _check_agreement(members: Mapping[str, Model]) -> None:
    """Raise `RecipeError` for the first member whose classes or features are not those of the others."""
    widths: dict[str, tuple[str, int]] = {}
    first = named = ""
    known: Provenance | None = None
    for name, model in members.items():
        first = first or name
        if model.classes != members[first].classes:
            raise RecipeError(
                f"{name} has {model.classes:,} classes, {first} has {members[first].classes:,}; the members "
                "of an ensemble need the same"
            )
        if model.has_label_names:
            named = named or name
            pairs = zip(model.label_names, members[named].label_names, strict=True)
            for label, (ours, theirs) in enumerate(pairs):
                if ours != theirs:
                    raise RecipeError(f"class {label:,} is {ours!r} in {name} and {theirs!r} in {named}")
        for feature, width in model.features.items():
            other, found = widths.setdefault(feature, (name, width))
            if found != width:
                raise RecipeError(
                    f"{name} reads {width:,} wide {feature!r}, {other} {found:,}; they cannot share videos"
                )
        if told := difference(known, model.provenance):
            raise RecipeError(f"{name} reads other features than the members before it, whose {told}")
        known = merged([known, model.provenance])


def _same(a: Part, b: Part) -> bool:
    return a.func is b.func and a.keywords == b.keywords
