"""The command line: a file a command in `commands`, each of which parses, calls, and prints.

Torch is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tagreel.commands import (
    average,
    calibrate,
    check,
    compress,
    convert,
    dataset,
    demo,
    download,
    encoders,
    ensemble,
    evaluate,
    extract,
    extract_branch,
    predict,
    pretrain,
    recipes,
    remember,
    reproduce,
    segments,
    tag,
    tags,
    train,
)
from tagreel.commands._shared import finish
from tagreel.errors import RecipeError, TagreelError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Learn tags for videos from per-second audio and visual features, and tag new videos.\n\n"
    "New here? Run: tagreel demo",
)
# In the order of --help: the demo, then the way of the data.
app.command()(demo.demo)
app.add_typer(recipes.app, name="recipes")
app.command()(encoders.encoders)
app.command()(extract.extract)
app.add_typer(dataset.app, name="dataset")
app.add_typer(download.app, name="download")
app.command()(check.check)
app.command()(convert.convert)
app.command()(segments.segments)
app.command()(train.train)
app.command()(reproduce.reproduce)
app.command()(pretrain.pretrain)
app.command()(evaluate.evaluate)
app.command()(calibrate.calibrate)
app.command()(tags.tags)
app.command()(predict.predict)
app.command()(tag.tag)
app.command()(remember.remember)
app.command()(average.average)
app.command("extract-branch")(extract_branch.extract_branch)
app.add_typer(ensemble.app, name="ensemble")
app.command()(compress.compress)


def run(arguments: Sequence[str]) -> int:
    """Run one command; the exit code. Errors that a user can mend are one line on stderr and code 2."""
    try:
        _check_alone(arguments)
        result = app(_repeat_sources(list(arguments)), standalone_mode=False, prog_name="tagreel")
        return result if isinstance(result, int) else 0
    except (TagreelError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            message = f"{where}{error.strerror or error}"
        print(f"tagreel: {message}", file=sys.stderr)  # noqa: T201
        finish("--json" in arguments, {"error": message})
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # Typer's own complaints about arguments know how to print themselves.
        if callable(show := getattr(error, "show", None)):
            show()
            finish("--json" in arguments, {"error": str(getattr(error, "message", error))})
            return int(getattr(error, "exit_code", 2))
        raise


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Tag videos."""
    if show:
        from tagreel import __version__

        print(f"tagreel {__version__}")  # noqa: T201
        raise typer.Exit


def _check_alone(arguments: Sequence[str]) -> None:
    """Several processes of torchrun that each did the same would write over one another."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and arguments[:1] not in (["train"], ["evaluate"]):
        raise RecipeError("torchrun is for `tagreel train` and `tagreel evaluate`; start this without it")


def _repeat_sources(arguments: list[str]) -> list[str]:
    """`--data a b c`, as a shell makes it of a bare `*`, becomes `--data a --data b --data c`.

    Only behind the command's own argument (`tagreel train RECIPE --data ...`), so that it is not swallowed.
    """
    if len(arguments) < 2 or arguments[1].startswith("-"):
        return arguments
    repeated, option, taken = arguments[:2], "", 0
    for argument in arguments[2:]:
        if argument.startswith("-"):
            option, taken = argument, 0
        elif option in ("--data", "--validate", "--target", "--score"):
            if taken:
                repeated.append(option)
            taken += 1
        repeated.append(argument)
    return repeated
