"""`tagreel extract-branch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagreel.commands._shared import Checkpoint, Json, Run, Trust, finish, look_here, printer


def extract_branch(
    run: Run,
    out: Annotated[Path, typer.Option(metavar="MODEL", help="The folder for the model; it must be new.")],
    branch: Annotated[int, typer.Option(metavar="N", help="Which of the networks; the first is 0.")] = 0,
    checkpoint: Checkpoint = "best",
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Take one network out of a mixture, as a model of its own.

    A recipe with a mixture (NeXtVLAD's nextvlad-mix3-... recipes, or any other with --set
    mixture=tagreel.layers.mixture.Mixture) trains several networks side by side, each of which learns from
    all of them. Together they are best; one alone is a third of the size and the work where they are three.
    Nothing is trained here, and `evaluate` and `predict` take MODEL like RUN. Which one is best, `evaluate`
    says.

    Example: tagreel extract-branch tagreel-demo/mixture --branch 0 --out tagreel-demo/branch

    after: tagreel train smoke --data tagreel-demo/data/train* --set mixture=tagreel.layers.mixture.Mixture
    --out tagreel-demo/mixture
    """
    from tagreel.extract_branch import extract_branch as extract

    say = printer(as_json)
    look_here(trust)
    result = extract(run, out, branch=branch, checkpoint=checkpoint, trust=tuple(trust))
    say(f"wrote {out}: branch {branch}, {result.parameters:,} of {result.whole:,} parameters")
    say(f"next: tagreel evaluate {out} --data SRC")
    finish(as_json, {"out": str(out), "branch": branch, "parameters": result.parameters})
