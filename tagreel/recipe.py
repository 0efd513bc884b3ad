"""A recipe: everything that makes a tagger and its training, as typed data; an ensemble: several recipes.

A slot holds `functools.partial` of the class that fills it, `pool=partial(NetVLAD, clusters=256)`: the class
declares its options once, in its constructor; `model.build` supplies the widths. A recipe checks itself when
it is made, is found by the name of its variable in `tagreel.recipes` (or in a file of yours), is changed
with `override` and travels as JSON inside every checkpoint. So does an ensemble of recipes, but for the
checkpoint: its members are trained one by one.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import json
import math
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from tagreel.errors import RecipeError
from tagreel.parts import Part as Part  # recipes are written with it
from tagreel.parts import check, check_value, decode, encode, hints_of, no_such, set_at

_OWN_FILES: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class About:
    """What a recipe is and where it comes from: the paper, the table in it, and what it published there."""

    name: str = ""
    summary: str = ""
    paper: str = ""
    table: str = ""
    published: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One branch from frames to a vector: features, then transforms, then a pool.

    `inputs` names the features it reads, concatenated frame by frame (early fusion); empty means the feature
    of the stream's own name. What the streams pool is concatenated in their order (late fusion). A transform
    is called with (frames, mask) and a pool likewise.
    """

    pool: Part
    inputs: tuple[str, ...] = ()
    transforms: tuple[Part, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a recipe is trained.

    `epochs` or `steps` says how long (steps wins). `schedule` maps examples seen to a factor on the
    optimizer's rate. `clip` bounds each tensor's gradient norm by `clip_norm`, as the references do, or that
    of all together. `mixup` is the α of Beta(α, α): pooled descriptors and labels of two videos are mixed
    (0: not). `ema` is the decay of the averaged weights that are evaluated and kept (0: none). `head_l2`
    adds head_l2 · ½ Σ w² over the head's matrices. `precision` is that of matrix products. The recipe's
    `late` parts join in after `late_epochs`. With a teacher, `distill` is the share of its probabilities in
    what is learnt, the labels have the rest (0: they alone), and `forgive` the share of each class's
    negatives, the likeliest by the teacher, that the loss leaves out. `subset` is (size, number): only the
    number-th of disjoint random sets of so many videos is learnt from (None: all). The checkpoint with the
    highest `best_by` on validation is kept as the best.
    """

    optimizer: Part
    schedule: Part
    batch_size: int = 128
    epochs: float = 5.0
    steps: int | None = None
    accumulate: int = 1
    clip: Literal["tensor", "global", "none"] = "tensor"
    clip_norm: float = 1.0
    mixup: float = 0.0
    ema: float = 0.0
    head_l2: float = 0.0
    late_epochs: float = 0.0
    distill: float = 0.0
    forgive: float = 0.0
    subset: tuple[int, int] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    best_by: Literal["gap@20", "map", "map_top20", "hit@1", "perr"] = "gap@20"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A tagger and its training.

    `features` gives each feature's width, None for "as in the data"; likewise `classes`. A video may lack the
    `optional` features; they are zeros then. `joint_l2_norm` scales each frame, all features together, to
    length one. `join` makes one vector of what the streams pool (None: side by side). `body` are parts
    (B, D) -> (B, D') between it and the head, `output` parts on the head's logits, and `late` such parts that
    begin after `training.late_epochs` (CMU's late fire). `mixture` trains several such networks under one
    gate. `inference` is how a trained model scores a video, `tagreel.inference` (None: its frames, once).
    `memory` holds videos that a new one is compared with; `tagreel remember` fills it, training does not.
    `batch_norm_momentum` holds for every batch norm (TF-Slim, in the references: 0.001).
    """

    features: Mapping[str, int | None]
    streams: Mapping[str, Stream]
    head: Part
    loss: Part
    sampling: Part
    evaluation_sampling: Part
    training: Training
    body: tuple[Part, ...] = ()
    output: tuple[Part, ...] = ()
    join: Part | None = None
    late: tuple[Part, ...] = ()
    mixture: Part | None = None
    inference: Part | None = None
    memory: Part | None = None
    classes: int | None = None
    optional: tuple[str, ...] = ()
    joint_l2_norm: bool = False
    batch_norm_momentum: float = 0.01
    about: About = About()

    def __post_init__(self) -> None:
        check(self, "")
        for name, stream in self.streams.items():
            if "." in name:
                raise RecipeError(f"streams: the name {name!r} holds a dot; --set could not reach it")
            for feature in stream.inputs or (name,):
                if feature not in self.features:
                    raise RecipeError(
                        f"streams.{name}: no feature {feature!r}; the recipe has: {', '.join(self.features)}"
                    )
        for feature in self.optional:
            if feature not in self.features:
                raise RecipeError(f"optional: no feature {feature!r}; there are: {', '.join(self.features)}")
        if not self.streams:
            raise RecipeError("streams: a recipe needs at least one")
        self._check_ranges()

    def _check_ranges(self) -> None:
        training = self.training
        positive = ("batch_size", "accumulate", "epochs", "steps", "clip_norm")
        for name in positive:
            if (value := getattr(training, name)) is not None and not 0 < value < math.inf:
                raise RecipeError(f"training.{name} is {value}; expected more than 0")
        for name in ("mixup", "head_l2", "late_epochs"):
            if (value := getattr(training, name)) < 0:
                raise RecipeError(f"training.{name} is {value}; expected 0 or more")
        if training.late_epochs and not self.late:
            raise RecipeError(
                f"training.late_epochs is {training.late_epochs:g}, but there are no late parts"
            )
        if not 0 <= training.ema < 1:
            raise RecipeError(f"training.ema is {training.ema}; expected 0 (none) to less than 1")
        if not 0 <= training.distill <= 1:
            raise RecipeError(f"training.distill is {training.distill}; expected 0 (none) to 1")
        if not 0 <= training.forgive < 1:
            raise RecipeError(f"training.forgive is {training.forgive}; expected 0 (none) to less than 1")
        if training.subset is not None and min(training.subset) < 1:
            expected = "expected (size, number), each at least 1"
            raise RecipeError(f"training.subset is {training.subset}; {expected}")
        if not 0 < self.batch_norm_momentum <= 1:
            raise RecipeError(f"batch_norm_momentum is {self.batch_norm_momentum}; expected more than 0 to 1")
        sizes = {f"features.{name}": width for name, width in self.features.items()}
        for name, size in {**sizes, "classes": self.classes}.items():
            if size is not None and size < 1:
                raise RecipeError(f"{name} is {size}; expected at least 1")
        # These cost nothing to make, and say themselves what they cannot be and what they are called with.
        slots: dict[str, tuple[Part | None, tuple[str, ...]]] = {
            "loss": (self.loss, ("logits", "labels", "rated")),
            "sampling": (self.sampling, ("num_frames", "seed")),
            "evaluation_sampling": (self.evaluation_sampling, ("num_frames", "seed")),
            "training.schedule": (training.schedule, ("examples", "total")),
            "inference": (self.inference, ("scores", "view", "batch")),
        }
        for name, (part, arguments) in slots.items():
            if part is None:
                continue
            try:
                made = part()
            except (ValueError, TypeError) as error:
                raise RecipeError(f"{name}: {error}") from error
            try:
                inspect.signature(made).bind(*arguments)
            except TypeError as error:
                raise RecipeError(
                    f"{name}: {part.func.__name__} is for another place; expected a class whose objects are "
                    f"called with ({', '.join(arguments)})"
                ) from error


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """A published system: recipes whose probabilities are averaged.

    `members` are the recipes by name, each with the sampling and the inference that it scores videos by.
    `weights` gives each of them a number, which counts by its share of their sum (None: all count alike). Of
    a member's probabilities those outside of a video's `top_k` highest count 0 (None: all count). `storage`
    is how its weights are kept, one of `tagreel.storage`.
    """

    members: Mapping[str, Recipe]
    weights: Mapping[str, float] | None = None
    top_k: int | None = None
    storage: Literal["float32", "bfloat16", "float16", "int8", "codebook"] = "float32"
    about: About = About()

    def __post_init__(self) -> None:
        hints = hints_of(Ensemble)
        for item in fields(self):
            check_value(getattr(self, item.name), hints[item.name], item.name)
        check(self.about, "about")
        if not self.members:
            raise RecipeError("members: an ensemble needs at least one")
        for name in self.members:
            if not re.fullmatch(r"[\w-]+", name, re.ASCII):
                raise RecipeError(f"members: {name!r} is to name a folder; expected letters, digits, - and _")
        if self.top_k is not None and self.top_k < 1:
            raise RecipeError(f"top_k is {self.top_k}; expected at least 1")
        self._check_weights()
        self._check_sizes()

    def _check_weights(self) -> None:
        if self.weights is None:
            return
        for name in self.weights:
            if name not in self.members:
                raise no_such("weights", "there is no member", name, self.members)
        for name in self.members:
            if name not in self.weights:
                raise RecipeError(f"weights: there is none for {name!r}; give it 0 to leave it out")
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise RecipeError(f"weights.{name} is {weight}; expected 0 or more")
        if not 0 < (total := sum(self.weights.values())) < math.inf:
            raise RecipeError(f"weights: their sum is {total}; expected more than 0, and finite")

    def _check_sizes(self) -> None:
        """Members may leave a size open, but what two of them state is the same."""
        stated: dict[str, tuple[int, str]] = {}
        for member, recipe in self.members.items():
            sizes = {f"features.{name}": width for name, width in recipe.features.items()}
            for name, size in {**sizes, "classes": recipe.classes}.items():
                if size is None:
                    continue
                first, other = stated.setdefault(name, (size, member))
                if first != size:
                    raise RecipeError(
                        f"members.{member}.{name} is {size:,}, that of {other} {first:,}; expected the same"
                    )

    @property
    def shares(self) -> dict[str, float]:
        """The weights by member, with a sum of one."""
        weights = self.weights or dict.fromkeys(self.members, 1)
        total = sum(weights.values())
        return {name: weights[name] / total for name in self.members}


@dataclass(frozen=True, kw_only=True)
class Unpublished:
    """A row of a paper's table that cannot be built: `reason` says what the paper does not tell."""

    reason: str
    about: About


Entry = Recipe | Ensemble | Unpublished


def names() -> dict[str, Recipe]:
    """Every recipe of the package by name (`willow-gated-netvlad-256`), in the order of the files."""
    return {name: _named(found, name) for name, found in _walk().items() if isinstance(found, Recipe)}


def ensembles() -> dict[str, Ensemble]:
    """Every ensemble of the package by name (`willow-ens7`), in the order of the files."""
    return {name: _named(found, name) for name, found in _walk().items() if isinstance(found, Ensemble)}


def unpublished() -> dict[str, Unpublished]:
    """Every row by name that a paper scores and does not describe, in the order of the files."""
    return {name: _named(found, name) for name, found in _walk().items() if isinstance(found, Unpublished)}


def find(name: str, *, trust: tuple[str, ...] = ()) -> Recipe:
    """The recipe of that name, of a JSON file, or of a Python file (`my_recipes.py:my_tagger`)."""
    found = _look_up(name, (Recipe,), trust)
    assert isinstance(found, Recipe)
    return found


def find_ensemble(name: str, *, trust: tuple[str, ...] = ()) -> Ensemble:
    """The ensemble of that name, of a JSON file, or of a Python file (`my_recipes.py:my_system`)."""
    found = _look_up(name, (Ensemble,), trust)
    assert isinstance(found, Ensemble)
    return found


def find_any(name: str, *, trust: tuple[str, ...] = ()) -> Recipe | Ensemble:
    """The recipe or ensemble of that name, found like either."""
    return _look_up(name, (Recipe, Ensemble), trust)


_KINDS: dict[type[Recipe | Ensemble], str] = {Recipe: "recipe", Ensemble: "ensemble"}
Kind = typing.TypeVar("Kind", bound=Entry)


def _look_up(
    name: str, kinds: tuple[type[Recipe | Ensemble], ...], trust: tuple[str, ...]
) -> Recipe | Ensemble:
    path, _, variable = name.partition(".py:") if ".py:" in name else (name, "", "")
    if path.endswith(".json"):
        return _of_kind(_load(Path(path), trust), path, kinds)
    if variable or path.endswith(".py"):
        file = path if path.endswith(".py") else path + ".py"
        known = _in(vars(_module_of(Path(file))))
        wanted = variable.replace("_", "-")
        fitting = [key for key, found in known.items() if isinstance(found, kinds)]
        if not wanted and len(fitting) == 1:
            [wanted] = fitting
        if wanted not in known:
            raise RecipeError(
                f"{file}: say which {_KINDS[kinds[0]]}, {file}:NAME; it has: {', '.join(fitting) or 'none'}"
            )
        return _named(_of_kind(known[wanted], name, kinds), wanted)
    known, wanted = _walk(), name.replace("_", "-")
    if wanted not in known:
        close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise RecipeError(f"no {_KINDS[kinds[0]]} {name!r}; {hint}(tagreel recipes lists them all)")
    return _named(_of_kind(known[wanted], name, kinds), wanted)


def _of_kind(found: Entry, name: str, kinds: tuple[type[Recipe | Ensemble], ...]) -> Recipe | Ensemble:
    if isinstance(found, Unpublished):
        raise RecipeError(f"{name} cannot be built: {found.reason}")
    if isinstance(found, kinds):
        return found
    if isinstance(found, Ensemble):
        first, count = next(iter(found.members)), len(found.members)
        raise RecipeError(f"{name} is an ensemble of {count}; expected a single recipe, such as {first}")
    raise RecipeError(f"{name} is a recipe; expected an ensemble of several")


def _walk() -> dict[str, Entry]:
    """All that the package holds, by name."""
    found: dict[str, Entry] = {}
    package = importlib.import_module("tagreel.recipes")
    for info in pkgutil.walk_packages(package.__path__, "tagreel.recipes."):
        if not info.ispkg:
            found |= _in(vars(importlib.import_module(info.name)))
    return found


def _module_of(file: Path) -> types.ModuleType:
    """Run a user's file as the module of its name, so that its classes can be found again by theirs."""
    if not file.is_file():
        raise RecipeError(f"{file}: No such file")
    if file.stem in sys.modules and file.stem not in _OWN_FILES:
        raise RecipeError(f"{file}: a module {file.stem!r} is loaded already; give the file another name")
    sys.path.insert(0, str(file.resolve().parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    _OWN_FILES.add(file.stem)
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except RecipeError:
        raise
    except Exception as error:
        del sys.modules[file.stem]
        raise RecipeError(f"{file}: {type(error).__name__}: {error}") from error
    return module


def _in(namespace: Mapping[str, Any]) -> dict[str, Entry]:
    return {
        variable.replace("_", "-"): value
        for variable, value in namespace.items()
        if isinstance(value, Entry) and not variable.startswith("_")
    }


def _named(found: Kind, name: str) -> Kind:
    """The same, knowing what it is called; the members of an ensemble, too."""
    about = replace(found.about, name=name)
    if isinstance(found, Ensemble):
        members = {member: _named(recipe, member) for member, recipe in found.members.items()}
        return replace(found, members=members, about=about)
    return replace(found, about=about)


def override(recipe: Kind, setting: str, *, trust: tuple[str, ...] = ()) -> Kind:
    """The recipe with one setting changed: `streams.rgb.pool.clusters=128`, `head=tagreel.heads.x.Y`.

    Of an ensemble, one of its own or of a member: `top_k=50`, `members.NAME.classes=10`.
    """
    path, equals, text = setting.partition("=")
    if not equals:
        raise RecipeError(f"--set {setting}: expected PATH=VALUE, for example training.batch_size=256")
    keys = path.strip().split(".")
    changed = set_at(recipe, keys, text.strip(), "", trust)
    if keys[-2:] == ["training", "epochs"]:
        # Or a recipe that counts in steps would pass over the setting.
        changed = set_at(changed, [*keys[:-1], "steps"], "none", "", trust)
    assert isinstance(changed, type(recipe))
    return changed


def to_json(recipe: Recipe | Ensemble) -> dict[str, Any]:
    """Plain data with every option spelled out, so that a later change of a default changes nothing here."""
    encoded = encode(recipe)
    assert isinstance(encoded, dict)
    return encoded


def from_json(data: Any, *, where: str = "recipe", trust: tuple[str, ...] = ()) -> Recipe:
    """The recipe that `to_json` wrote. Classes are taken from tagreel and torch.optim, and from `trust`."""
    try:
        values = {key: decode(value, trust) for key, value in dict(data).items()}
        values["streams"] = {name: Stream(**stream) for name, stream in values["streams"].items()}
        values["training"] = Training(**values["training"])
        values["about"] = _about(values.get("about", {}))
        return Recipe(**values)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise RecipeError(f"{where}: not a recipe as tagreel writes it: {error}") from error


def ensemble_from_json(data: Any, *, where: str = "ensemble", trust: tuple[str, ...] = ()) -> Ensemble:
    """The ensemble that `to_json` wrote; classes are taken as by `from_json`."""
    try:
        values = dict(data)
        members = {
            name: from_json(member, where=f"members.{name}", trust=trust)
            for name, member in values.pop("members").items()
        }
        about = _about(values.pop("about", {}))
        return Ensemble(members=members, about=about, **values)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise RecipeError(f"{where}: not an ensemble as tagreel writes it: {error}") from error


def _about(data: Mapping[str, Any]) -> About:
    # Earlier versions said here what was checked of a recipe, which is now in `catalogue`.
    return About(**{key: value for key, value in data.items() if key != "checked"})


def load(path: Path, *, trust: tuple[str, ...] = ()) -> Recipe:
    """The recipe in a JSON file."""
    return from_json(_read(path), where=str(path), trust=trust)


def _load(path: Path, trust: tuple[str, ...]) -> Recipe | Ensemble:
    data = _read(path)
    decode = ensemble_from_json if isinstance(data, dict) and "members" in data else from_json
    return decode(data, where=str(path), trust=trust)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"{path}: not JSON: {error}") from error
