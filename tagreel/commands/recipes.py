"""`tagreel recipes`: what there is to train."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from tagreel.commands._shared import Json, Trust, finish, printer, recipe_of

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="List the recipes, or show one: its settings, size and source.",
)


@app.callback()
def list_recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the recipes: name, parameters, what the paper reports, and what it is."""
    if context.invoked_subcommand is not None:
        context.obj = as_json
        return
    from tagreel import recipe as recipes
    from tagreel.model import count_parameters

    rows = [(name, count_parameters(found), found.about) for name, found in recipes.names().items()]
    say = printer(as_json)
    width = max(len(name) for name, _, _ in rows)
    say(f"{'recipe':<{width}}   {'parameters':>12}   published          what it is")
    for name, parameters, about in rows:
        size = f"{parameters:,}" if parameters is not None else "by the data"
        published = ", ".join(f"{k.split()[0]} {v:g}" for k, v in list(about.published.items())[:1]) or "-"
        say(f"{name:<{width}}   {size:>12}   {published:<16}   {about.summary}")
    say("\nshow one: tagreel recipes show NAME")
    listed = [
        {"name": name, "parameters": size, "summary": about.summary, "published": dict(about.published)}
        for name, size, about in rows
    ]
    finish(as_json, {"recipes": listed})


@app.command("show")
def show_recipe(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A recipe's name, a .json file, or file.py:NAME.")
    ],
    settings: Annotated[
        list[str], typer.Option("--set", metavar="PATH=VALUE", help="Change a setting first.")
    ] = [],  # noqa: B006
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Show a recipe: its settings with their paths for --set, its size, its source and published figures."""
    from tagreel import recipe as recipes
    from tagreel.model import count_parameters

    as_json = as_json or bool(context.obj)
    recipe = recipe_of(name, settings, trust)
    configuration = recipes.to_json(recipe)
    about = configuration.pop("about")
    parameters = count_parameters(recipe)
    say = printer(as_json)
    say(f"{name}: {about['summary']}")
    say(f"  parameters   {f'{parameters:,}' if parameters is not None else 'depends on the data'}")
    if parameters is not None:
        say(f"  float32      {parameters * 4 / 1e6:,.2f} MB ({parameters * 4 / 2**20:,.2f} MiB)")
    for key in ("paper", "checked"):
        if about[key]:
            say(f"  {key:<12} {about[key]}")
    for key, value in about["published"].items():
        say(f"  published    {key} {value:g}")
    say("\nsettings (change one with --set PATH=VALUE):")
    for path, value in _leaves(configuration, ""):
        say(f"  {path} = {value}")
    shown = {"name": name, "parameters": parameters, "about": about, "configuration": configuration}
    finish(as_json, shown)


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
