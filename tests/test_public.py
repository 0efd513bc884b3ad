"""The public surface: what the package exports, and that all of it says what it is."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tagreel

PACKAGE = Path(tagreel.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stat().st_size)


def _public(tree, name):
    """Every public module, class, function and method, with its dotted name."""
    yield name, tree
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("_"):
                continue
            if isinstance(node, ast.ClassDef):
                yield from _public(node, f"{name}.{node.name}")
            elif not any(ast.unparse(d).endswith((".setter", "overload")) for d in node.decorator_list):
                yield f"{name}.{node.name}", node


def test_all_is_sorted_and_each_name_once():
    assert tagreel.__all__ == sorted(set(tagreel.__all__))


@pytest.mark.parametrize("name", tagreel.__all__)
def test_every_exported_name_is_there_and_comes_from_the_package(name):
    value = getattr(tagreel, name)
    assert value.__module__.startswith("tagreel.")
    assert value.__name__ == name
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_a_name_that_is_not_exported_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tagreel' has no attribute 'lode'"):
        tagreel.lode  # noqa: B018


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_public_name_opens_with_a_sentence(path):
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for name, node in _public(ast.parse(path.read_text(encoding="utf-8")), module):
        lines = (ast.get_docstring(node) or "").splitlines()
        assert lines, f"{name} has no docstring"
        assert lines[0].endswith("."), f"{name}: its first line is no sentence: {lines[0]!r}"


@pytest.mark.parametrize("module", ["tagreel", "tagreel.cli"])
def test_help_need_not_wait_for_torch(module):
    code = f"import {module}, sys; print([m for m in ('torch', 'numpy', 'pyarrow') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
