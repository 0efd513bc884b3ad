"""`tagreel recipes`: what there is to train."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tagreel.commands._shared import Json, Trust, finish, look_here, printer
from tagreel.errors import RecipeError

if TYPE_CHECKING:
    from tagreel.catalogue import Item
    from tagreel.recipe import About, Ensemble, Part, Recipe

Kind = Literal["model", "member", "ensemble", "data-size"]

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="List the recipes and the ensembles of them, or show one: its settings, size and source.",
)


@app.callback()
def list_recipes(
    context: typer.Context,
    paper: Annotated[
        str, typer.Option(metavar="NAME", help="Only what a paper published: willow, cmu, 1811.05014 ...")
    ] = "",
    table: Annotated[
        str, typer.Option(metavar="TABLE", help="Only one of its tables: 'table 2', or 2 in short.")
    ] = "",
    kind: Annotated[
        Kind | None,
        typer.Option(
            help="model: all single ones; member: those in an ensemble; ensemble; data-size: models that "
            "learn from a part of the data."
        ),
    ] = None,
    find: Annotated[
        list[str], typer.Option(metavar="WORD", help="Only what has this word in its name or description.")
    ] = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """List the recipes and the ensembles of them: size, what the paper reports, how far each was verified.

    Rows of the papers that nobody can build, because a paper does not say what they are made of, are listed,
    too: show one to read why.

    Example: tagreel recipes --paper willow --table 'table 2'
    """
    if context.invoked_subcommand is not None:
        context.obj = as_json
        return
    from tagreel.catalogue import SOURCES, catalogue

    say = printer(as_json)
    found = catalogue(paper=paper, table=table, kind=kind or "", words=find)
    if not found:
        raise RecipeError("no recipe fits; `tagreel recipes` lists them all")
    width = max(len(item.name) for item in found)
    words = max(8, *(len(" ".join(item.verified)) for item in found))
    columns = f"{'parameters':>14}   {'MB':>9}   {'published':<16}   {'verified':<{words}}   what it is"
    say(f"{'recipe':<{width}}   {columns}")
    for item in found:
        size = ("by the data", "-") if not item.cannot else ("not published", "-")
        if item.parameters is not None and item.size is not None:
            size = (f"{item.parameters:,}", f"{item.size / 1e6:,.1f}")
        count = f"{len(item.members)} models: " if item.members else ""
        say(
            f"{item.name:<{width}}   {size[0]:>14}   {size[1]:>9}   {_score(item.about.published):<16}   "
            f"{' '.join(item.verified) or '-':<{words}}   {count}{item.about.summary}"
        )
    say(f"\n{len(found):,} in all; show one: tagreel recipes show NAME")
    if used := [word for word in SOURCES if any(word in item.verified for item in found)]:
        say("verified:")
        for word in used:
            say(f"  {word:<10} {SOURCES[word]}")
    finish(as_json, {"recipes": [_plain(item) for item in found]})


def _plain(item: Item) -> dict[str, Any]:
    return {
        "name": item.name,
        "kind": item.kind,
        "paper": item.about.paper,
        "table": item.about.table,
        "summary": item.about.summary,
        "published": dict(item.about.published),
        "parameters": item.parameters,
        "bytes": item.size,
        "members": list(item.members),
        "member_of": list(item.member_of),
        "verified": list(item.verified),
        "cannot": item.cannot or None,
    }


@app.command("show")
def show_recipe(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A name from `tagreel recipes`, a .json file, or file.py:NAME."),
    ],
    settings: Annotated[
        list[str], typer.Option("--set", metavar="PATH=VALUE", help="Change a setting first.")
    ] = [],  # noqa: B006
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Show a recipe: its settings with their paths for --set, its size, its source and published figures.

    Of an ensemble: its members, what each of them counts for, and their sizes.

    Example: tagreel recipes show willow-ens7
    """
    from tagreel import recipe as recipes
    from tagreel.catalogue import verified

    as_json = as_json or bool(context.obj)
    look_here(trust)
    say = printer(as_json)
    if (unknown := recipes.unpublished().get(name)) is not None and not settings:
        say(f"{name}: {unknown.about.summary}")
        _say_source(unknown.about, (), say)
        say(f"  cannot be built: {unknown.reason}")
        finish(as_json, {"name": name, "about": asdict(unknown.about), "cannot": unknown.reason})
        return
    found = recipes.find_any(name, trust=tuple(trust))
    for setting in settings:
        found = recipes.override(found, setting, trust=tuple(trust))
    configuration = recipes.to_json(found)
    about = configuration.pop("about")
    say(f"{name}: {about['summary']}")
    if isinstance(found, recipes.Ensemble):
        shown = _show_ensemble(found, say)
    else:
        shown = _sizes(found, "float32")
        _say_size(shown, "float32", say)
        _say_source(found.about, () if settings else verified(name, found), say)
        say("\nsettings (change one with --set PATH=VALUE):")
        for path, value in _leaves(configuration, ""):
            say(f"  {path} = {value}")
    finish(as_json, {"name": name, **shown, "about": about, "configuration": configuration})


def _show_ensemble(ensemble: Ensemble, say: Callable[[str], None]) -> dict[str, Any]:
    members: dict[str, dict[str, Any]] = {
        name: {"share": ensemble.shares[name], **_sizes(member, ensemble.storage)}
        for name, member in ensemble.members.items()
    }
    total = {key: _sum([member[key] for member in members.values()]) for key in ("parameters", "bytes")}
    _say_size(total, ensemble.storage, say)
    _say_source(ensemble.about, (), say)
    if ensemble.top_k is not None:
        say(f"  top_k        {ensemble.top_k}: of each prediction, what is below counts as 0")
    width = max(map(len, members))
    say(f"\n{'member':<{width}}   {'weight':>6}   {'share':>6}   {'parameters':>14}   {'MB':>9}   published")
    for name, member in members.items():
        recipe = ensemble.members[name]
        weight = 1 if ensemble.weights is None else ensemble.weights[name]
        sizes = ("by the data", "-")
        if member["bytes"] is not None:
            sizes = (f"{member['parameters']:,}", f"{member['bytes'] / 1e6:,.2f}")
        how = "" if recipe.inference is None else f"; scored by {_call(recipe.inference)}"
        say(
            f"{name:<{width}}   {weight:>6g}   {member['share']:>6.2%}   {sizes[0]:>14}   {sizes[1]:>9}   "
            f"{_score(recipe.about.published):<16}   {recipe.about.summary}{how}"
        )
    say("\nchange a setting: --set weights.NAME=2, --set members.NAME.training.batch_size=64")
    return {**total, "members": members}


def _sizes(recipe: Recipe, storage: str) -> dict[str, int | None]:
    """Trainable parameters, and the bytes of a stored model; None where the data decide."""
    from tagreel.compress import recipe_size
    from tagreel.tagger import count_parameters

    parameters = count_parameters(recipe)
    return {
        "parameters": parameters,
        "bytes": None if parameters is None else recipe_size(recipe, storage),
    }


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _say_size(sizes: Mapping[str, int | None], storage: str, say: Callable[[str], None]) -> None:
    parameters, size = sizes["parameters"], sizes["bytes"]
    say(f"  parameters   {f'{parameters:,}' if parameters is not None else 'depends on the data'}")
    if size is not None:
        megabytes = f"{size / 1e6:,.2f} MB ({size / 2**20:,.2f} MiB)"
        say(f"  {storage:<12} {megabytes}, batch norm's statistics included")


def _say_source(about: About, words: Sequence[str], say: Callable[[str], None]) -> None:
    from tagreel.catalogue import SOURCES

    if about.paper:
        say(f"  paper        {', '.join(filter(None, (about.paper, about.table)))}")
    for key, score in about.published.items():
        say(f"  published    {key} {score:g}")
    for word in words:
        say(f"  verified     {SOURCES[word]}")


def _score(published: Mapping[str, float]) -> str:
    """The first of the published figures, in short."""
    return next((f"{name.split()[0]} {value:g}" for name, value in published.items()), "-")


def _call(part: Part) -> str:
    """A part of a recipe as it is written in Python."""
    options = ", ".join(f"{name}={value!r}" for name, value in part.keywords.items())
    return f"{part.func.__name__}({options})"


def _leaves(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every setting of a recipe's JSON with the path that --set takes."""
    if isinstance(node, dict) and set(node) == {"class", "options"}:
        yield path, node["class"]
        for name, value in node["options"].items():
            yield from _leaves(value, f"{path}.{name}")
    elif isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{path}.{name}" if path else name)
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{path}.{index}")
    else:
        yield path, json.dumps(node)
