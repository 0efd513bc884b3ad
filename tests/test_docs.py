"""The documentation: its links, its commands, its settings, and the pages that are made from the code."""

from __future__ import annotations

import ast
import html
import importlib.util
import re
import shlex
import unicodedata
from fnmatch import fnmatch
from pathlib import Path

import pytest

import tagreel
from tagreel import recipe as recipes
from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
PACKAGE = Path(tagreel.__file__).parent
WRITTEN = [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("results/*.md"))]
SETS = ("pools", "heads", "layers", "losses", "metrics", "ensembles", "readers", "encoders")


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("_generate", DOCS / "_generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference(generator):
    """The generated pages by the path they will have."""
    return {DOCS / "reference" / name: text for name, text in generator.pages().items()}


@pytest.fixture(scope="module")
def pages(reference):
    """The text of every page of the site and of the README, by path."""
    return {path: path.read_text(encoding="utf-8") for path in WRITTEN} | reference


@pytest.fixture(scope="module")
def commands(generator):
    """The options of every command, `tagreel recipes show` and the like."""
    return {
        path: {
            option for item in command.get_params(context) for option in (*item.opts, *item.secondary_opts)
        }
        for path, command, context in generator.commands()
    }


def _without_blocks(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def _without_code(text):
    return re.sub(r"`[^`]*`", "", _without_blocks(text))


def _slug(heading):
    """A heading's anchor, as GitHub and the site make it."""
    heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


# ------------------------------------------------------------------- the code


@pytest.mark.parametrize("folder", SETS)
def test_every_file_of_an_open_set_has_an_entry(folder, reference):
    page = reference[DOCS / "reference" / f"{folder}.md"]
    headings = re.findall(r"^## (\w+)$", page, flags=re.MULTILINE)
    for path in sorted((PACKAGE / folder).glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        classes = [name for name in names if not name.startswith("_")]
        if folder == "layers" and not classes:  # functions, which no recipe names
            continue
        assert set(classes) & set(headings), path
        # What is shown is how the file opens.
        name = next(name for name in classes if name in headings)
        first = ast.get_docstring(tree).split()[0]
        assert page.split(f"\n## {name}\n\n")[1].startswith(first), path
    assert len(headings) == len(set(headings))


def test_an_entry_says_the_options_and_where_it_is_used(reference):
    page = reference[DOCS / "reference" / "pools.md"]
    netvlad = page.split("\n## NetVLAD\n")[1].split("\n## ")[0]
    assert "NetVLAD(dim: int, *, clusters: int = 64, batch_norm: bool = True)" in netvlad
    assert "(https://arxiv.org/abs/1511.07247)" in netvlad
    assert "Frames: in any order; one by one, in constant memory." in netvlad
    assert "<code>willow-netvlad-256</code>" in netvlad
    gru = page.split("\n## GRU\n")[1].split("\n## ")[0]
    assert "Frames: their order matters; all of a video at once." in gru
    assert "<code>nlvlad-gru</code>" in gru


def test_every_recipe_and_ensemble_has_a_row_with_the_published_figures(reference):
    page = reference[DOCS / "reference" / "recipes.md"]
    rows = re.findall(r"^\| `([\w-]+)` \|(.*)\|$", page, flags=re.MULTILINE)
    known = recipes.names() | recipes.ensembles()
    assert sorted(name for name, _ in rows) == sorted(known)
    for name, row in rows:
        about = known[name].about
        for metric, figure in about.published.items():
            assert f"{metric.split(' (')[0]} {figure:g}" in row, name
        if about.parameters:
            assert f" {about.parameters:,} " in row, name


def test_every_command_is_there_with_all_that_its_help_says(reference, commands, cli):
    page = reference[DOCS / "reference" / "commands.md"]
    for path in commands.keys() - {"tagreel"}:
        section = page.split(f"\n## {path}\n")[1].split("\n## ")[0]
        code, out, _ = cli(*path.split()[1:], "--help")
        assert code == 0
        options = re.findall(r"^  (?:-\w, )?(--[\w-]+)", out, flags=re.MULTILINE)
        assert options
        for option in options:
            assert re.search(rf"`[^`]*{option}\b[^`]*`\n: \S", section), f"{path} {option}"


# ------------------------------------------------------------------ equations


def _equations(folder):
    for path in sorted((PACKAGE / folder).glob("[!_]*.py")):
        for block in re.split(
            r"\n\s*\n", ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        ):
            if all(line.startswith("    ") for line in block.splitlines()):
                yield from (line.strip() for line in block.splitlines())


def _bare(text):
    text = unicodedata.normalize("NFKC", text)
    for typed, sign in {"->": "→", "<=": "≤", ">=": "≥", "−": "-"}.items():
        text = text.replace(typed, sign)
    return re.sub(r"[\s_^{}()]", "", text)


def test_an_equation_keeps_every_sign(generator):
    lines = [
        line for folder in ("pools", "heads", "layers", "losses", "metrics") for line in _equations(folder)
    ]
    assert len(lines) > 40
    for line in lines:
        shown = html.unescape(re.sub(r"<[^>]*>", "", generator.typeset(line)))
        assert _bare(shown) == _bare(line)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("a_k(x_t)", "<i>a</i><sub><i>k</i></sub>(<i>x</i><sub><i>t</i></sub>)"),
        ("x_{l-1}", "<i>x</i><sub><i>l</i>−1</sub>"),
        ("V_h^(1/p_d)", "<i>V</i><sub><i>h</i></sub><sup>1/<i>p</i><sub><i>d</i></sub></sup>"),
        ("β^n_c", "<i>β</i><sup><i>n</i><sub><i>c</i></sub></sup>"),
        ("p_c^γ- log q", "<i>p</i><sub><i>c</i></sub><sup><i>γ</i>−</sup> log <i>q</i>"),
        ("x̃_t^g[j]", "<i>x̃</i><sub><i>t</i></sub><sup><i>g</i></sup>[<i>j</i>]"),
        ("q_hᵀ h₁²", "<i>q</i><sub><i>h</i></sub><sup>T</sup> <i>h</i><sub>1</sub><sup>2</sup>"),
        ("softmax(W x)_ce", "softmax(<i>W</i> <i>x</i>)<sub><i>ce</i></sub>"),
        ("Σ_t (B, out_dim) < 1e-6", "Σ<sub><i>t</i></sub> (<i>B</i>, out_dim) &lt; 1e−6"),
    ],
)
def test_an_equation_is_set_as_in_print(typed, shown, generator):
    assert generator.typeset(typed) == shown


# ---------------------------------------------------------------------- links


def test_every_link_and_picture_leads_somewhere(pages):
    anchors = {
        path: {_slug(heading) for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)}
        for path, text in pages.items()
    }
    seen = 0
    for path, text in pages.items():
        text = _without_code(text)
        # A reference without a definition is no link, and no error to any tool.
        assert not re.findall(r"\]\[|^\[[^\]]+\]:", text, flags=re.MULTILINE), path.name
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"https?://", target):
                continue
            file, _, anchor = target.partition("#")
            to = (path.parent / file).resolve() if file else path
            assert to in pages or to.exists(), f"{path.name}: {target}"
            assert not anchor or anchor in anchors[to], f"{path.name}: {target}"
            seen += 1
    assert seen > 100


def test_every_page_is_in_the_navigation_once(pages):
    listed = re.findall(
        r"^```{toctree}\n(.*?)^```$", pages[DOCS / "index.md"], flags=re.DOTALL | re.MULTILINE
    )
    lines = [line for block in listed for line in block.splitlines() if line and not line.startswith(":")]
    entries = [re.sub(r".*<(.*)>", r"\1", line).replace("self", "index") for line in lines]
    for path in pages.keys() - {REPOSITORY / "README.md"}:
        name = str(path.relative_to(DOCS).with_suffix(""))
        assert len([entry for entry in entries if fnmatch(name, entry)]) == 1, name


# ------------------------------------------------------------------- commands


def _commands_in(text):
    """Every command in an indented block or between backticks, on one line."""
    text = re.sub(r"\s*\\\n\s*", " ", text)
    lines = re.findall(r"^    (?:\.venv/bin/)?(tagreel .*)$", text, flags=re.MULTILINE)
    spans = re.findall(r"`(tagreel [^`]*)`", _without_blocks(text))
    return [*lines, *(" ".join(span.split()) for span in spans)]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_command_that_is_named_exists_with_its_options(path, commands):
    for line in _commands_in(path.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)
        name = next((" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in commands), None)
        assert name, f"no such command: {line}"
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert option in commands[name], f"{line}: {name} has no {option}"


def test_the_walk_over_commands_would_notice():
    text = "    tagreel train x --data 'a b' \\\n        --out c   # why\n\n`tagreel check`, `tagreel/x.py`"
    assert list(_commands_in(text)) == [
        "tagreel train x --data 'a b' --out c   # why",
        "tagreel check",
    ]


@pytest.mark.parametrize(
    "path",
    # Which name those of other programs.
    [path for path in WRITTEN if path.name not in ("migration.md", "scale.md")],
    ids=lambda path: str(path.relative_to(REPOSITORY)),
)
def test_every_option_that_is_named_is_one_of_a_command(path, commands):
    known = set().union(*commands.values())
    for span in re.findall(r"`(--[\w-]+)[^`]*`", _without_blocks(path.read_text(encoding="utf-8"))):
        assert span in known, span


# ------------------------------------------------------------------ migration

_MIGRATION = (DOCS / "migration.md").read_text(encoding="utf-8")


def _settings(known):
    """The settings of each row and paragraph, and the recipe that is named there."""
    for block in re.split(r"\n\s*\n|\n(?=[|-])", _MIGRATION):
        # Not those of another code, which stand in the first cell.
        settings = re.findall(r"--set ([^\s`]+)", re.sub(r"^\|[^|]*\|", "", block))
        named = [name for name in re.findall(r"(?:`|tagreel train )([\w-]+)", block) if name in known]
        if settings and settings != ["PATH=VALUE"]:
            assert named, f"no recipe is named beside {settings}"
            yield named[-1], settings


def test_every_setting_is_one_of_the_recipe_beside_it(cli):
    found = list(_settings(recipes.names()))
    assert len(found) > 40
    for name, settings in found:
        code, _, err = cli("recipes", "show", name, *(word for one in settings for word in ("--set", one)))
        assert code == 0, f"{name} {settings}: {err}"


def test_the_models_are_recipes():
    table = _MIGRATION.split("## Models")[1].split("\n## ")[0]
    named = re.findall(
        r"`([a-z]+(?:-\w+)+)`", "".join(row.rsplit("|", 2)[1] for row in table.splitlines() if "|" in row)
    )
    assert len(named) > 12
    assert set(named) <= {*recipes.names(), *recipes.ensembles()}


def test_the_code_runs(capsys):
    [code] = re.findall(r"^```python\n(.*?)^```$", _MIGRATION, flags=re.DOTALL | re.MULTILINE)
    names = {}
    exec(code, names)
    assert names["descriptor"].shape == (2, 1024)
