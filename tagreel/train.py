"""The training loop: one function, read from top to bottom.

Everything that a step does follows from the seed, the step's number and the weights before it: batches are a
function of their number (`loader`), random draws are seeded per step (`runtime`), the learning rate is a
function of examples seen (`schedule`). A checkpoint therefore holds tensors and a position, and a run that
was killed and resumed ends, on a CPU, in the very bits of one that was not.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tagreel import checkpoint
from tagreel import recipe as recipes
from tagreel.batch import Batch
from tagreel.errors import DataError, RecipeError
from tagreel.evaluate import evaluate
from tagreel.loader import Loader
from tagreel.log import Log, Meter, Row, summary_writer
from tagreel.metrics.gap import GlobalAveragePrecision
from tagreel.model import Tagger, build
from tagreel.optimization import Optimization
from tagreel.runtime import pick_device, seed_everything
from tagreel.source import Source

RUNNING_GAP_BATCHES = 8
"""The running GAP looks at this many batches before each log line: scoring every one would cost a step's time
on fast machines."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    `step` is the last one, `best` the scores of the best validation if there was any, `interrupted` whether
    it was stopped before its time, and `damaged` lists the records it went on without.
    """

    step: int
    best: Row | None
    interrupted: bool
    damaged: list[DataError]


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
    threads: int = 1,
    validate_every: int | None = None,
    save_minutes: float = 5.0,
    keep: int = 3,
    log_every: int | None = None,
    skip_damaged: int = 0,
    tensorboard: bool = False,
    on_event: Callable[[Row], None] = lambda row: None,
) -> Outcome:
    """Train a recipe on `data` into the folder `out`, validating after every epoch or `validate_every` steps.

    A checkpoint is written after each validation and every `save_minutes`; the last `keep` stay, and the one
    that is best on validation. `resume` goes on from the last one, or starts when there is none. Ctrl-C and
    SIGTERM end the step, save and return. Every line of the log goes to `on_event` and to out/log.jsonl.
    Raises `RecipeError` and `DataError`; what was saved before stays usable.
    """
    # What is trained, on what.
    target = pick_device(device)
    open_writer = summary_writer() if tensorboard else None
    label_names = _label_names(out if resume else None, data, label_names)
    recipe = _settle(recipe, data, label_names)
    seed_everything(seed)
    model = build(recipe, label_names=label_names)
    identity = {
        "seed": seed,
        "data": data.fingerprint(),
        "validation": validation.fingerprint() if validation is not None else None,
    }
    position = _start(out, recipe, identity, resume=resume)
    for module in model.modules() if position is None else ():
        prepare = getattr(module, "prepare", None)
        if callable(prepare):
            prepare()
    model.to(target).train()
    optimization = Optimization(model, recipe.training)
    shown = model if optimization.averaged is None else optimization.averaged
    loss_function: nn.Module = recipe.loss()

    def loader(source: Source, *, shuffle: bool, damaged: Sequence[DataError] = ()) -> Loader:
        return Loader(
            source,
            features=model.features,
            optional=recipe.optional,
            classes=model.classes,
            batch_size=recipe.training.batch_size,
            sampling=(recipe.sampling if shuffle else recipe.evaluation_sampling)(),
            shuffle=shuffle,
            seed=seed,
            threads=threads,
            skip_damaged=skip_damaged,
            damaged=damaged,
        )

    listed = [] if position is None else position["damaged"]
    known = [
        DataError(reason, path=str(data.paths[shard]), record=record) for shard, record, reason in listed
    ]
    batches = loader(data, shuffle=True, damaged=known)
    held_out = loader(validation, shuffle=False) if validation is not None else None
    accumulate = recipe.training.accumulate
    steps_per_epoch = math.ceil(len(batches) / accumulate)
    total_steps = recipe.training.steps or max(round(recipe.training.epochs * steps_per_epoch), 1)
    total_examples = round(total_steps * len(data) / steps_per_epoch)
    late_step = round(recipe.training.late_epochs * steps_per_epoch)
    validate_every = validate_every or steps_per_epoch
    log_every = log_every or min(max(total_steps // 100, 1), 1000)

    # Where it goes on.
    state = _State(train_counts=torch.zeros(model.classes, dtype=torch.int64))
    if position is not None:
        state = _restore(checkpoint.checkpoints(out)[-1], position, optimization)
        checkpoint.note_best(out, state.best)
    log = Log(out, state.step, open_writer=open_writer, on_event=on_event)
    parameters = sum(p.numel() for p in model.parameters())
    log.event(
        "start",
        step=state.step,
        steps=total_steps,
        parameters=parameters,
        videos=len(data),
        device=str(target),
        resumed=position is not None,
    )

    def save(step: int) -> None:
        meter.check(step)
        if not state.train_counts.any():
            raise DataError(
                f"none of the first {state.examples:,} videos has a label", path=str(data.paths[0])
            )
        noted = {
            "step": step,
            "examples": state.examples,
            "data": [str(path) for path in data.paths],
            "train_counts": state.train_counts.tolist(),
            "validation": state.validations[-1] if state.validations else None,
        }
        folder = checkpoint.save(
            out,
            step,
            model,
            shown.state_dict(),
            facts=noted,
            training=optimization.tensors() | {"train_counts": state.train_counts},
            position=state.position(data, batches.damaged.values()) | identity,
        )
        checkpoint.prune(out, keep=keep, best=checkpoint.note_best(out, state.best))
        log.event("checkpoint", step=step, path=str(folder))

    running_gap = GlobalAveragePrecision(top_k=20)
    meter = Meter(batches)
    saved_at, saved_step = time.monotonic(), state.step
    with closing(log), _stop_requested() as stop:
        while state.step < total_steps and not stop.is_set():
            for next_batch, group in _groups(batches.epoch(state.epoch, start=state.batch), accumulate):
                # One step.
                seed_everything(seed, state.step)
                model.fire(state.step >= late_step)
                shown.fire(state.step >= late_step)
                to_log_line = min(log_every - state.step % log_every, total_steps - state.step)
                videos = sum(map(len, group))
                for batch in group:
                    moved = batch.to(target)
                    with model.autocast():
                        loss, logits, labels = _forward(model, loss_function, moved, recipe.training.mixup)
                    (loss * (len(batch) / videos)).backward()  # type: ignore[no-untyped-call]
                    meter.add(loss, len(batch))
                    if to_log_line <= RUNNING_GAP_BATCHES:
                        meter.check(state.step + 1)
                        # What nobody judged cannot be a miss; of a mixed video the larger part counts.
                        judged = moved.rated(model.classes)
                        seen = logits if judged is None else logits.masked_fill(judged == 0, -math.inf)
                        running_gap.update(seen, labels > 0.5)
                    if state.epoch == 0:
                        state.train_counts += torch.bincount(batch.label_ids, minlength=model.classes)
                planned = {"examples": state.examples, "total_examples": total_examples}
                rate = optimization.step(state.step + 1, **planned)
                state.step += 1
                state.examples += videos
                state.batch = next_batch

                # What follows a step.
                meter.pause()
                last = state.step == total_steps
                if state.step % log_every == 0 or last:
                    row: Row = {"step": state.step, "steps": total_steps, "epoch": state.epoch}
                    row |= {"examples": state.examples, "lr": rate, **meter.close(state.step)}
                    left = max(total_examples - state.examples, 0)
                    row["eta_seconds"] = left / row["videos_per_second"]
                    log.event("train", **row, **{"gap@20": running_gap.compute()})
                    running_gap.reset()
                validated = held_out is not None and (state.step % validate_every == 0 or last)
                if held_out is not None and validated:
                    meter.check(state.step)
                    try:
                        result = evaluate(shown, held_out, device=target)
                    except DataError:
                        save(state.step)  # what is wrong with the validation set costs no training
                        raise
                    scores: Row = {"step": state.step, "epoch": round(state.step / steps_per_epoch, 3)}
                    scores |= {"examples": state.examples, **result.metrics}
                    state.validations.append(scores)
                    best_by = recipe.training.best_by
                    if state.best is None or scores[best_by] > state.best[best_by]:
                        state.best = scores
                    log.event("validate", **scores, seconds=round(result.seconds, 1))
                overdue = time.monotonic() - saved_at >= 60 * save_minutes
                if validated or last or overdue or stop.is_set():
                    save(state.step)
                    saved_at, saved_step = time.monotonic(), state.step
                meter.resume()
                if last or stop.is_set():
                    break
            else:
                if state.batch == 0:
                    raise DataError("no record could be read", path=str(data.paths[0]))
                state.epoch, state.batch = state.epoch + 1, 0
        if saved_step != state.step:
            save(state.step)
    return Outcome(
        step=state.step,
        best=state.best,
        interrupted=state.step < total_steps,
        damaged=[*batches.damaged.values(), *(held_out.damaged.values() if held_out is not None else ())],
    )


class _State:
    """Where a training stands, as far as it is not weights."""

    def __init__(self, *, train_counts: Tensor) -> None:
        self.step = 0
        self.epoch = 0
        self.batch = 0
        self.examples = 0
        self.validations: list[Row] = []
        self.best: Row | None = None
        self.train_counts = train_counts  # (C,) how often each class was seen in the first epoch

    def position(self, data: Source, damaged: Iterable[DataError]) -> Row:
        # By the shard's number: the same data may be given under another path when the run goes on.
        shards = {str(path): number for number, path in enumerate(data.paths)}
        listed = [[shards[error.path], error.record, error.reason] for error in damaged]
        return {name: getattr(self, name) for name in _POSITION} | {"damaged": listed}


_POSITION = ("step", "epoch", "batch", "examples", "validations", "best")


def _start(out: Path, recipe: recipes.Recipe, identity: Row, *, resume: bool) -> Row | None:
    """Prepare the run's folder; the position to resume from, None for a fresh start."""
    found = checkpoint.checkpoints(out)
    if found and not resume:
        raise RecipeError(f"{out} already holds a run; go on with it by --resume, or choose another folder")
    position = None
    if found:
        checkpoint.check_same_recipe(out, recipe)
        position = _position(found[-1] / "training.json", identity)
        if position["seed"] != identity["seed"]:
            raise RecipeError(
                f"{out}: was started with --seed {position['seed']}, now it is {identity['seed']}"
            )
        for option, what in (("data", "trained"), ("validation", "validated")):
            if position[option] != identity[option]:
                raise DataError(
                    f"was {what} on other files (names, sizes or numbers of records differ); resume with the "
                    "same ones, or train into another folder",
                    path=str(out),
                )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"--out {out}: {error.strerror}") from error
    checkpoint.write_json(out / "recipe.json", recipes.to_json(recipe))
    return position


def _position(path: Path, identity: Row) -> Row:
    position = checkpoint.read_json(path)
    if not isinstance(position, dict) or set(position) != {*_POSITION, "damaged", *identity}:
        raise DataError("not the position of a training as tagreel writes it", path=str(path))
    return position


def _restore(folder: Path, position: Row, optimization: Optimization) -> _State:
    weights = checkpoint.read_tensors(folder / "model.safetensors")
    tensors = checkpoint.read_tensors(folder / "training.safetensors")
    where = str(folder)
    if optimization.averaged is not None:
        checkpoint.load_weights(optimization.averaged, weights, path=where)
        weights = {name[8:]: tensor for name, tensor in tensors.items() if name.startswith("weights.")}
    checkpoint.load_weights(optimization.model, weights, path=where)
    optimization.load_tensors(tensors)
    state = _State(train_counts=tensors["train_counts"])
    for name in _POSITION:
        setattr(state, name, position[name])
    return state


def _forward(
    model: Tagger, loss_function: nn.Module, batch: Batch, mixup: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the logits (B, C) and the labels (B, C) they were held against."""
    labels, rated = batch.labels(model.classes), batch.rated(model.classes)
    descriptor = model.describe(batch.streams, batch.masks())
    target = labels
    if mixup:
        # Zhang et al., "mixup", arXiv 1710.09412, on pooled descriptors, so that lengths need not agree; one
        # share a video. On a video-level record the descriptor is the input, and this is mixup as published.
        share = torch.distributions.Beta(mixup, mixup).sample((len(labels), 1)).to(labels.device)
        other = torch.randperm(len(labels), device=labels.device)
        descriptor = torch.lerp(descriptor[other], descriptor, share.to(descriptor.dtype))
        target = torch.lerp(labels[other], labels, share)

    def loss_of(logits: Tensor) -> Tensor:
        if not mixup or rated is None:
            return loss_function(logits, target, rated)  # type: ignore[no-any-return]
        # Two videos are seldom rated on the same classes, so each brings its own loss.
        loss: Tensor = loss_function(logits, labels, share * rated)
        return loss + loss_function(logits, labels[other], (1 - share) * rated[other])

    logits = model.classify(descriptor)
    loss: Tensor = loss_of(logits)
    for module in model.modules():
        # Parts that hold more logits than those that come out: a mixture's branches, a chain's supports.
        if callable(total_loss := getattr(module, "total_loss", None)):
            loss = total_loss(loss, loss_of)
    return loss, logits.detach(), target


def _groups(batches: Iterator[tuple[int, Batch]], size: int) -> Iterator[tuple[int, list[Batch]]]:
    """Lists of `size` batches, the last one shorter, each with the number of the batch after it."""
    group: list[Batch] = []
    index = 0
    for index, batch in batches:
        group.append(batch)
        if len(group) == size:
            yield index + 1, group
            group = []
    if group:
        yield index + 1, group


def _label_names(resumed: Path | None, data: Source, given: Sequence[str] | None) -> Sequence[str] | None:
    """The names that were given, else those of the run that goes on, else those in the data."""
    before = checkpoint.label_names(resumed) if resumed is not None else None
    if given is not None and before is not None and list(given) != before:
        raise RecipeError(
            f"{resumed}: was started with other label names; resume with the same or without --labels"
        )
    return given or before or data.label_names


def _settle(recipe: recipes.Recipe, data: Source, label_names: Sequence[str] | None) -> recipes.Recipe:
    """The recipe with the widths and the number of classes that it left to the data."""
    if None in recipe.features.values():
        streams = data.first().streams
        missing = [name for name, width in recipe.features.items() if width is None and name not in streams]
        if missing:
            raise DataError(
                f"no {missing[0]!r}, which the recipe reads; it has: {', '.join(streams)}",
                path=str(data.paths[0]),
            )
        features = {
            name: streams[name].shape[1] if width is None else width
            for name, width in recipe.features.items()
        }
        recipe = replace(recipe, features=features)
    if recipe.classes is None:
        if label_names is None:
            raise RecipeError(
                "classes: the number of classes is not known; give the tags' names with --labels FILE, "
                "or their number with --set classes=N"
            )
        recipe = replace(recipe, classes=len(label_names))
    return recipe


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def on_signal(number: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
