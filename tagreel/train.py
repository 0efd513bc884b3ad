"""Training a tagger: what is trained on what, then the loop: one function, read from top to bottom.

What every training does besides, from the seed of a step to its checkpoint, is in `loop`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tagreel import checkpoint
from tagreel import recipe as recipes
from tagreel.batch import Batch
from tagreel.distributed import Ranks, join
from tagreel.errors import DataError, RecipeError
from tagreel.evaluate import check_provenance, evaluate
from tagreel.log import Row, summary_writer
from tagreel.loop import Loop, Outcome, find_position, prepare, set_by_signals
from tagreel.metrics.gap import GlobalAveragePrecision
from tagreel.provenance import only
from tagreel.runtime import pick_device, seed_everything
from tagreel.source import Source
from tagreel.tagger import Tagger, build
from tagreel.teacher import Teacher, ask, fingerprint

RUNNING_GAP_BATCHES = 8
"""The running GAP looks at this many batches before each log line: scoring every one would cost a step's time
on fast machines."""


def train(
    recipe: recipes.Recipe,
    *,
    data: Source,
    out: Path,
    validation: Source | None = None,
    label_names: Sequence[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    start_from: Path | None = None,
    teacher: Path | None = None,
    threads: int = 1,
    validate_every: int | None = None,
    save_minutes: float = 5.0,
    keep: int = 3,
    log_every: int | None = None,
    skip_damaged: int = 0,
    tensorboard: bool = False,
    shard: bool = False,
    trust: tuple[str, ...] = (),
    on_event: Callable[[Row], None] = lambda row: None,
    on_asked: Callable[[int], None] | None = None,
) -> Outcome:
    """Train a recipe on `data` into the folder `out`, validating after every epoch or `validate_every` steps.

    A checkpoint is written after each validation and every `save_minutes`; the last `keep` stay, and the one
    that is best on validation. `resume` goes on from the last one, or starts when there is none. Ctrl-C and
    SIGTERM end the step, save and return. Every line of the log goes to `on_event` and to out/log.jsonl.
    `teacher` is a file of predictions on `data`; or the folder of a model or an ensemble, loaded with
    `trust`, which is asked about `data` once, into out/teacher.parquet, while `on_asked` is told how many
    videos are done.
    Started by torchrun as one of several processes, it trains with them: each has its slice of every batch,
    and with `shard` a part of every weight; the first one writes, and `on_event` is called there alone.
    Raises `RecipeError` and `DataError`; what was saved before stays usable.
    """
    target = pick_device(device)
    ranks = join(target)
    with ranks.together():
        open_writer = summary_writer() if tensorboard else None
        label_names = known_label_names(out if resume else None, data, label_names)
        recipe = settle(recipe, data, label_names)
        if (teacher is None) != (not recipe.training.distill and not recipe.training.forgive):
            raise RecipeError(
                "--teacher and what is learnt from it belong together, --set training.distill=SHARE or --set "
                "training.forgive=SHARE; give both or neither"
            )
        seed_everything(seed)
        model = build(recipe, label_names=label_names)
        model.provenance = only(data.provenance, model.features)
        if validation is not None:
            check_provenance(model, validation)
        identity: Row = {
            "seed": seed,
            "teacher": fingerprint(teacher) if teacher is not None else None,
            "data": data.fingerprint(),
            "validation": validation.fingerprint() if validation is not None else None,
        }
        position = find_position(out, recipe, identity, resume=resume)
        if teacher is not None and teacher.is_dir():
            whose, teacher = teacher, out / "teacher.parquet"
            if ranks.first:
                ask(
                    whose,
                    data,
                    teacher,
                    device=target,
                    threads=threads,
                    skip_damaged=skip_damaged,
                    trust=trust,
                    on_batch=on_asked,
                )
    with ranks.together():
        guide = _teacher(teacher, model, data, skip_damaged) if teacher is not None else None
        taken: list[str] = []
        # A resumed model has what it once read in its checkpoint; a loss is not in there.
        if position is None:
            taken = checkpoint.start_from(model, start_from) if start_from is not None else []
            prepare(model)
        loss_function: nn.Module = recipe.loss()
        prepare(loss_function)
    _check_alike(ranks, out, position)
    if position is None:
        ranks.begin_alike(model)
    loop = Loop(
        out,
        model,
        data=data,
        validation=validation,
        identity=identity,
        position=position,
        classes=model.classes,
        # (C,) how often each class was seen in the first epoch
        extra={"train_counts": torch.zeros(model.classes, dtype=torch.int64)},
        taken=len(taken),
        device=target,
        threads=threads,
        validate_every=validate_every,
        save_minutes=save_minutes,
        keep=keep,
        log_every=log_every,
        skip_damaged=skip_damaged,
        open_writer=open_writer,
        on_event=on_event,
        ranks=ranks,
        shard=shard,
    )
    with closing(loop.log), set_by_signals(loop.stop, patient=ranks.count > 1):
        if guide is not None:
            with ranks.together():
                if guide.forgive:
                    guide.compare(_until_stopped(loop, data))
            loop.log.event("teacher", step=loop.state.step, distill=guide.distill, forgiven=guide.pairs)
        _learn(loop, loss_function.to(target), guide)
    return loop.outcome()


def _until_stopped(loop: Loop, data: Source) -> Iterator[Batch]:
    """All of the training data once, in order; there is nothing to save when somebody stops it here."""
    for _, batch in loop.loader(data, shuffle=False, whole=True).epoch():
        if loop.stop.is_set():
            raise KeyboardInterrupt
        yield batch


def _learn(loop: Loop, loss_function: nn.Module, guide: Teacher | None) -> None:
    """Take the steps that are left; what a step does, from top to bottom."""
    model, shown, training = loop.model, loop.shown, loop.model.recipe.training
    late_step = round(training.late_epochs * loop.steps_per_epoch)
    if late_step >= loop.total_steps and model.recipe.late:
        raise RecipeError(
            f"training.late_epochs={training.late_epochs:g}: the late parts would join at step "
            f"{late_step:,}, and the run ends at {loop.total_steps:,}; train longer, or set it to less"
        )
    train_counts = loop.extra["train_counts"]
    new_counts = torch.zeros_like(train_counts)  # what this rank has seen since they were added up
    running_gap = GlobalAveragePrecision(top_k=20)

    def save() -> None:
        train_counts.add_(loop.ranks.total(new_counts))
        new_counts.zero_()
        if not train_counts.any():
            raise DataError(
                f"none of the first {loop.state.examples:,} videos has a label", path=str(loop.data.paths[0])
            )
        loop.save({"train_counts": train_counts.tolist()})

    for batches in loop.steps():
        model.fire(loop.state.step >= late_step)
        shown.fire(loop.state.step >= late_step)
        for batch in batches:
            present = loop.present(batch)
            with model.autocast():
                loss, logits, labels = training_loss(
                    model,
                    loss_function,
                    present,
                    mixup=training.mixup,
                    teacher=guide if len(batch) else None,
                )
            loop.backward(loss, batch, last=batch is batches[-1])
            if loop.steps_to_line <= RUNNING_GAP_BATCHES:
                loop.meter.check(loop.state.step + 1)
                if len(batch):
                    # What nobody judged cannot be a miss; of a mixed video the larger part counts.
                    judged = present.rated(model.classes)
                    seen = logits if judged is None else logits.masked_fill(judged == 0, -math.inf)
                    running_gap.update(seen, labels > 0.5)
            if loop.state.epoch == 0:
                new_counts += torch.bincount(batch.label_ids, minlength=model.classes)
        loop.update(loop.videos)

        if loop.line_due:
            for other in loop.ranks.gather(running_gap)[1:]:
                running_gap.merge(other)
            loop.log_line({"gap@20": running_gap.compute()})
            running_gap.reset()
        if loop.held_out is not None and loop.validation_due:
            loop.meter.check(loop.state.step)
            try:
                result = evaluate(shown, loop.held_out, device=loop.device)
            except DataError:
                save()  # what is wrong with the validation set costs no training
                raise
            loop.log_scores(result.metrics, seconds=result.seconds, best_by=training.best_by)
        if loop.save_due:
            save()
    if loop.unsaved:
        save()


def training_loss(
    model: Tagger,
    loss_function: nn.Module,
    batch: Batch,
    *,
    mixup: float = 0.0,
    teacher: Teacher | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a batch, the logits (B, C) and the labels (B, C) that belong to them."""
    labels, rated = batch.labels(model.classes), batch.rated(model.classes)
    targets = labels
    if teacher is not None:
        targets, rated = teacher.teach(batch)
    descriptor = model.describe(*batch.packed())
    mixed = targets
    if mixup:
        # Zhang et al., "mixup", arXiv 1710.09412, on pooled descriptors, so that lengths need not agree; one
        # share a video. On a video-level record the descriptor is the input, and this is mixup as published.
        share = torch.distributions.Beta(mixup, mixup).sample((len(labels), 1)).to(labels.device)
        other = torch.randperm(len(labels), device=labels.device)
        descriptor = torch.lerp(descriptor[other], descriptor, share.to(descriptor.dtype))
        labels = torch.lerp(labels[other], labels, share)
        mixed = torch.lerp(targets[other], targets, share)

    def loss_of(logits: Tensor) -> Tensor:
        if not mixup or rated is None:
            return loss_function(logits, mixed, rated)  # type: ignore[no-any-return]
        # Two videos are seldom rated on the same classes, so each brings its own loss.
        first: Tensor = loss_function(logits, targets, share * rated)
        second: Tensor = loss_function(logits, targets[other], (1 - share) * rated[other])
        return first + second

    logits = model.classify(descriptor)
    loss = model.with_further_losses(loss_of(logits), loss_of)
    return loss, logits.detach(), labels


def _check_alike(ranks: Ranks, out: Path, position: Row | None) -> None:
    steps = ranks.share(None if position is None else position["step"])
    if len(set(steps)) > 1:
        raise RecipeError(
            f"--out {out}: the processes find different checkpoints there; expected a folder that all see"
        )


def _teacher(path: Path, model: Tagger, data: Source, skip_damaged: int) -> Teacher:
    training = model.recipe.training
    names = model.label_names if model.has_label_names else None
    teacher = Teacher(
        path,
        classes=model.classes,
        distill=training.distill,
        forgive=training.forgive,
        label_names=names,
    )
    if len(teacher) < len(data) - skip_damaged:
        raise DataError(
            f"scores {len(teacher):,} videos, and there are {len(data):,} to train on; expected all of them",
            path=str(path),
        )
    return teacher


def known_label_names(
    resumed: Path | None, data: Source, given: Sequence[str] | None
) -> Sequence[str] | None:
    """The names that were given, else those of the run that goes on, else those in the data."""
    before = checkpoint.label_names(resumed) if resumed is not None else None
    if given is not None and before is not None and list(given) != before:
        raise RecipeError(
            f"{resumed}: was started with other label names; resume with the same or without --labels"
        )
    return given or before or data.label_names


def settle(recipe: recipes.Recipe, data: Source, label_names: Sequence[str] | None) -> recipes.Recipe:
    """The recipe with the widths and the number of classes that it left to the data."""
    if recipe.memory is not None:
        raise RecipeError("memory: is filled by `tagreel remember`; train with --set memory=none")
    if None in recipe.features.values():
        known = {name: frames.shape[1] for name, frames in data.first().streams.items()}
        if data.provenance is not None:  # which also knows what the first video lacks
            known = {name: made["width"] for name, made in data.provenance.streams.items()} | known
        missing = [name for name, width in recipe.features.items() if width is None and name not in known]
        if missing:
            raise DataError(
                f"no {missing[0]!r}, which the recipe reads; it has: {', '.join(known)}",
                path=str(data.paths[0]),
            )
        features = {name: known[name] if width is None else width for name, width in recipe.features.items()}
        recipe = replace(recipe, features=features)
    if recipe.classes is None:
        if label_names is None:
            raise RecipeError(
                "classes: the number of classes is not known; give the tags' names with --labels FILE, "
                "or their number with --set classes=N"
            )
        recipe = replace(recipe, classes=len(label_names))
    return recipe
