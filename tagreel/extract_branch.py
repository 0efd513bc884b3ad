"""One network of a trained mixture as a model of its own: as many times smaller as there are branches.

    tagreel extract-branch RUN --branch 0 --out MODEL

The networks of a mixture learn from the whole of it (`tagreel.layers.mixture`), and one alone is a result
too: Lin, Xiao, Fan, "NeXtVLAD", 2018, arXiv 1811.05014, table 2, first row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tagreel.checkpoint import check_new, facts, find, load_tagger, save_model
from tagreel.errors import RecipeError
from tagreel.recipe import Recipe
from tagreel.tagger import build
from tagreel.tags import carry


@dataclass(frozen=True)
class Extracted:
    """What `extract_branch` wrote: the model's folder, its parameters and those of the whole mixture."""

    path: Path
    parameters: int
    whole: int


def extract_branch(
    run: Path, out: Path, *, branch: int = 0, checkpoint: str = "best", trust: tuple[str, ...] = ()
) -> Extracted:
    """Write to `out` the model that branch number `branch` of a run's mixture is.

    Raises `RecipeError` when `out` exists, the model is no mixture or it has no such branch.
    """
    check_new(out)
    folder = find(run, checkpoint)
    mixture = load_tagger(folder, trust=trust)
    if mixture.mixture is None:
        raise RecipeError(f"{run}: is one network already; expected a recipe with a mixture")
    if not 0 <= branch < len(mixture.networks):
        raise RecipeError(
            f"--branch is {branch}; {run} has {len(mixture.networks)}, expected 0 to "
            f"{len(mixture.networks) - 1}"
        )
    network = mixture.networks[branch]
    recipe = recipe_of_branch(mixture.recipe, branch)
    model = build(recipe, features=mixture.features, classes=mixture.classes, label_names=mixture.label_names)
    model.provenance = mixture.provenance
    model.load_state_dict(network.state_dict())
    model.fire(network.fired)

    noted = facts(folder)
    # The scores of the mixture's validation are not this model's.
    noted |= {"branch": branch, "validation": None}
    save_model(out, model, facts=noted)
    carry(folder, out)
    counts = [sum(p.numel() for p in found.parameters()) for found in (model, mixture)]
    return Extracted(out, *counts)


def recipe_of_branch(recipe: Recipe, branch: int) -> Recipe:
    """The recipe of one network of a mixture."""
    name = recipe.about.name
    about = replace(
        recipe.about,
        name=f"{name}-branch-{branch}" if name else "",
        summary=f"Branch {branch} of a mixture. {recipe.about.summary}".strip(),
        published={},
        parameters=None,
    )
    return replace(recipe, mixture=None, about=about)
