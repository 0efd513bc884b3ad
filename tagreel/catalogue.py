"""Every recipe, ensemble and row that cannot be built: what was published, sizes, and how far we verified it.

What was verified is in recipes/verified.json, by facts that tests and docs/results hold it to:

    parameters    by the start of a name, the longest that fits: where the number of parameters comes from
    parts         the classes that equal a naive reference in their tests
    step          the recipes that took a training step at their published size
    small         the recipes that were trained small, by the data
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, partial
from importlib.resources import files
from typing import Any

from tagreel import recipe as recipes
from tagreel.compress import recipe_size
from tagreel.recipe import About, Ensemble, Entry, Recipe, Unpublished
from tagreel.tagger import count_parameters

KINDS = ("model", "member", "ensemble", "data-size")
SOURCES = {
    "published": "the paper gives the number of parameters, or the size, and it agrees",
    "code": "the number of parameters follows from the authors' code",
    "layers": "it follows from the paper's layers; the code was never published",
    "name": "it is that of the model as we read its name in the paper",
    "parts": "every part equals a naive reference of its equations, written apart from it",
    "step": "took a training step at its published size",
    "planted": "trained small on the planted set (docs/results)",
    "audioset": "trained small on AudioSet (docs/results)",
}
"""What the words of `verified` mean."""


@dataclass(frozen=True)
class Item:
    """A line of the catalogue.

    `kind` is one of `KINDS` but "member": a member is a model of which `member_of` names ensembles.
    `parameters` and `size`, in bytes as stored, are None where the data decide or nobody knows; `verified`
    are words of `SOURCES`; `cannot` says why a row cannot be built.
    """

    name: str
    kind: str
    about: About
    parameters: int | None
    size: int | None
    members: tuple[str, ...]
    member_of: tuple[str, ...]
    verified: tuple[str, ...]
    cannot: str


def catalogue(*, paper: str = "", table: str = "", kind: str = "", words: Sequence[str] = ()) -> list[Item]:
    """The lines that fit, in the order of the files, ensembles after recipes.

    `paper` and `table` are parts of what a recipe says of its source ("willow", "table 2" or "2"), `kind` is
    one of `KINDS`, and each of `words` is in the name, the summary or the source. Upper and lower case are
    one.
    """
    single, several, unknown = recipes.names(), recipes.ensembles(), recipes.unpublished()
    member_of: dict[str, list[str]] = {}
    for name, ensemble in several.items():
        for member in ensemble.members:
            member_of.setdefault(member, []).append(name)
    entries: dict[str, Entry] = {**single, **several, **unknown}
    found = []
    for name, entry in entries.items():
        about, groups = entry.about, tuple(member_of.get(name, ()))
        its_kind = _kind(entry)
        text = " ".join((name, about.summary, about.paper, about.table)).lower()
        if (
            paper.lower() in about.paper.lower()
            and _is_table(table.lower(), about.table.lower())
            and (not kind or kind == its_kind or (kind == "member" and groups))
            and all(word.lower() in text for word in words)
        ):
            found.append(_item(name, entry, its_kind, groups))
    return found


def verified(name: str, recipe: Recipe) -> tuple[str, ...]:
    """What was verified of a published recipe, in words of `SOURCES`."""
    known = _verified()
    if not recipe.about.paper:
        return ()
    starts = [start for start in known["parameters"] if name.startswith(start)]
    words = [known["parameters"][max(starts, key=len)]] if starts else []
    if all(part in known["parts"] for part in parts_of(recipe)):
        words.append("parts")
    if name in known["step"]:
        words.append("step")
    return (*words, *(data for data, names in known["small"].items() if name in names))


def parts_of(recipe: Recipe) -> set[str]:
    """The classes of ours that a recipe is made of, by their dotted names."""
    names = (f"{part.func.__module__}.{part.func.__name__}" for part in _parts(recipe))
    return {name for name in names if name.startswith("tagreel.")}


def _parts(node: Any) -> Iterator[Any]:
    inner: Iterable[Any] = ()
    if isinstance(node, partial):
        yield node
        inner = node.keywords.values()
    elif is_dataclass(node):
        inner = (getattr(node, item.name) for item in fields(node))
    elif isinstance(node, Mapping):
        inner = node.values()
    elif isinstance(node, tuple):
        inner = node
    for value in inner:
        yield from _parts(value)


def _kind(entry: Entry) -> str:
    if isinstance(entry, Recipe):
        return "model" if entry.training.subset is None else "data-size"
    return "ensemble"


def _is_table(wanted: str, table: str) -> bool:
    """Whether "table 2", "2" or "slides" is what a recipe says of its table, number for number."""
    said = table.replace(",", " ").split()
    return all(word in said for word in wanted.split())


def _item(name: str, entry: Entry, kind: str, member_of: tuple[str, ...]) -> Item:
    parameters = size = None
    words: tuple[str, ...] = ()
    if isinstance(entry, Recipe):
        parameters, size = _sizes(entry, "float32")
        words = verified(name, entry)
    elif isinstance(entry, Ensemble):
        sizes = [_sizes(member, entry.storage) for member in entry.members.values()]
        parameters, size = (_sum(column) for column in zip(*sizes, strict=True))
        each = [verified(member, recipe) for member, recipe in entry.members.items()]
        words = tuple(word for word in each[0] if all(word in others for others in each))
    return Item(
        name=name,
        kind=kind,
        about=entry.about,
        parameters=parameters,
        size=size,
        members=tuple(entry.members) if isinstance(entry, Ensemble) else (),
        member_of=member_of,
        verified=words,
        cannot=entry.reason if isinstance(entry, Unpublished) else "",
    )


def _sizes(recipe: Recipe, storage: str) -> tuple[int | None, int | None]:
    parameters = recipe.about.parameters or count_parameters(recipe)
    return parameters, None if parameters is None else recipe_size(recipe, storage)


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


@cache
def _verified() -> dict[str, Any]:
    text = files("tagreel").joinpath("recipes", "verified.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
