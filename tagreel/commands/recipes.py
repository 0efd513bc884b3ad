"""`tagreel recipes`: what there is to train."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagreel.commands._shared import Json, Trust, finish, look_here, printer

if TYPE_CHECKING:
    from tagreel.recipe import About, Ensemble, Part, Recipe

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="List the recipes and the ensembles of them, or show one: its settings, size and source.",
)


@app.callback()
def list_recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the recipes, then the ensembles of them: parameters, what the paper reports, and what each is.

    Example: tagreel recipes
    """
    if context.invoked_subcommand is not None:
        context.obj = as_json
        return
    from tagreel import recipe as recipes

    say = printer(as_json)
    single = [_row(name, (found,), found.about) for name, found in recipes.names().items()]
    several = [
        {**_row(name, tuple(found.members.values()), found.about), "members": list(found.members)}
        for name, found in recipes.ensembles().items()
    ]
    _list("recipe", single, say)
    say("")
    _list("ensemble", several, say)
    say("\nshow one: tagreel recipes show NAME")
    finish(as_json, {"recipes": single, "ensembles": several})


def _row(name: str, parts: tuple[Recipe, ...], about: About) -> dict[str, Any]:
    from tagreel.tagger import count_parameters

    # The tests hold the recipes to what they state, and building all of them takes a while.
    counts = [part.about.parameters or count_parameters(part) for part in parts]
    return {
        "name": name,
        "parameters": _sum(counts),
        "summary": about.summary,
        "published": dict(about.published),
    }


def _list(kind: str, rows: list[dict[str, Any]], say: Callable[[str], None]) -> None:
    width = max(len(row["name"]) for row in rows)
    say(f"{kind:<{width}}   {'parameters':>14}   published          what it is")
    for row in rows:
        size = f"{row['parameters']:,}" if row["parameters"] is not None else "by the data"
        count = f"{len(row['members'])} models: " if "members" in row else ""
        score = _score(row["published"])
        say(f"{row['name']:<{width}}   {size:>14}   {score:<16}   {count}{row['summary']}")


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

    as_json = as_json or bool(context.obj)
    look_here(trust)
    found = recipes.find_any(name, trust=tuple(trust))
    for setting in settings:
        found = recipes.override(found, setting, trust=tuple(trust))
    configuration = recipes.to_json(found)
    about = configuration.pop("about")
    say = printer(as_json)
    say(f"{name}: {about['summary']}")
    if isinstance(found, recipes.Ensemble):
        shown = _show_ensemble(found, say)
    else:
        shown = _sizes(found, "float32")
        _say_size(shown, "float32", say)
        _say_source(found.about, say)
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
    _say_source(ensemble.about, say)
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


def _say_source(about: About, say: Callable[[str], None]) -> None:
    for key, value in (("paper", about.paper), ("checked", about.checked)):
        if value:
            say(f"  {key:<12} {value}")
    for key, score in about.published.items():
        say(f"  published    {key} {score:g}")


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
