"""Who may import whom: the architecture, read from the sources and held to this table."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import tagreel

PACKAGE = Path(tagreel.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
EVERYONE_MAY = {"errors"}
OPEN_SETS = {"readers", "encoders", "pools", "heads", "losses", "metrics", "ensembles", "recipes", "commands"}

# What a member of a folder may import besides what starts with `_` in its own folder.
FOLDERS = {
    "layers": {"layers"},
    "_decoder": {"_decoder"},
    "readers": {"batch", "provenance"},
    "encoders": {"decoding", "runtime"},
    "pools": {"layers"},
    "heads": {"layers"},
    "losses": set(),
    "metrics": set(),
    "ensembles": set(),
    "recipes": {
        "recipe",
        "sampling",
        "schedule",
        "inference",
        "layers",
        "pools",
        "heads",
        "losses",
        "ensembles",
    },
}

# Data flows from left to right; a stage imports what stands before it, and the layers.
STAGES = """
    errors display provenance batch runtime distributed vocabulary sampling schedule inference parts
    recipe remote source smaller loader model tagger folding sharding ensemble streaming evidence
    storage files decoding encoding projection extractor media shards extract dataset lists predictions
    recorded checkpoint tags report chart timeline tagging evaluate panel fit_ensemble ranking
    predict_parts predict_rows predict calibrate remember average extract_branch compress catalogue
    check web download official unpack convert segments teacher optimization memory log loop train
    train_ensemble claims trials verdicts reproduce pretrain demo cli
""".split()  # noqa: SIM905

# A command imports what it needs once it runs.
FOLDERS["commands"] = {*STAGES[: STAGES.index("cli")], "readers"}

# The open sets are found by walking or named by a recipe; these stages alone name a member of one.
NAMES_MEMBERS = {
    "folding": {"pools"},  # knows what of a pool can be folded
    "source": {"readers"},  # walks the folder
    "encoding": {"encoders"},  # walks the folder
    "shards": {"readers"},  # writes what the Arrow reader reads
    "demo": {"readers"},  # writes the planted problem as a data set
    "evaluate": {"metrics"},
    "calibrate": {"metrics"},
    "panel": {"metrics"},
    "fit_ensemble": {"ensembles"},  # walks the folder
    "train": {"metrics"},
    "cli": {"commands"},
}

# Whose parts must work in anyone's code.
ONLY_TORCH = {"pools", "heads", "losses", "ensembles"}


def _name(path):
    """A module's path below the package: ("pools", "mean"), ("model",), ("__init__",)."""
    return path.relative_to(PACKAGE).with_suffix("").parts


def _is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _imports(tree, *, at_start=False):
    """Each import's dotted target; `at_start` leaves out what runs later or never."""
    nodes = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            assert node.module is not None
            for alias in node.names:
                target = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = target.with_suffix(".py").exists() or (target / "__init__.py").exists()
                yield f"{node.module}.{alias.name}" if is_module else node.module
        elif not (at_start and (_is_type_checking(node) or isinstance(node, ast.FunctionDef))):
            nodes.extend(ast.iter_child_nodes(node))


def _ours(targets):
    """Paths below the package of what is imported from it."""
    return [tuple(target.split(".")[1:]) for target in targets if target.split(".")[0] == "tagreel"]


def _tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


every_source = pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.stat().st_size], ids=lambda path: ".".join(_name(path))
)


def test_the_walk_finds_the_sources():
    assert {("pools", "mean"), ("model",), ("cli",)} <= {_name(path) for path in SOURCES}


def test_every_module_has_its_place_in_the_table():
    for path in SOURCES:
        folder, *rest = _name(path)
        if rest:
            assert folder in FOLDERS, f"{folder}/ is not in FOLDERS: who may import it, and whom does it?"
        elif not folder.startswith("__"):
            assert folder in STAGES, f"{folder}.py is not in STAGES: where does data pass it?"


@every_source
def test_imports_follow_the_table(path):
    folder, *rest = _name(path)
    for target in _ours(_imports(_tree(path))):
        if folder.startswith("__"):  # the package's front doors, which open lazily
            continue
        if folder == "cli" and not target:  # the version
            continue
        assert target, "nothing else inside imports the package itself"
        assert len(target) <= 2, f"{target} is more than three names deep"
        if target[0] in EVERYONE_MAY:
            continue
        if rest:
            private_sibling = target[0] == folder and target[-1].startswith("_")
            assert private_sibling or target[0] in FOLDERS[folder], f"{target} in {folder}/"
        elif target[0] in OPEN_SETS:
            assert target[0] in NAMES_MEMBERS.get(folder, set()), f"{target} in {folder}.py"
        elif target[0] != "layers":
            assert target[0] in STAGES[: STAGES.index(folder)], f"{target} in {folder}.py, which comes first"


@every_source
def test_nobody_imports_a_recipe(path):
    tree = _tree(path)
    assert not [target for target in _ours(_imports(tree)) if target[:1] == ("recipes",)]
    if _name(path) != ("recipe",):  # which finds them, by their folder's name
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        assert not [t for t in texts if isinstance(t, str) and t.startswith("tagreel.recipes")]


@every_source
def test_parts_need_torch_and_nothing_else(path):
    if _name(path)[0] in ONLY_TORCH:
        roots = {target.split(".")[0] for target in _imports(_tree(path))}
        assert roots <= {"torch", "tagreel"} | sys.stdlib_module_names


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if _name(path)[0] in ("__init__", "__main__", "cli", "commands", "display")],
    ids=lambda path: ".".join(_name(path)),
)
def test_the_front_doors_import_nothing_heavy_until_they_are_used(path):
    targets = list(_imports(_tree(path), at_start=True))
    assert {target[0] for target in _ours(targets)} <= {"errors", "display", "commands"}
    assert not {target.split(".")[0] for target in targets} & {"torch", "numpy", "pyarrow"}


def test_every_init_below_the_top_is_empty():
    below = [path for path in SOURCES if path.name == "__init__.py" and path.parent != PACKAGE]
    assert [path for path in below if path.stat().st_size] == []
    with_sources = {path.parent for path in SOURCES}
    assert {path.parent for path in below} == with_sources - {PACKAGE}


def test_the_table_itself_would_notice():
    tree = ast.parse(
        "def f():\n    from tagreel.pools import mean\nimport torch\nfrom tagreel.batch import Batch"
    )
    assert sorted(_imports(tree)) == ["tagreel.batch", "tagreel.pools.mean", "torch"]
    assert sorted(_imports(tree, at_start=True)) == ["tagreel.batch", "torch"]
    with pytest.raises(AssertionError, match="absolute"):
        list(_imports(ast.parse("from . import x")))
