"""A trained tagger and the training videos it may ask: a model that compares a new video with those.

    tagreel remember RUN --data TRAIN --out MODEL

Nothing is trained. One pass over the videos writes, for each, the direction of what the head reads and its
labels (`tagreel.layers.neighbours`) beside the weights. `evaluate`, `predict` and `tagreel.load` take MODEL
like a run. It is larger by two bytes for each number that the head reads of each video, costs more by as
many multiplications, and shows whoever has it what the training videos were labelled. Scored on the videos
that it remembers it looks far better than it is, since each of them finds itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tagreel.checkpoint import check_new, facts, find, load_tagger, save_model
from tagreel.errors import DataError, RecipeError
from tagreel.evaluate import check_names, scoring_loader
from tagreel.layers.neighbours import Neighbours
from tagreel.loader import Loader
from tagreel.runtime import pick_device
from tagreel.source import Source
from tagreel.tagger import Tagger
from tagreel.tags import carry


@dataclass(frozen=True)
class Remembered:
    """What `remember` wrote: the model's folder and its `videos` and their labels, in `size` bytes.

    `damaged` lists the records that could not be read.
    """

    path: Path
    videos: int
    labels: int
    size: int
    damaged: list[DataError]


def remember(
    run: Path,
    data: Source,
    out: Path,
    *,
    checkpoint: str = "best",
    neighbours: int = 100,
    sharpness: float = 20.0,
    share: float = 0.5,
    batch_size: int | None = None,
    device: str = "auto",
    threads: int = 1,
    skip_damaged: int = 0,
    trust: tuple[str, ...] = (),
    on_batch: Callable[[int], None] | None = None,
) -> Remembered:
    """Write to `out` the model of a run with a memory of `data`; `on_batch` is told how many videos are done.

    `neighbours`, `sharpness` and `share` are those of `Neighbours`. Raises `RecipeError` when `out` exists or
    the model cannot have a memory, `DataError` when the data have no labels or not those of the model.
    """
    check_new(out)
    place, folder = pick_device(device), find(run, checkpoint)
    model = load_tagger(folder, device=place, trust=trust)
    if model.recipe.memory is not None:
        raise RecipeError(f"{run}: has a memory already; give the run that it was made from")
    if model.recipe.mixture is not None:
        raise RecipeError(f"{run}: is a mixture of networks; a memory is for one network")
    how = partial(Neighbours, neighbours=neighbours, sharpness=sharpness, share=share)
    try:
        how(1, model.classes)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    check_names(model, data)
    recipe = model.recipe
    # An inference looks at a video several times; what is kept is one look.
    model.recipe = replace(recipe, inference=None)
    loader = scoring_loader(model, data, batch_size=batch_size, threads=threads, skip_damaged=skip_damaged)
    hidden, label_ids, label_counts = _describe(model, loader, place, on_batch)
    how = partial(how, videos=len(hidden), labels=len(label_ids))
    model.recipe = replace(recipe, memory=how)
    model.memory = how(model.hidden_dim, model.classes)
    model.memory.remember(hidden, label_ids, label_counts)

    noted = facts(folder)
    noted["remembers"] = {"data": [str(path) for path in data.paths], "videos": len(hidden)}
    save_model(out, model, facts=noted)
    carry(folder, out)
    return Remembered(
        path=out,
        videos=len(hidden),
        labels=len(label_ids),
        size=sum(buffer.nbytes for buffer in model.memory.buffers()),
        damaged=list(loader.damaged.values()),
    )


@torch.inference_mode()
def _describe(
    model: Tagger, loader: Loader, device: torch.device, on_batch: Callable[[int], None] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What the head reads of every video (N, H), and the labels as a batch has them."""
    where = str(loader.source.paths[0])
    hidden = torch.empty(len(loader.source), model.hidden_dim)
    label_ids, label_counts, done = [], [], 0
    for _, batch in loader.epoch():
        if batch.rated_ids is not None:
            raise DataError(
                "holds segments of which only some classes were rated; read whole videos with --whole-videos",
                path=where,
            )
        batch = batch.to(device)
        with model.autocast():
            descriptor = model.describe(*batch.packed())
        hidden[done : done + len(batch)] = model.embed(descriptor.float())
        label_ids.append(batch.label_ids)
        label_counts.append(batch.label_counts)
        done += len(batch)
        if on_batch is not None:
            on_batch(done)
    if not done:
        raise DataError("no record could be read", path=where)
    if not sum(map(len, label_ids)):
        raise DataError(
            f"none of the {done:,} videos has a label, so there is nothing to ask them", path=where
        )
    return hidden[:done], torch.cat(label_ids).cpu(), torch.cat(label_counts).cpu()
