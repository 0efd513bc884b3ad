"""Several models to one ensemble: weights fitted on one labelled split, looked at on another.

    tagreel ensemble fit RUN RUN tags.parquet --data FIT --score DEV --out ENSEMBLE

Every model scores each video once, and all weightings are tried on what they said (`tagreel.panel`). A method
of `tagreel.ensembles` chooses one. On the split that it was chosen on it looks better than it is, the more so
the fewer the videos and the more the models; hence the other split.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagreel import ensembles
from tagreel.chart import Line, line_chart, write_page
from tagreel.checkpoint import check_new, facts, find, load, model_files, save_ensemble
from tagreel.ensemble import EnsembleTagger
from tagreel.ensembles._panel import Method, Panel
from tagreel.errors import DataError, RecipeError, TagreelError
from tagreel.evaluate import scoring_loader
from tagreel.model import Model
from tagreel.panel import By, ModelPanel
from tagreel.parts import Part, override_part
from tagreel.recorded import Recorded
from tagreel.runtime import pick_device
from tagreel.source import Source

SHOWN = {"gap@20": "GAP@20", "map": "mAP"}
_SPLITS = ("fitted on", "scored on")


@dataclass(frozen=True)
class Candidate:
    """A model that was asked: what it is, its `size` in bytes, its weight (0: left out), its own scores."""

    name: str
    model: str
    source: str
    size: int
    weight: float
    scores: tuple[float, ...]


@dataclass(frozen=True)
class FittedEnsemble:
    """What `fit_ensemble` wrote: all candidates, the heaviest first, and the scores of the ensemble.

    Scores are one a split: that which the weights were fitted on, and the other if there is one. `growth`
    holds those of the ensembles of the first 1, 2, ... candidates. `damaged` lists the records that could
    not be read.
    """

    path: Path
    candidates: list[Candidate]
    growth: list[tuple[float, ...]]
    damaged: list[DataError]

    @property
    def scores(self) -> tuple[float, ...]:
        """Those of the whole ensemble."""
        return self.growth[-1]

    @property
    def size(self) -> int:
        """The bytes of the members' files."""
        return sum(each.size for each in self.candidates if each.weight)

    def best(self, split: int) -> Candidate:
        """The candidate that alone is best on a split, 0 or 1."""
        return max(self.candidates, key=lambda each: each.scores[split])


def methods() -> dict[str, type[Method]]:
    """Every method of the package by the name of its file (`leave-one-out`)."""
    found: dict[str, type[Method]] = {}
    for info in pkgutil.iter_modules(ensembles.__path__, f"{ensembles.__name__}."):
        name = info.name.rpartition(".")[2]
        if not name.startswith("_"):
            for value in vars(importlib.import_module(info.name)).values():
                if isinstance(value, type) and value.__module__ == info.name:
                    found[name.replace("_", "-")] = value
    return found


def find_method(name: str, settings: Sequence[str] = ()) -> Part:
    """The method of that name, with options set (`members=7`)."""
    known = methods()
    if name not in known:
        raise RecipeError(f"--method {name}: there is none of that name; there are: {', '.join(known)}")
    part: Part = partial(known[name])
    for setting in settings:
        part = override_part(part, setting, where=f"--method {name}")
    return part


def fit_ensemble(
    members: Sequence[Path],
    data: Source,
    out: Path,
    *,
    method: Part,
    score_on: Source | None = None,
    by: By = "gap@20",
    top_k: int | None = None,
    listed: int | None = None,
    label_names: Sequence[str] | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    threads: int = 1,
    skip_damaged: int = 0,
    trust: tuple[str, ...] = (),
    on_batch: Callable[[int], None] | None = None,
) -> FittedEnsemble:
    """Write to `out` the ensemble that `method` makes of models and prediction files, and a page about it.

    Its weights are fitted on `data` to what `by` says, and scored on `score_on` as well. Of each member only
    the `top_k` best classes of a video count (None: all); `listed` is that of `ModelPanel`. The classes are
    those of the models, or `label_names` where there are prediction files alone. `on_batch` is told how many
    videos of both splits are done. Raises `RecipeError` when `out` exists or the members do not fit each
    other or the method, `DataError` when data are without labels or not those of the members.
    """
    check_new(out)
    splits = [data] if score_on is None else [data, score_on]
    _check_apart(splits)
    sources = _named(members)
    place = pick_device(device)
    models = _load(sources, label_names, place, trust)
    everyone = EnsembleTagger(models, top_k=top_k)
    panels = [
        ModelPanel(
            everyone,
            scoring_loader(
                everyone, split, batch_size=batch_size, threads=threads, skip_damaged=skip_damaged
            ),
            by=by,
            listed=listed,
            device=place,
            on_batch=None if on_batch is None else partial(_further, on_batch, number * len(data)),
        )
        for number, split in enumerate(splits)
    ]
    try:
        weights = method()(panels[0])
    except TagreelError:
        raise
    except ValueError as error:
        raise RecipeError(f"--method {method.func.__name__}: {error}") from error
    order = in_order(panels[0], weights)
    result = FittedEnsemble(
        path=out,
        candidates=_candidates(sources, models, weights, order, panels),
        growth=[
            tuple(panel.score(_only(weights, order[:n])) for panel in panels)
            for n in range(1, len(order) + 1)
        ],
        damaged=[error for panel in panels for error in panel.loader.damaged.values()],
    )
    noted = {
        "method": method.func.__name__,
        "options": _options(method),
        "by": by,
        "splits": [
            {"data": [str(path) for path in split.paths], "videos": panel.videos, "score": score}
            for split, panel, score in zip(splits, panels, result.scores, strict=True)
        ],
        "candidates": [asdict(each) for each in result.candidates],
    }
    kept = EnsembleTagger(models, weights.tolist(), top_k=top_k)
    noted |= _train_counts(sources[name] for name in kept.member_names)
    save_ensemble(out, kept, sources, facts=noted)
    _write_page(result, noted)
    return result


def in_order(panel: Panel, weights: Tensor) -> list[int]:
    """The models that have a weight, the heaviest first, of equals the one that helps those before it most.

    So a greedy selection is in the order in which it was made.
    """
    order: list[int] = []
    left = weights.nonzero().flatten().tolist()
    while left:
        heaviest = weights[left].max()
        equals = [m for m in left if weights[m] == heaviest]
        if len(equals) > 1:
            equals.sort(key=lambda m: -panel.score(_only(weights, [*order, m])))
        order.append(equals[0])
        left.remove(equals[0])
    return order


def _only(weights: Tensor, chosen: Sequence[int]) -> Tensor:
    """The weights of the chosen models, 0 for the others."""
    kept = torch.zeros_like(weights)
    kept[chosen] = weights[chosen]
    return kept


def _candidates(
    sources: Mapping[str, Path],
    models: Mapping[str, Model],
    weights: Tensor,
    order: Sequence[int],
    panels: Sequence[ModelPanel],
) -> list[Candidate]:
    """Those that have a weight, in order, then those that were left out, the best first."""
    alone = torch.eye(len(models), dtype=torch.float64)
    left_out = sorted(set(range(len(models))) - set(order), key=lambda m: -panels[0].score(alone[m]))
    names = list(sources)
    return [
        Candidate(
            name=names[m],
            model=models[names[m]].name,
            source=str(sources[names[m]]),
            size=_size(sources[names[m]]),
            weight=weights[m].item(),
            scores=tuple(panel.score(alone[m]) for panel in panels),
        )
        for m in (*order, *left_out)
    ]


def _further(on_batch: Callable[[int], None], before: int, done: int) -> None:
    on_batch(before + done)


def _check_apart(splits: Sequence[Source]) -> None:
    """Raise `RecipeError` when a file is in both splits: what was fitted on it proves nothing there."""
    fitted = {os.path.realpath(path) for path in splits[0].paths}
    for path in splits[-1].paths if len(splits) > 1 else ():
        if os.path.realpath(path) in fitted:
            raise RecipeError(f"--score {path}: is among --data; expected videos that no weight is fitted on")


def _named(members: Sequence[Path]) -> dict[str, Path]:
    """Where each member lies, a model's folder or a prediction file, by a name that is a folder's."""
    if len(members) < 2:
        raise RecipeError("an ensemble is made of two models or more")
    found: dict[Path, Path] = {}
    for path in members:
        if not path.exists():
            raise DataError(
                "no such file or folder; expected a run, an ensemble or predictions", path=str(path)
            )
        place = path if path.is_file() else find(path)
        place = place.resolve()
        if place in found:
            raise RecipeError(f"{path}: is the same model as {found[place]}; give each once")
        found[place] = path
    # A run goes by its name, several checkpoints of it by their steps as well.
    owners = [_owner(place) for place in found]
    parts = [
        [*owner.parent.parts, owner.name if owners.count(owner) == 1 else f"{owner.name}-{place.name}"]
        for place, owner in zip(found, owners, strict=True)
    ]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, found, strict=True))
    raise RecipeError(f"{', '.join(map(str, members))}: two of them would have one name; rename one")


def _owner(place: Path) -> Path:
    """What a member is called after: the run of a checkpoint, a prediction file without its ending."""
    if place.parent.name == "checkpoints":
        return place.parent.parent
    return place.with_name(place.stem) if place.is_file() else place


def _load(
    sources: Mapping[str, Path],
    label_names: Sequence[str] | None,
    device: torch.device,
    trust: tuple[str, ...],
) -> dict[str, Model]:
    """The members; prediction files say too little of classes, so they take over those of the models."""
    models = {
        name: load(place, device=device, trust=trust) for name, place in sources.items() if place.is_dir()
    }
    classes = None if label_names is None else len(label_names)
    for model in models.values():
        classes = model.classes if classes is None else classes
        label_names = model.label_names if label_names is None and model.has_label_names else label_names
    if classes is None:
        raise RecipeError(
            "prediction files do not say how many classes there are; name the classes with --labels FILE, or "
            "give a model among them"
        )
    return {
        name: models[name] if name in models else Recorded(place, classes=classes, label_names=label_names)
        for name, place in sources.items()
    }


def _size(place: Path) -> int:
    paths = [place] if place.is_file() else model_files(place)
    return sum(path.stat().st_size for path in paths)


def _options(method: Part) -> dict[str, Any]:
    defaults = inspect.signature(method.func).parameters
    return {name: parameter.default for name, parameter in defaults.items()} | method.keywords


def _train_counts(places: Iterable[Path]) -> dict[str, Any]:
    """How often each class was seen in training, where all members that know agree."""
    counts = [facts(place).get("train_counts") for place in places if place.is_dir()]
    known = [each for each in counts if each is not None]
    return {"train_counts": known[0]} if known and all(each == known[0] for each in known) else {}


def _write_page(result: FittedEnsemble, noted: Mapping[str, Any]) -> None:
    metric = SHOWN[noted["by"]]
    lines, kept = {}, result.candidates[: len(result.growth)]
    for number, (split, name) in enumerate(zip(noted["splits"], _SPLITS, strict=False)):
        values = [scores[number] for scores in result.growth]
        lines[f"{name} {split['videos']:,} videos"] = Line(
            values=values,
            notes=[
                f"{n}, with {each.name}: {value:.4f}"
                for n, each, value in zip(count(1), kept, values, strict=False)
            ],
            reference=result.best(number).scores[number],
        )
    options = ", ".join(f"{name}={value}" for name, value in noted["options"].items())
    rows = [["model", "what it is", "MB", "weight", *(f"{metric}, {name}" for name in lines)]]
    for each in result.candidates:
        scores = (f"{score:.4f}" for score in each.scores)
        rows.append([each.name, each.model, f"{each.size / 1e6:,.2f}", f"{each.weight:.4f}", *scores])
    write_page(
        result.path / "report" / "ensemble.html",
        title=f"{result.path.resolve().name}: {len(kept):,} of {len(result.candidates):,} models",
        notes=[
            f"Weights by {noted['method']}({options}), to {metric}. {result.size / 1e6:,.2f} MB "
            f"({result.size / 2**20:,.2f} MiB) in all.",
            "Members join the heaviest first, of equals the one that helps most; the weights of those that "
            "are in divided by their sum. Dashed: the best single model.",
        ],
        picture=line_chart(lines, x="members", y=metric),
        rows=rows,
    )
