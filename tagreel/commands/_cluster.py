"""What the commands share that spread their work over machines."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from tagreel.errors import RecipeError

Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(
        help="local, or ray: the same work on a Ray cluster that shares the data and --out. A worker takes "
        "as many cores as --threads says."
    ),
]
Part = Annotated[
    str,
    typer.Option(metavar="I/N", help="On the I-th of N machines that share --out: its share of the work."),
]


def share(part: str) -> tuple[int, int]:
    """I and N of `--part`."""
    first, slash, count = part.partition("/")
    if not slash or not first.isdigit() or not count.isdigit() or not 1 <= int(first) <= int(count):
        raise RecipeError(f"--part {part}: expected I/N, such as 2/8, I from 1 to N")
    return int(first), int(count)
