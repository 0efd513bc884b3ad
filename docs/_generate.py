"""Writes the pages that come from the code: one an open set, the recipes, the commands.

    python docs/_generate.py FOLDER

conf.py does so before every build, so that they are never older than the code. What there is, is found as the
package itself finds it, by walking its folders; what is said of it are its docstrings.
"""

from __future__ import annotations

import html
import importlib
import inspect
import json
import pkgutil
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from tagreel import recipe as recipes
from tagreel.cli import app
from tagreel.fit_ensemble import methods
from tagreel.recipe import Ensemble, Recipe
from tagreel.tagger import count_parameters

# The open sets, each with what its page opens with.
OPEN_SETS = {
    "pools": """From the frames of a video, (B, T, D) and a mask, to one vector, (B, out_dim). A stream of a
recipe has one: `--set streams.rgb.pool=tagreel.pools.netvlad.NetVLAD`, and its options
`--set streams.rgb.pool.clusters=64`. Padded frames change nothing.""",
    "heads": """From a vector, (B, D), to one logit a class, (B, C):
`--set head=tagreel.heads.mixture_of_experts.MixtureOfExperts --set head.experts=4`.""",
    "layers": """Parts that stand before a pool (`streams.NAME.transforms`), between the streams and the head
(`join`, `body`) or behind the head (`output`, `late`), and those that pools and heads are made of.""",
    "losses": """One number from logits and labels, to be made small:
`--set loss=tagreel.losses.focal.Focal`.""",
    "metrics": """How good scores are, beside labels. Each is exact, takes any number of batches, and adds up
over machines; `tagreel evaluate` reports them.""",
    "ensembles": """Weights of several models that make one: `tagreel ensemble fit --method greedy`.""",
    "readers": """Formats that features are read from. Which one a file is in is told from its content;
[the page on data](../data.md) says in more words what they hold.""",
    "encoders": """What makes features of pictures and sound, for `tagreel extract` and
`tagreel dataset make`: `--rgb KIND:WHAT --audio KIND:WHAT`, options as `--set rgb.OPTION=VALUE`.""",
}
# Modules whose classes a recipe names, on one page.
STAGES = ("sampling", "schedule", "inference")
STAGES_OPENING = """Which frames of a video are seen (`sampling` in training, `evaluation_sampling`
afterwards), how the rate of learning falls (`training.schedule`), and how a trained model scores a video
(`inference`)."""
RECIPES_OPENING = """Every row of the papers' tables by name, and our own. Published figures are the paper's,
on the data that it was measured on, and cannot be put beside [ours](../results.md).
`tagreel recipes show NAME` prints all settings of one."""
COMMANDS_OPENING = """What `--help` says, on one page. With `--json` a command ends with one JSON object on
standard output. An error that you can mend is one line, and ends it with 2."""
# Of the folders and files of recipes, where their name does not say it.
TITLES = {
    "": "Our own",
    "informedia": "CMU Informedia",
    "nextvlad": "NeXtVLAD",
    "nonlocal_netvlad": "Non-local NetVLAD",
    "starter": "Starter code",
    "tsinghua": "Tsinghua",
    "willow": "Willow",
    "audioset": "AudioSet",
    "own": "Your own videos",
    "smoke": "The demo",
    "youtube8m": "YouTube-8M",
}


def write(folder: Path) -> None:
    """Write every page, and nothing where it is the same already; remove what is no page any more."""
    folder.mkdir(exist_ok=True)
    wanted = pages()
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """The pages, Markdown by the name of the file."""
    used = _used_by()
    written = {
        f"{name}.md": _page(name.capitalize(), opening, members(name), used)
        for name, opening in OPEN_SETS.items()
    }
    stages = [found for stage in STAGES for found in _public(importlib.import_module(f"tagreel.{stage}"))]
    written["sampling.md"] = _page("Sampling, schedules, inference", STAGES_OPENING, stages, used)
    return written | {"recipes.md": _recipes(), "commands.md": _commands()}


# ------------------------------------------------------------------ open sets


def members(name: str) -> list[type]:
    """The members of an open set: of each file the class that it is for."""
    package = importlib.import_module(f"tagreel.{name}")
    found = []
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if not info.name.rpartition(".")[2].startswith("_"):
            found += _first_of(info.name)
    return sorted(found, key=lambda member: member.__name__.lower())


def _first_of(module: str) -> list[type]:
    return _public(importlib.import_module(module))[:1]


def _public(module: ModuleType) -> list[type]:
    return [
        value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and not issubclass(value, Exception)
        and not getattr(value, "_is_protocol", False)
    ]


def _page(name: str, opening: str, found: Iterable[type], used: Mapping[str, list[str]]) -> str:
    listed = " · ".join(f"[{member.__name__}](#{member.__name__.lower()})" for member in found)
    return _joined([f"# {name}", opening, listed, *(_entry(member, used) for member in found)])


def _entry(member: type, used: Mapping[str, list[str]]) -> str:
    """A heading, what the docstrings say, how it is made, and what else is known of it."""
    module = sys.modules[member.__module__]
    _, kind, *file = module.__name__.split(".")
    about = _markdown(inspect.getdoc(module) or "", maths=kind not in ("readers", "encoders")) if file else ""
    facts = "\n".join(f"- {fact}" for fact in _facts(kind, member))
    own = _markdown(inspect.getdoc(member) or "", maths=False)
    where = _folded(used.get(f"{member.__module__}.{member.__name__}", []))
    return _joined([f"## {member.__name__}", about, _code(_signature(member)), own, facts, where])


def _folded(names: list[str]) -> str:
    """The recipes that something is part of, out of the way, as there may be a hundred."""
    listed = ", ".join(f"<code>{name}</code>" for name in names)
    count = "one recipe" if len(names) == 1 else f"{len(names)} recipes"
    return f"<details><summary>In {count}</summary>{listed}</details>" if names else ""


def _signature(member: type) -> str:
    """How it is made, an option a line where one line would be too long."""
    parameters = list(inspect.signature(member).parameters.values())
    options = [_parameter(parameter) for parameter in parameters]
    kinds = [parameter.kind for parameter in parameters]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        options.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    made = f"{member.__name__}({', '.join(options)})"
    if len(made) > 72:
        made = "\n".join([f"{member.__name__}(", *(f"    {option}," for option in options), ")"])
    return f"from {member.__module__} import {member.__name__}\n\n{made}"


def _parameter(parameter: inspect.Parameter) -> str:
    # Annotations are strings in all of these modules.
    text, default = f"{parameter.name}: {parameter.annotation}", parameter.default
    if default is parameter.empty:
        return text
    return f"{text} = {json.dumps(default) if isinstance(default, str) else default}"


def _facts(kind: str, member: Any) -> Iterator[str]:
    if kind == "pools":
        order = "their order matters" if getattr(member, "ordered", False) else "in any order"
        adds = hasattr(member, "accumulate")
        yield f"Frames: {order}; {'one by one, in constant memory' if adds else 'all of a video at once'}."
    if kind == "readers" and hasattr(member, "format"):
        yield f"Format: `{member.format}`."
    if kind == "encoders":
        what = f":WHAT`, {_prose(member.expects)}" if member.expects else "`"
        yield f"Name: `{member.kind}{what}."
    if kind == "ensembles":
        [name] = [name for name, method in methods().items() if method is member]
        yield f"Method: `tagreel ensemble fit ... --method {name}`."


def _used_by() -> dict[str, list[str]]:
    """The names of the recipes that each class is part of."""
    used: dict[str, list[str]] = defaultdict(list)
    for name, recipe in recipes.names().items():
        for part in set(_classes(recipes.to_json(recipe))):
            used[part].append(name)
    return used


def _classes(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("class"), str):
            yield node["class"]
        for value in node.values():
            yield from _classes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _classes(value)


# -------------------------------------------------------------------- recipes


def _recipes() -> str:
    groups: dict[str, list[ModuleType]] = defaultdict(list)
    package = importlib.import_module("tagreel.recipes")
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not info.ispkg:
            folder = info.name.split(".")[2] if info.name.count(".") == 3 else ""
            groups[folder].append(importlib.import_module(info.name))
    known = recipes.names() | recipes.ensembles()
    parts = ["# Recipes", RECIPES_OPENING]
    for folder, modules in groups.items():
        parts.append(f"## {_title(folder)}")
        for module in modules:
            names = [variable.replace("_", "-") for variable in vars(module)]
            found = {name: known[name] for name in names if name in known}
            about = _markdown(inspect.getdoc(module) or "", maths=False)
            title = _title(module.__name__.rpartition(".")[2])
            parts += [f"### {title}", about, _sources(found.values()), _table(found)]
    return _joined(parts)


def _title(name: str) -> str:
    """`table1` is "Table 1"."""
    return TITLES.get(name) or re.sub(r"(\d+)$", r" \1", name).replace("_", " ").capitalize()


def _sources(found: Iterable[Recipe | Ensemble]) -> str:
    papers = dict.fromkeys(item.about.paper for item in found if item.about.paper)
    return f"Source: {_prose('; '.join(papers))}." if papers else ""


def _table(found: Mapping[str, Recipe | Ensemble]) -> str:
    lines = ["| recipe | what it is | parameters | published |", "|---|---|---:|---|"]
    for name, item in found.items():
        single = [item] if isinstance(item, Recipe) else list(item.members.values())
        counts = [part.about.parameters or count_parameters(part) for part in single]
        size = "by the data" if None in counts else f"{sum(filter(None, counts)):,}"
        what = item.about.summary if len(single) == 1 else f"{len(single)} models: {item.about.summary}"
        cells = (f"`{name}`", _prose(what), size, _published(item.about.published))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _published(figures: Mapping[str, float]) -> str:
    """The figures, those of one split together."""
    splits: dict[str, list[str]] = defaultdict(list)
    for name, value in figures.items():
        metric, _, split = name.partition(" (")
        splits[split.rstrip(")")].append(f"{metric} {value:g}")
    return "; ".join(", ".join(found) + (f" ({split})" if split else "") for split, found in splits.items())


# ------------------------------------------------------------------- commands


def _commands() -> str:
    parts = ["# Commands", COMMANDS_OPENING]
    for path, command, context in commands():
        if path == "tagreel":
            continue
        usage = " ".join(context.command.collect_usage_pieces(context))
        parts += [f"## {path}", _code(f"{path} {usage}", "text"), _help(command.help or "")]
        records = [found for item in command.get_params(context) if (found := item.get_help_record(context))]
        parts += [f"`{name}`\n: {_prose(says)}" for name, says in records]
    return _joined(parts)


def _help(text: str) -> str:
    """The text of a command's help; what begins as an example is one to be copied."""
    parts = []
    for paragraph in text.split("\n\n"):
        if example := re.fullmatch(r"(Example[^:]*|after): (tagreel .*)", paragraph.strip(), re.DOTALL):
            parts += [f"{example[1].capitalize()}:", _code(example[2].replace("\n", " \\\n    "), "text")]
        else:
            parts.append(_prose(paragraph))
    return _joined(parts)


def commands() -> Iterator[tuple[str, Any, Any]]:
    """Every command: `tagreel recipes show`, itself, and the context that its help is asked for in."""
    yield from _walk(typer.main.get_command(app), "tagreel")


def _walk(command: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    yield path, command, command.context_class(command, info_name=path)
    for name, inner in getattr(command, "commands", {}).items():
        yield from _walk(inner, f"{path} {name}")


# ----------------------------------------------------------------- docstrings

_ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")
_SITE = re.compile(r"\b(?:github\.com|research\.google\.com)/[\w./-]*\w")
_DOCS = re.compile(r"\bdocs/([\w/]+\.md)")
_LAYER = re.compile(r"\btagreel/layers/(\w+)\.py")
_ELSEWHERE = re.compile(r"`(\w+)` in `(tagreel(?:\.\w+)+)`")
# Longer ones are names in code, as in out_dim.
_SUBSCRIPT = re.compile(
    r"(?:(?<=[^\W\d])|(?<=[)'\u0300-\u036f]))_(\{[^{}]+\}|[A-Za-z0-9]{1,2})(?![A-Za-z0-9_])"
)


def _markdown(docstring: str, *, maths: bool) -> str:
    """A docstring as Markdown; its indented blocks are equations, or else are left as they are."""
    parts = []
    for block in re.split(r"\n\s*\n", docstring.strip()):
        lines = block.splitlines()
        if not all(line.startswith("    ") for line in lines):
            prose = " ".join(line.strip() for line in lines)
            parts += [_prose(prose), *map(_quoted, _ELSEWHERE.finditer(prose))]
        elif maths and "tagreel " not in block:
            parts.append(_equation([line[4:] for line in lines]))
        else:
            parts.append(_code("\n".join(line[4:] for line in lines), "text"))
    return _joined(parts)


def _prose(text: str) -> str:
    """A paragraph: code as it is, subscripts set as such, papers and code of others as links."""
    pieces = text.split("`")
    for index in range(0, len(pieces), 2):
        piece = re.sub(r"([\\\[\]|])", r"\\\1", html.escape(pieces[index], quote=False))
        piece = _SUBSCRIPT.sub(lambda found: f"<sub>{found[1].strip('{}')}</sub>", piece)
        piece = _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", piece)
        piece = _SITE.sub(r"[\g<0>](https://\g<0>)", piece)
        piece = _DOCS.sub(r"[docs/\1](../\1)", piece)
        pieces[index] = _LAYER.sub(_link_to_layer, piece)
    return "`".join(pieces)


def _quoted(found: re.Match[str]) -> str:
    """The docstring of a private class that another one refers to, as it has no entry of its own."""
    member = getattr(importlib.import_module(found[2]), found[1])
    lines = _markdown(inspect.getdoc(member) or "", maths=False).strip().splitlines()
    return "\n".join([f"> `{found[1]}`:", ">", *(f"> {line}" for line in lines)])


def _link_to_layer(found: re.Match[str]) -> str:
    [layer] = _first_of(f"tagreel.layers.{found[1]}")
    return f"[{layer.__name__}](layers.md#{layer.__name__.lower()})"


def _equation(lines: list[str]) -> str:
    inner = "".join(f"<div>{typeset(line)}</div>" for line in lines)
    return f'<div class="equation">{inner}</div>'


_WORD = "[A-Za-z0-9\u0370-\u03ff]+"
_RAISED = re.compile(
    rf"{_SUBSCRIPT.pattern}|(?P<low>[₀-₉]+)"
    rf"|\^(?P<power>\([^()]*\)|\{{[^{{}}]*\}}|{_WORD}(?:_{_WORD})?[+-]?)|(?P<high>[⁰¹²³⁴-⁹⁻ᵀ]+)"
)
_VARIABLE = re.compile(r"(?<!\w)[^\W\d_Σ][\u0300-\u036f']*(?![\w\u0300-\u036f])")
_SIGNS = {"->": "→", "<=": "≤", ">=": "≥"}


def typeset(line: str) -> str:
    """A line of an equation in HTML: raised and lowered parts, variables in italics, no sign more or less."""
    parts, at = [], 0
    for found in _RAISED.finditer(line):
        parts.append(_letters(line[at : found.start()]))
        below, low, power, high = found[1], found["low"], found["power"], found["high"]
        if low or high:
            inner = unicodedata.normalize("NFKC", low or high)
        else:
            inner = below or power
            inner = inner[1:-1] if inner[0] in "({" else inner
            # Two letters are two indices.
            inner = f"<i>{inner}</i>" if re.fullmatch("[a-z]{2}", inner) else typeset(inner)
        tag = "sub" if below or low else "sup"
        parts.append(f"<{tag}>{inner}</{tag}>")
        at = found.end()
    return "".join([*parts, _letters(line[at:])])


def _letters(text: str) -> str:
    for typed, sign in _SIGNS.items():
        text = text.replace(typed, sign)
    text = re.sub(r"(?<![A-Za-z])-|-(?![A-Za-z])", "−", text)
    return _VARIABLE.sub(r"<i>\g<0></i>", html.escape(text, quote=False))


# ------------------------------------------------------------------- Markdown


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


def _code(text: str, language: str = "python") -> str:
    return f"```{language}\n{text}\n```"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
