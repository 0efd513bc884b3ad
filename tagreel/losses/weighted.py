"""Cross entropy in which positives weigh other than negatives, or rare classes other than frequent ones.

    Σ_c -2 w_c [α y_c log p_c + (1 - α) (1 - y_c) log(1 - p_c)]

α is Willow's (github.com/antoine77340/Youtube-8M-WILLOW, `losses.py`; its recipes keep 0.5, plain cross
entropy). w is given as a file, or follows from a file of class counts n_c by their effective number: Cui,
Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on Effective Number of Samples", 2019, arXiv 1901.05555,
section 4:

    w_c ∝ (1 - β) / (1 - β^n_c),   mean 1

A class's weight is on all its terms, so that probabilities stay probabilities, which GAP compares between
classes; only α shifts them. CMU Informedia (2017) found no gain in weighting on YouTube-8M.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.errors import RecipeError
from tagreel.losses._terms import mean_over_videos


class WeightedCrossEntropy(nn.Module):
    """Logits (B, C), labels (B, C) in [0, 1], optionally what was rated (B, C) in; one number out.

    `weights` is the path of a JSON list of the C weights w, used as they are. `counts` is that of a JSON list
    of how many videos each class has, or the `model.json` of a checkpoint of any earlier training on the
    data, which knows them; `beta` then goes from 0, all alike, towards 1, weights as 1/n. The file is read
    when a training starts (`prepare`), or by the first call.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        weights: str | None = None,
        counts: str | None = None,
        beta: float = 0.999,
    ) -> None:
        super().__init__()
        if not 0 < alpha < 1 or not 0 <= beta < 1:
            raise ValueError(
                f"WeightedCrossEntropy: alpha={alpha}, beta={beta}; expected more than 0 to less than 1, "
                "and 0 to less than 1"
            )
        if weights is not None and counts is not None:
            raise ValueError("WeightedCrossEntropy: weights and counts are both set; expected one of them")
        self.alpha, self.weights, self.counts, self.beta = alpha, weights, counts, beta
        self.register_buffer("class_weights", None)

    def prepare(self) -> None:
        """Read the file, if one is set; raises `RecipeError` where it does not hold such numbers."""
        if self.weights is not None:
            self.class_weights = _numbers(self.weights).float()
        elif self.counts is not None:
            seen = _numbers(self.counts).clamp(min=1)
            weights = 1 / -torch.expm1(seen * torch.log(torch.tensor(self.beta, dtype=seen.dtype)))
            self.class_weights = (weights / weights.mean()).float()

    def forward(self, logits: Tensor, labels: Tensor, rated: Tensor | None = None) -> Tensor:
        """The mean over the B videos; raises `RecipeError` when the file is for another number of classes."""
        logits = logits.float()
        if self.class_weights is None:
            self.prepare()
        yes = -2 * self.alpha * F.logsigmoid(logits)
        no = -2 * (1 - self.alpha) * F.logsigmoid(-logits)
        if self.class_weights is not None:
            found, classes = len(self.class_weights), logits.shape[1]
            if found != classes:
                raise RecipeError(
                    f"loss: {self.weights or self.counts} holds {found:,} numbers; expected one for each of "
                    f"the {classes:,} classes"
                )
            weights = self.class_weights.to(logits.device)
            rated = weights.expand_as(logits) if rated is None else rated * weights
        return mean_over_videos(yes, no, labels, rated)


def _numbers(path: str) -> Tensor:
    """The C numbers in a JSON file."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"loss: {path}: {getattr(error, 'strerror', None) or error}") from error
    if isinstance(data, dict):
        facts = data.get("facts")
        data = facts.get("train_counts") if isinstance(facts, dict) else None
    numbers = isinstance(data, list) and all(isinstance(n, int | float) and 0 <= n < 1e300 for n in data)
    if not numbers or not any(data):
        raise RecipeError(f"loss: {path}: expected a JSON list with a number for each class, none negative")
    return torch.tensor(data, dtype=torch.float64)
