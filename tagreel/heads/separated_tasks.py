"""Each group of classes has a descriptor and a logistic head of its own, z_g = W_g x_g + b_g.

Zou et al., "The YouTube-8M Kaggle Competition: Challenges and Methods", 2017, arXiv 1706.09274, "separated
tasks": one encoder a vertical of the vocabulary, 25 in all. Their code permutes the labels into the order of
the verticals; here the logits come out in the order of the classes.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from tagreel.errors import RecipeError
from tagreel.layers.product import Linear


class SeparatedTasks(nn.Module):
    """(B, ΣD_g) in, the tasks' descriptors side by side; logits (B, C) out.

    `widths` are the D_g and `classes_per_task` the numbers of classes; without them all is one task.
    `vocabulary` is the path of YouTube-8M's vocabulary.csv: the tasks are its verticals in the order of their
    names, `(Unknown)` first, and their classes those of that Vertical1. It is read when a training starts
    (`prepare`); afterwards the model carries the order itself. Without a vocabulary the tasks take the
    classes as they come.
    """

    order: Tensor

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        widths: tuple[int, ...] = (),
        classes_per_task: tuple[int, ...] = (),
        vocabulary: str | None = None,
    ) -> None:
        super().__init__()
        self.widths, self.classes_per_task = widths or (dim,), classes_per_task or (classes,)
        if len(self.widths) != len(self.classes_per_task):
            raise ValueError(
                f"{len(widths)} widths and {len(classes_per_task)} classes_per_task; expected one a task"
            )
        if sum(self.widths) != dim:
            raise ValueError(f"widths={widths} are {sum(widths):,} together; the descriptor is {dim:,} wide")
        if sum(self.classes_per_task) != classes:
            raise ValueError(
                f"classes_per_task={classes_per_task} are {sum(classes_per_task):,} together; "
                f"there are {classes:,} classes"
            )
        self.vocabulary = vocabulary
        pairs = zip(self.widths, self.classes_per_task, strict=True)
        self.tasks = nn.ModuleList(Linear(*pair) for pair in pairs)
        with torch.no_grad():
            for task in self.tasks:
                assert isinstance(task, nn.Linear)
                nn.init.xavier_uniform_(task.weight)
                task.bias.zero_()
        # Where each class stands among those of all tasks side by side.
        self.register_buffer("order", torch.arange(classes))

    def prepare(self) -> None:
        """Read the vocabulary, if there is one; raises `RecipeError` when it does not fit."""
        if self.vocabulary is None:
            return
        verticals = _verticals(self.vocabulary)
        counts = Counter(verticals)
        found = tuple(counts[vertical] for vertical in sorted(counts))
        if found != self.classes_per_task:
            raise RecipeError(
                f"SeparatedTasks: {self.vocabulary} has verticals of {found} classes; classes_per_task is "
                f"{self.classes_per_task}"
            )
        # Stable: within a vertical the classes keep their order.
        by_vertical = sorted(range(len(verticals)), key=verticals.__getitem__)
        self.order.copy_(torch.tensor(by_vertical).argsort())

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes, each from the descriptor of its task."""
        parts = torch.split(x, list(self.widths), dim=1)
        logits = [task(part) for task, part in zip(self.tasks, parts, strict=True)]
        return torch.cat(logits, dim=1).index_select(1, self.order)


def _verticals(path: str) -> list[str]:
    """The Vertical1 of class 0, 1, 2, ..."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"SeparatedTasks: {path}: {error}") from error
    if not rows or not {"Index", "Vertical1"} <= rows[0].keys():
        raise RecipeError(f"SeparatedTasks: {path}: expected a CSV file with columns Index and Vertical1")
    verticals = {row["Index"]: row["Vertical1"] or "(Unknown)" for row in rows}
    if verticals.keys() != set(map(str, range(len(rows)))):
        raise RecipeError(f"SeparatedTasks: {path}: expected each Index from 0 to {len(rows) - 1:,} once")
    return [verticals[str(index)] for index in range(len(rows))]
