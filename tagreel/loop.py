"""The loop that `train` and `pretrain` share: which batches come next, and what is logged, kept and resumed.

Everything that a step does follows from the seed, the step's number and the weights before it: batches are a
function of their number (`loader`), random draws are seeded per step (`runtime`), the learning rate is a
function of examples seen (`schedule`). A checkpoint therefore holds tensors and a position, and a run that
was killed and resumed ends, on a CPU, in the very bits of one that was not. Of several processes each has its
slice of every batch and the same weights; nothing in a checkpoint says how many they were.

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
from tagreel.distributed import ALONE, Gradients, Ranks, Statistics
from tagreel.errors import DataError, RecipeError
from tagreel.files import read_json, read_tensors, write_json
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.loader import Loader
from tagreel.log import Log, Meter, Row
from tagreel.optimization import Optimization
from tagreel.runtime import seed_everything
from tagreel.sharding import gathered
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
    Of several `ranks` each has a slice of every batch, and with `shard` a part of every weight; the first one
    writes and logs. Raises `RecipeError` for a model that cannot be trained by several.
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
        ranks: Ranks = ALONE,
        shard: bool = False,
    ) -> None:
        training = model.recipe.training
        if shard and ranks.count == 1:
            raise RecipeError("--shard divides the model among processes; start several, by torchrun")
        self.out, self.data, self.identity, self.classes = out, data, identity, classes
        self.device, self.threads, self.skip_damaged = device, threads, skip_damaged
        self.save_minutes, self.keep, self.ranks = save_minutes, keep, ranks
        norms = _batch_norms(model) if ranks.count > 1 else []
        self.model = (model if shard else model.to(device)).train()
        self.optimization = Optimization(model, training, shard_on=device if shard else None)
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
        with ranks.together():
            if position is not None:
                self._restore(checkpoint.checkpoints(out)[-1], position)
        with ranks.together():
            if ranks.first:
                _open_folder(out, model.recipe)
                checkpoint.note_best(out, self.state.best)
        self._statistics = Statistics(ranks)
        for norm in norms:
            norm.across = self._statistics
        self._gradients = Gradients(model) if ranks.count > 1 and not shard else None
        self.log: Log | _Silent = _Silent()
        if ranks.first:
            self.log = Log(out, self.state.step, open_writer=open_writer, on_event=on_event)
        self.meter = Meter(self.batches, ranks)
        self.stop = threading.Event()
        self.videos = 0
        self._saved_at, self._saved_step, self._time_to_save = time.monotonic(), self.state.step, False
        self.log.event(
            "start",
            step=self.state.step,
            steps=self.total_steps,
            parameters=sum(p.numel() for p in model.parameters()),
            videos=self.batches.examples,
            device=str(device) if ranks.count == 1 else f"{ranks.count} × {device.type}",
            resumed=position is not None,
            taken=taken,
        )

    def loader(
        self, source: Source, *, shuffle: bool, damaged: Sequence[DataError] = (), whole: bool = False
    ) -> Loader:
        """Batches of a source by the recipe: shuffled to learn from, in order to look at.

        Of several ranks each has a slice of them, or the `whole`.
        """
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
            ranks=ALONE if whole else self.ranks,
        )

    def steps(self) -> Iterator[list[Batch]]:
        """The batches of each step that is left, with torch seeded for it; `update` ends a step.

        `videos` is how many they hold on all ranks; this one's slice of a batch may be empty.
        """
        self.meter.resume()
        self._saved_at = time.monotonic()
        while not self._ended():
            numbered = self.batches.epoch(self.state.epoch, start=self.state.batch)
            for next_batch, group in grouped(numbered, self.model.recipe.training.accumulate):
                if self._agree(group):
                    return
                self._next_batch = next_batch
                # Each rank drops other units.
                draws = [self.ranks.number] if self.ranks.count > 1 else []
                seed_everything(self.identity["seed"], self.state.step, *draws)
                yield group
                if self._ended():
                    return
                self.meter.resume()
            if self.state.batch == 0:
                raise DataError("no record could be read", path=str(self.data.paths[0]))
            self.state.epoch, self.state.batch = self.state.epoch + 1, 0

    def present(self, batch: Batch) -> Batch:
        """A batch of a step on the device; where this rank has no video of it, a made-up one in its place."""
        self._statistics.present = len(batch) > 0
        return (batch if len(batch) else self.batches.stand_in()).to(self.device)

    def backward(self, loss: Tensor, batch: Batch, *, last: bool) -> None:
        """Add the gradients of a batch's mean loss, by its share of the step's videos."""
        if self._gradients is not None:
            self._gradients.last = last
        (loss * (len(batch) / self.videos)).backward()  # type: ignore[no-untyped-call]
        self.meter.add(loss, len(batch))

    def update(self, videos: int) -> None:
        """From the gradients, which are those of so many videos, to new weights: the step is taken."""
        if self._gradients is not None:
            self._gradients.wait()
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
        return self.validation_due or self._time_to_save

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
        weights = gathered(self.shown.state_dict(), keep=self.ranks.first)
        training = gathered(self.optimization.tensors() | self.extra, keep=self.ranks.first)
        with self.ranks.together():
            if self.ranks.first:
                folder = checkpoint.save(
                    self.out,
                    state.step,
                    self.model,
                    weights,
                    facts=noted,
                    training=training,
                    position={**asdict(state), "damaged": damaged, **self.identity},
                )
                checkpoint.prune(self.out, keep=self.keep, best=checkpoint.note_best(self.out, state.best))
                self.log.event("checkpoint", step=state.step, path=str(folder))
        self._saved_at, self._saved_step, self._time_to_save = time.monotonic(), state.step, False

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
        # Several stop where they agree to; one that stopped by itself would leave the others waiting.
        return self.state.step >= self.total_steps or (self.ranks.count == 1 and self.stop.is_set())

    def _agree(self, group: Sequence[Batch]) -> bool:
        """Find out what of a step all ranks have to know alike: whether one of them is asked to stop."""
        is_time = time.monotonic() - self._saved_at >= 60 * self.save_minutes
        sums = self.ranks.add_up(sum(map(len, group)), self.stop.is_set(), self.ranks.first and is_time)
        self.videos, asked, self._time_to_save = int(sums[0]), sums[1] > 0, sums[2] > 0
        return asked

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
def set_by_signals(event: threading.Event, *, patient: bool = False) -> Iterator[None]:
    """Ctrl-C and SIGTERM set the event; a second Ctrl-C interrupts at once, unless `patient`.

    One Ctrl-C reaches what torchrun has started twice: from the terminal and from torchrun.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: object) -> None:
        if event.is_set() and not patient:
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Silent:
    """The log of a rank that writes none."""

    def event(self, kind: str, **values: Any) -> None:
        """Nothing is noted."""

    def close(self) -> None:
        """Nothing is open."""


def _batch_norms(model: nn.Module) -> list[MaskedBatchNorm]:
    """Those whose statistics several processes share; raises `RecipeError` for one that cannot."""
    norms = [module for module in model.modules() if isinstance(module, MaskedBatchNorm)]
    for name, module in model.named_modules():
        if isinstance(module, MaskedBatchNorm) and type(module) is not MaskedBatchNorm:
            raise RecipeError(
                f"{name}: normalises each step by the videos of one process; train without torchrun"
            )
    return norms


def _open_folder(out: Path, recipe: recipes.Recipe) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"--out {out}: {error.strerror}") from error
    write_json(out / "recipe.json", recipes.to_json(recipe))
