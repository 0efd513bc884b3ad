"""The loop that `train` and `pretrain` share: which batches come next, and what is logged, kept and resumed.

Everything that a step does follows from the seed, the step's number and the weights before it: batches are a
function of their number (`loader`), random draws are seeded per step (`runtime`), the learning rate is a
function of examples seen (`schedule`). A checkpoint therefore holds tensors and a position, and a run that
was killed and resumed ends, on a CPU, in the very bits of one that was not.

    with closing(loop.log), set_by_signals(loop.stop):
        for batches in loop.steps():
            ...                               # the gradients of the step's batches, and loop.meter.add
            loop.update(videos)
            if loop.line_due: ...             # loop.log_line
            if loop.validation_due: ...       # loop.log_scores
            if loop.save_due: ...             # loop.save
        if loop.unsaved: ...                  # loop.save
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tagreel import checkpoint
from tagreel import recipe as recipes
from tagreel.batch import Batch
from tagreel.errors import DataError, RecipeError
from tagreel.files import read_json, read_tensors, write_json
from tagreel.loader import Loader
from tagreel.log import Log, Meter, Row
from tagreel.optimization import Optimization
from tagreel.runtime import seed_everything
from tagreel.source import Source
from tagreel.tagger import Tagger


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


@dataclass
class State:
    """Where a training stands, as far as it is not tensors; `batch` is the next one of the `epoch`."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    examples: int = 0
    validations: list[Row] = field(default_factory=list)
    best: Row | None = None


class Loop:
    """A training under way, from `position` on or from the beginning.

    Its caller takes the gradients of each of the `steps` and calls `update`, and then logs, validates and
    saves what is due. `shown` is what is validated and kept: the model, or the one of averaged weights.
    `extra` are tensors that a checkpoint holds besides; those of a resumed run have the values they had.
    A record with a label of `classes` or more is damaged; `taken` is how many tensors came from another run.
    """

    def __init__(
        self,
        out: Path,
        model: Tagger,
        *,
        data: Source,
        validation: Source | None,
        identity: Row,
        position: Row | None,
        classes: int,
        extra: Mapping[str, Tensor],
        taken: int,
        device: torch.device,
        threads: int,
        validate_every: int | None,
        save_minutes: float,
        keep: int,
        log_every: int | None,
        skip_damaged: int,
        open_writer: Callable[..., Any] | None,
        on_event: Callable[[Row], None],
    ) -> None:
        training = model.recipe.training
        self.out, self.data, self.identity, self.classes = out, data, identity, classes
        self.device, self.threads, self.skip_damaged = device, threads, skip_damaged
        self.save_minutes, self.keep = save_minutes, keep
        self.model = model.to(device).train()
        self.optimization = Optimization(model, training)
        self.shown = model if self.optimization.averaged is None else self.optimization.averaged

        listed = [] if position is None else position["damaged"]
        known = [DataError(why, path=str(data.paths[shard]), record=record) for shard, record, why in listed]
        self.batches = self.loader(data, shuffle=True, damaged=known)
        self.held_out = self.loader(validation, shuffle=False) if validation is not None else None
        self.steps_per_epoch = math.ceil(len(self.batches) / training.accumulate)
        self.total_steps = training.steps or max(round(training.epochs * self.steps_per_epoch), 1)
        self.total_examples = round(self.total_steps * self.batches.examples / self.steps_per_epoch)
        self.validate_every = validate_every or self.steps_per_epoch
        self.log_every = log_every or min(max(self.total_steps // 100, 1), 1000)

        self.state, self.extra = State(), dict(extra)
        _open_folder(out, model.recipe)
        if position is not None:
            self._restore(checkpoint.checkpoints(out)[-1], position)
        self.log = Log(out, self.state.step, open_writer=open_writer, on_event=on_event)
        self.meter = Meter(self.batches)
        self.stop = threading.Event()
        self._saved_at, self._saved_step = time.monotonic(), self.state.step
        self.log.event(
            "start",
            step=self.state.step,
            steps=self.total_steps,
            parameters=sum(p.numel() for p in model.parameters()),
            videos=self.batches.examples,
            device=str(device),
            resumed=position is not None,
            taken=taken,
        )

    def loader(self, source: Source, *, shuffle: bool, damaged: Sequence[DataError] = ()) -> Loader:
        """Batches of a source by the recipe: shuffled to learn from, in order to look at."""
        recipe = self.model.recipe
        return Loader(
            source,
            features=self.model.features,
            optional=recipe.optional,
            classes=self.classes,
            batch_size=recipe.training.batch_size,
            sampling=(recipe.sampling if shuffle else self.model.reads)(),
            subset=recipe.training.subset if shuffle else None,
            shuffle=shuffle,
            seed=self.identity["seed"],
            threads=self.threads,
            skip_damaged=self.skip_damaged,
            damaged=damaged,
        )

    def steps(self) -> Iterator[list[Batch]]:
        """The batches of each step that is left, with torch seeded for it; `update` ends a step."""
        self.meter.resume()
        self._saved_at = time.monotonic()
        while not self._ended():
            numbered = self.batches.epoch(self.state.epoch, start=self.state.batch)
            for next_batch, group in grouped(numbered, self.model.recipe.training.accumulate):
                self._next_batch = next_batch
                seed_everything(self.identity["seed"], self.state.step)
                yield group
                if self._ended():
                    return
                self.meter.resume()
            if self.state.batch == 0:
                raise DataError("no record could be read", path=str(self.data.paths[0]))
            self.state.epoch, self.state.batch = self.state.epoch + 1, 0

    def update(self, videos: int) -> None:
        """From the gradients, which are those of so many videos, to new weights: the step is taken."""
        planned = {"examples": self.state.examples, "total_examples": self.total_examples}
        self.rate = self.optimization.step(self.state.step + 1, **planned)
        self.state.step += 1
        self.state.examples += videos
        self.state.batch = self._next_batch
        self.meter.pause()

    @property
    def steps_to_line(self) -> int:
        """How many steps from here the next log line comes."""
        return min(self.log_every - self.state.step % self.log_every, self.total_steps - self.state.step)

    @property
    def line_due(self) -> bool:
        """Whether the step that was taken ends in a log line."""
        return self.state.step % self.log_every == 0 or self._is_last

    @property
    def validation_due(self) -> bool:
        """Whether the step that was taken ends in a validation."""
        return self.held_out is not None and (self.state.step % self.validate_every == 0 or self._is_last)

    @property
    def save_due(self) -> bool:
        """Whether the step that was taken ends in a checkpoint; after the last one, `unsaved` says so."""
        return self.validation_due or time.monotonic() - self._saved_at >= 60 * self.save_minutes

    @property
    def unsaved(self) -> bool:
        """Whether steps were taken since the last checkpoint."""
        return self._saved_step != self.state.step

    def log_line(self, more: Mapping[str, float] | None = None) -> None:
        """Log the steps since the last line."""
        row: Row = {"step": self.state.step, "steps": self.total_steps, "epoch": self.state.epoch}
        row |= {"examples": self.state.examples, "lr": self.rate, **self.meter.close(self.state.step)}
        left = max(self.total_examples - self.state.examples, 0)
        row["eta_seconds"] = left / row["videos_per_second"]
        self.log.event("train", **row, **(more or {}))

    def log_scores(
        self, scores: Mapping[str, float], *, seconds: float, best_by: str, lowest: bool = False
    ) -> None:
        """Log a validation and note it as the best if it is; of equals the last is, which has learnt more."""
        row: Row = {"step": self.state.step, "epoch": round(self.state.step / self.steps_per_epoch, 3)}
        row |= {"examples": self.state.examples, **scores}
        self.state.validations.append(row)
        best, sign = self.state.best, -1 if lowest else 1
        if best is None or sign * row[best_by] >= sign * best[best_by]:
            self.state.best = row
        self.log.event("validate", **row, seconds=round(seconds, 1))

    def save(self, facts: Mapping[str, Any]) -> None:
        """Write a checkpoint, with these facts besides; raises `RecipeError` when the loss is not finite."""
        state = self.state
        self.meter.check(state.step)
        noted = {
            "step": state.step,
            "examples": state.examples,
            "data": [str(path) for path in self.data.paths],
            **facts,
            "validation": state.validations[-1] if state.validations else None,
        }
        # By the shard's number: the same data may be given under another path when the run goes on.
        shards = {str(path): number for number, path in enumerate(self.data.paths)}
        damaged = [[shards[e.path], e.record, e.reason] for e in self.batches.damaged.values()]
        folder = checkpoint.save(
            self.out,
            state.step,
            self.model,
            self.shown.state_dict(),
            facts=noted,
            training=self.optimization.tensors() | self.extra,
            position={**asdict(state), "damaged": damaged, **self.identity},
        )
        checkpoint.prune(self.out, keep=self.keep, best=checkpoint.note_best(self.out, state.best))
        self.log.event("checkpoint", step=state.step, path=str(folder))
        self._saved_at, self._saved_step = time.monotonic(), state.step

    def outcome(self) -> Outcome:
        """How it ended."""
        held_out = self.held_out.damaged.values() if self.held_out is not None else ()
        return Outcome(
            step=self.state.step,
            best=self.state.best,
            interrupted=self.state.step < self.total_steps,
            damaged=[*self.batches.damaged.values(), *held_out],
        )

    @property
    def _is_last(self) -> bool:
        return self.state.step == self.total_steps

    def _ended(self) -> bool:
        return self.state.step >= self.total_steps or self.stop.is_set()

    def _restore(self, folder: Path, position: Row) -> None:
        weights = read_tensors(folder / "model.safetensors")
        tensors = read_tensors(folder / "training.safetensors")
        if self.shown is not self.model:
            checkpoint.load_weights(self.shown, weights, path=str(folder))
            weights = {name[8:]: tensor for name, tensor in tensors.items() if name.startswith("weights.")}
        checkpoint.load_weights(self.model, weights, path=str(folder))
        self.optimization.load_tensors(tensors)
        self.extra = {name: tensors[name] for name in self.extra}
        self.state = State(**{entry.name: position[entry.name] for entry in fields(State)})
        checkpoint.note_best(self.out, self.state.best)


def find_position(out: Path, recipe: recipes.Recipe, identity: Row, *, resume: bool) -> Row | None:
    """The position that a run in `out` goes on from, None when there is no checkpoint yet.

    `identity` is what must not change in between: options such as the seed, and the fingerprints of files.
    Raises `RecipeError` and `DataError` when it did, when the recipe did, or when nobody asked to `resume`.
    """
    found = checkpoint.checkpoints(out)
    if not found:
        return None
    if not resume:
        raise RecipeError(f"{out} already holds a run; go on with it by --resume, or choose another folder")
    checkpoint.check_same_recipe(out, recipe)
    path = found[-1] / "training.json"
    position = read_json(path)
    expected = {*(entry.name for entry in fields(State)), "damaged", *identity}
    if not isinstance(position, dict) or set(position) != expected:
        raise DataError("not the position of a training as tagreel writes it", path=str(path))
    for name, now in identity.items():
        if (before := position[name]) == now:
            continue
        if name in _FILES:
            raise DataError(
                f"was {_FILES[name]} other files (names, sizes or numbers of records differ); resume with "
                "the same ones, or train into another folder",
                path=str(out),
            )
        shown = [", ".join(value) if isinstance(value, list) else value for value in (before, now)]
        raise RecipeError(f"{out}: was started with --{name} {shown[0]}, now it is {shown[1]}")
    return position


_FILES = {"data": "trained on", "validation": "validated on", "teacher": "taught by"}
"""What is known of a run by the fingerprint of its files."""


def prepare(*modules: nn.Module) -> None:
    """Let every part that reads a file before it learns read it."""
    for module in modules:
        for part in module.modules():
            if callable(read := getattr(part, "prepare", None)):
                read()


def grouped(batches: Iterator[tuple[int, Batch]], size: int) -> Iterator[tuple[int, list[Batch]]]:
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


@contextmanager
def set_by_signals(event: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set the event; a second Ctrl-C interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open_folder(out: Path, recipe: recipes.Recipe) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"--out {out}: {error.strerror}") from error
    write_json(out / "recipe.json", recipes.to_json(recipe))
