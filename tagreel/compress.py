"""A model in fewer bytes: the same weights in 16 or 8 bits, what that costs, and what fits a budget.

    tagreel compress MODEL --out NEW --budget 1GB --data DEV

A size is that of all parameters and buffers as they are stored, batch norm's statistics among them; the
file's header and the names of the classes come on top, and count where a budget is held. A model or an
ensemble is written as it is but for its weights, all in one of the ways of `tagreel.storage`; computed with
is float32, as ever.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tagreel.checkpoint import TAGS, check_new, model_files, storage_of
from tagreel.errors import RecipeError
from tagreel.evaluate import evaluate
from tagreel.files import read_json, read_tensors, write_json, write_tensors
from tagreel.loader import Loader
from tagreel.model import Model
from tagreel.recipe import Recipe, from_json, to_json
from tagreel.storage import EIGHT_BITS, decode, encode, size
from tagreel.tagger import Tagger, build, with_inference
from tagreel.tags import carry

_UNITS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3}


@dataclass(frozen=True)
class Row:
    """A model in one storage: its `size` in bytes, how far its weights are off, its `metrics` on data.

    `error` is the root mean square of what a tensor's weights are off, as a share of that of its weights,
    and `largest_error` the largest, as a share of its largest weight; each that of the worst tensor.
    """

    storage: str
    size: int
    error: float
    largest_error: float
    metrics: dict[str, float]


def measure(
    model: Model,
    storage: str,
    *,
    loader: Loader | None = None,
    device: torch.device,
    on_batch: Callable[[int], None] | None = None,
) -> Row:
    """What the model is in this storage, evaluated with the decoded weights on the loader's videos, if any.

    Nothing is written, and the model ends with the weights that it had. Raises `RecipeError` for one without
    weights, or with such that are not finite.
    """
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    before = {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}
    if not before:
        raise RecipeError("the model has no weights of its own, so there is nothing to compress")
    errors, metrics = [(0.0, 0.0)], {}
    try:
        for name, tensor in before.items():
            decoded = decode(encode({name: tensor}, storage), path=name)[name]
            weights[name].copy_(decoded)
            if tensor.is_floating_point():
                errors.append(_errors(decoded, tensor))
        if loader is not None:
            metrics = evaluate(model, loader, device=device, on_batch=on_batch).metrics
    finally:
        for name, tensor in before.items():
            weights[name].copy_(tensor)
    error, largest_error = map(max, zip(*errors, strict=True))
    return Row(storage, size(before, storage), error, largest_error, metrics)


def best_first(model: Model, rows: Sequence[Row], budget: int) -> list[Row]:
    """The rows that may fit `budget` bytes: by the metric that the recipe chooses by, else by their error.

    Raises `RecipeError` when none fits.
    """
    fitting = [row for row in rows if row.size <= budget]
    if not fitting:
        raise _too_large(budget, "weights", min((row.size, row.storage) for row in rows))
    metric = next((part.recipe.training.best_by for part in model.modules() if isinstance(part, Tagger)), "")
    return sorted(fitting, key=lambda row: (-row.metrics.get(metric, 0.0), row.error))


def check(folder: Path, out: Path | None = None) -> None:
    """Raise `RecipeError` when `out` exists already, or the model in `folder` is in 8 bits already."""
    if out is not None:
        check_new(out)
    for path in model_files(folder):
        if path.name == "model.json" and (storage := storage_of(path.parent)) in EIGHT_BITS:
            raise RecipeError(f"{path.parent}: is in {storage} already; give the model that it was made from")


def compress(
    folder: Path,
    out: Path,
    storages: Sequence[str],
    *,
    budget: int | None = None,
    settings: Sequence[str] = (),
    trust: tuple[str, ...] = (),
) -> tuple[str, int]:
    """Write the model or ensemble in `folder` to `out`, in the first of the storages whose files fit.

    That storage, and the bytes of the files. `settings` of its inference are kept in what is written. Raises
    `RecipeError` when none fits, and as `check` does.
    """
    check(folder, out)
    partial, tried = out.with_name(out.name + ".partial"), []
    for storage in storages:
        shutil.rmtree(partial, ignore_errors=True)
        for path in model_files(folder):
            copy = partial / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.name == "model.safetensors":
                write_tensors(copy, encode(read_tensors(path), storage))
            elif path.name == "model.json":
                described = read_json(path) | {"storage": storage}
                recipe = from_json(described["recipe"], where=str(path), trust=trust)
                described["recipe"] = to_json(with_inference(recipe, settings, trust=trust))
                write_json(copy, described)
            elif path.name == TAGS and settings:  # calibrated was what it scored without them
                carry(path.parent, copy.parent)
            else:
                shutil.copyfile(path, copy)
        written = sum(path.stat().st_size for path in model_files(partial))
        if budget is None or written <= budget:
            os.replace(partial, out)
            return storage, written
        tried.append((written, storage))
    shutil.rmtree(partial)
    assert budget is not None
    raise _too_large(budget, "files", min(tried))


def recipe_size(recipe: Recipe, storage: str = "float32") -> int:
    """The bytes of a recipe's model as it is stored, without allocating it.

    Of all that is stored: parameters, batch norm's statistics and the 8 bytes of each one's counter, fixed
    scales. The papers count less: NeXtVLAD's 944.57 MB leave out the mixture's gate, the whitening's scale
    and the counters (44,708 bytes), NL-NetVLAD's 993.9 MiB all that is not trained (0.13 MiB). Raises
    `RecipeError` where the recipe leaves widths or classes open.
    """
    with torch.device("meta"):
        model = build(recipe)
    return size(model.state_dict(), storage)


def parse_size(text: str) -> int:
    """The bytes of "1GB" (10^9), "10MB" (10^6), "995MiB" (995·2^20); raises `RecipeError` for other words."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMG]?)(i?)B", text.strip())
    if found is None or (found[3] and not found[2]):
        raise RecipeError(f"--budget {text}: expected a size such as 10MB, 1GB (10^9 bytes) or 1GiB (2^30)")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS[found[2]])


def show_size(count: int) -> str:
    """Bytes in both units: "944.57 MB (900.81 MiB)"."""
    return f"{count / 1e6:,.2f} MB ({count / 2**20:,.2f} MiB)"


def _too_large(budget: int, what: str, smallest: tuple[int, str]) -> RecipeError:
    count, storage = smallest
    return RecipeError(
        f"--budget: nothing fits {show_size(budget)}; the {what} of the smallest, {storage}, take "
        f"{show_size(count)}"
    )


def _errors(decoded: Tensor, tensor: Tensor) -> tuple[float, float]:
    """Root mean square and largest error, as shares of the tensor's own root mean square and largest."""
    off, own = decoded.float() - tensor, tensor.float()
    mean, largest = off.norm() / own.norm(), off.abs().max() / own.abs().max()
    return float(mean.nan_to_num()), float(largest.nan_to_num())  # nothing is off where all is zero
