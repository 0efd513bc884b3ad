"""Typed data with slots that hold `functools.partial` of the class that fills them, `partial(NetVLAD)`.

A class declares its options once, in its constructor, as parameters that have a default. Here such data are
checked against their declarations, one value in them is changed by its path, and they become JSON and come
back. What is data is a dataclass, a mapping, a tuple, a partial, or a plain value.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, Literal

from tagreel.errors import RecipeError

Part = partial[Any]
_SAFE_PACKAGES = ("tagreel", "torch.optim")


def override_part(part: Part, setting: str, *, where: str) -> Part:
    """What fills a slot, with one of its options changed: `members=7`; `where` names the slot in errors."""
    option, equals, text = setting.partition("=")
    if not equals:
        raise RecipeError(f"--set {setting}: expected OPTION=VALUE")
    changed = set_at(part, option.strip().split("."), text.strip(), where, ())
    check(changed, where)
    assert isinstance(changed, partial)
    return changed


def set_at(node: Any, keys: list[str], text: str, where: str, trust: tuple[str, ...], hint: Any = Any) -> Any:
    """The data with the value at a path (`keys`) changed to what a text says; `where` is the path so far."""
    if not keys:
        value = _parse(text, trust)
        # What only fits as the text it is stays that: clip=none, or a file whose name is a number.
        return text if _fits(text, hint) and not _fits(value, hint) else value
    key, rest = keys[0], keys[1:]
    here = f"{where}.{key}" if where else key
    if isinstance(node, partial):
        options = _options(node.func)
        if key not in options:
            raise no_such(where, f"{node.func.__name__} has no option", key, options)
        current = node.keywords.get(key, options[key].default)
        declared = hints_of(getattr(node.func, "__init__", node.func)).get(key, Any)
        return partial(
            node.func, **{**node.keywords, key: set_at(current, rest, text, here, trust, declared)}
        )
    if is_dataclass(node) and not isinstance(node, type):
        known = [f.name for f in fields(node)]
        if key not in known:
            raise no_such(where or "recipe", "there is no setting", key, known)
        declared = hints_of(type(node))[key]
        return replace(node, **{key: set_at(getattr(node, key), rest, text, here, trust, declared)})
    if isinstance(node, Mapping):
        if key not in node:
            raise no_such(where, "there is no", key, node)
        return {**node, key: set_at(node[key], rest, text, here, trust)}
    if isinstance(node, tuple):
        if not key.isdigit() or int(key) >= len(node):
            raise no_such(where, "there is no item", key, [str(i) for i in range(len(node))])
        index = int(key)
        return (*node[:index], set_at(node[index], rest, text, here, trust), *node[index + 1 :])
    raise RecipeError(f"{here}: {where} is {node!r} and has nothing inside")


def _parse(text: str, trust: tuple[str, ...]) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    if text.startswith(tuple(f"{package}." for package in (*_SAFE_PACKAGES, *trust))):
        return partial(_import_class(text, trust))
    try:
        return _tupled(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value


def no_such(where: str, what: str, key: str, known: typing.Iterable[str]) -> RecipeError:
    """What to raise for a name that is not among those known; suggests the nearest."""
    listed = list(known)
    close = difflib.get_close_matches(key, listed, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return RecipeError(f"{where}: {what} {key!r}{hint} (it has: {', '.join(listed) or 'none'})")


def _options(func: Any) -> dict[str, inspect.Parameter]:
    """What a recipe may set of a class: the constructor's parameters that have a default."""
    parameters = inspect.signature(func).parameters
    return {name: p for name, p in parameters.items() if p.default is not inspect.Parameter.empty}


def check(node: Any, where: str) -> None:
    """Raise `RecipeError` for the first name or value in the tree that does not fit its declaration."""
    if isinstance(node, partial):
        if node.args:
            raise RecipeError(f"{where}: partial({node.func.__name__}, ...) takes its options by keyword")
        options, hints = _options(node.func), hints_of(getattr(node.func, "__init__", node.func))
        for name, value in node.keywords.items():
            if name not in options:
                raise no_such(where, f"{node.func.__name__} has no option", name, options)
            check_value(value, hints.get(name, Any), f"{where}.{name}")
            check(value, f"{where}.{name}")
    elif is_dataclass(node) and not isinstance(node, type):
        hints = hints_of(type(node))
        for item in fields(node):
            here = f"{where}.{item.name}" if where else item.name
            check_value(getattr(node, item.name), hints[item.name], here)
            check(getattr(node, item.name), here)
    elif isinstance(node, Mapping):
        for name, value in node.items():
            check(value, f"{where}.{name}")
    elif isinstance(node, tuple):
        for index, value in enumerate(node):
            check(value, f"{where}.{index}")


def hints_of(thing: Any) -> dict[str, Any]:
    """The declared types of a class or function, as far as they can be known."""
    try:
        return typing.get_type_hints(thing)
    except NameError:  # a foreign class whose annotations need names we do not have
        return {}


def check_value(value: Any, hint: Any, where: str) -> None:
    """Raise `RecipeError` where a value is not of its declared type."""
    if not _fits(value, hint):
        shown = hint.__name__ if isinstance(hint, type) else str(hint)
        for module in ("collections.abc.", "functools.", "typing.", "tagreel.recipe."):
            shown = shown.replace(module, "")
        found = value.func.__name__ if isinstance(value, partial) else repr(value)
        # As on a command line, where a class is named.
        name = isinstance(value, str) and "partial" in shown
        mended = "; a class is named with its module, such as tagreel.inference.MultiCrop" if name else ""
        raise RecipeError(f"{where}: expected {shown}, found {found}{mended}")


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in args)
    if origin is Literal:
        return value in args
    if origin is partial:
        return isinstance(value, partial)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if args[-1:] == (Ellipsis,):
            return all(_fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_fits, value, args))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(item, args[1]) for item in value.values())
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def encode(node: Any) -> Any:
    """Plain data for JSON; a class becomes its name, with every option spelled out."""
    if isinstance(node, partial):
        defaults = {name: p.default for name, p in _options(node.func).items()}
        options = {name: encode(value) for name, value in (defaults | node.keywords).items()}
        module, name = node.func.__module__, node.func.__qualname__
        if getattr(sys.modules.get(module), name, None) is not node.func:
            raise RecipeError(f"{module}.{name} cannot be found again by that name; define it in a module")
        return {"class": f"{node.func.__module__}.{node.func.__qualname__}", "options": options}
    if is_dataclass(node) and not isinstance(node, type):
        return {item.name: encode(getattr(node, item.name)) for item in fields(node)}
    if isinstance(node, Mapping):
        return {name: encode(value) for name, value in node.items()}
    if isinstance(node, tuple | list):
        return [encode(value) for value in node]
    return node


def decode(value: Any, trust: tuple[str, ...]) -> Any:
    """What `encode` made, back again; classes come from tagreel, torch.optim and the packages in `trust`."""
    if isinstance(value, dict):
        if set(value) == {"class", "options"}:
            options = {name: decode(option, trust) for name, option in value["options"].items()}
            return partial(_import_class(value["class"], trust), **options)
        return {name: decode(item, trust) for name, item in value.items()}
    return tuple(decode(item, trust) for item in value) if isinstance(value, list) else value


def _import_class(name: str, trust: tuple[str, ...]) -> type:
    """Import a class from a trusted package, and nothing that merely is at hand in one of its modules."""
    allowed = tuple(f"{package}." for package in (*_SAFE_PACKAGES, *trust))
    module, _, attribute = name.rpartition(".")
    if not name.startswith(allowed):
        raise RecipeError(
            f"{name} is not of a trusted package ({', '.join((*_SAFE_PACKAGES, *trust))}); "
            f"if you know it: --trust {module.partition('.')[0]}"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        ours = name.startswith("tagreel.")
        where = "in this version of tagreel" if ours else "here; install its package, or go to its folder"
        raise RecipeError(f"there is no {name} {where}") from error
    if not isinstance(found, type) or not f"{found.__module__}.".startswith(allowed):
        raise RecipeError(f"{name} is not a class of a trusted package")
    return found
