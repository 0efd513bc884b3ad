"""Checks of constructor options, each with the value that was found in its message."""

from __future__ import annotations


def one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    """The value, if it is among the choices; else `ValueError`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}; choose one of: {', '.join(choices)}")
    return value


def at_least_one(name: str, value: int) -> int:
    """The value, if it is 1 or more; else `ValueError`."""
    if value < 1:
        raise ValueError(f"{name}={value!r}; it must be 1 or more")
    return value


def same_options(ours: object, theirs: object, *names: str) -> None:
    """`ValueError` when two metrics that are to be merged differ in one of the named attributes."""
    for name in names:
        mine, other = getattr(ours, name), getattr(theirs, name)
        if mine != other:
            raise ValueError(f"cannot merge {name}={other!r} into {name}={mine!r}")
