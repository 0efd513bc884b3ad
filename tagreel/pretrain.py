"""Learn a recipe's streams without labels: predict features, frame by frame, from what the pools put out.

    tagreel pretrain RECIPE --data SRC --target audio --out RUN
    tagreel train RECIPE --data SRC --start-from RUN --out OTHER

The sound from the picture, or both: Tsinghua's unsupervised experiment (arXiv 1706.09274), which they did not
finish. Their squared error was a mean over padding too; here it is over real frames. What every training
does, from the seed of a step to its checkpoint, is in `loop`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel import recipe as recipes
from tagreel.batch import Batch
from tagreel.errors import DataError, RecipeError
from tagreel.loader import Loader
from tagreel.log import Row, summary_writer
from tagreel.loop import Loop, Outcome, find_position, prepare, set_by_signals
from tagreel.runtime import pick_device, seed_everything
from tagreel.source import Source
from tagreel.tagger import Tagger
from tagreel.train import settle


class FramePredictor(Tagger):
    """A recipe's streams, and a linear layer from their pools' outputs, side by side, to the target features.

    What it holds besides that layer has the names it has in the recipe's tagger. A pool must have a method
    `outputs(frames, mask)` -> (B, T, W).
    """

    def __init__(self, recipe: recipes.Recipe, *, target: Sequence[str]) -> None:
        features = {name: width for name, width in recipe.features.items() if width is not None}
        assert len(features) == len(recipe.features)
        super().__init__(recipe, features=features, classes=recipe.classes or 1)
        self.target = tuple(dict.fromkeys(target))
        if not set(self.target) <= features.keys() or not self.target:
            found = ", ".join(repr(name) for name in self.target if name not in features) or "none"
            raise RecipeError(
                f"target: expected features of the recipe ({', '.join(features)}), found {found}"
            )
        if self.mixture is not None:
            raise RecipeError(
                "mixture: pretraining is for recipes of one network; set it with --set mixture=none"
            )
        for name, branch in self.streams.items():
            if not callable(getattr(branch.pool, "outputs", None)):
                raise RecipeError(
                    f"streams.{name}.pool: {type(branch.pool).__name__} has no output for each frame, which "
                    "pretraining needs; LSTM and GRU have, among others"
                )
        self.join, self.memory, self.head = None, None, nn.Identity()
        self.body, self.output, self.late = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        frame = {name: torch.zeros(1, 1, width) for name, width in features.items()}
        real = {name: torch.ones(1, 1, dtype=torch.bool) for name in features}
        self.streams.eval()
        with torch.no_grad():
            width = sum(x.shape[-1] for x in self.outputs(frame, real))
        self.prediction = nn.Linear(width, sum(features[name] for name in self.target))

    def outputs(self, frames: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> list[Tensor]:
        """What each stream's pool puts out in every frame, (B, T, W)."""
        return [
            branch.pool.outputs(*branch.read(frames, masks))  # type: ignore[operator, union-attr]
            for branch in self.streams.values()
        ]

    def compare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Errors and targets (B, T, D) of a batch on this model's device, zeros where there is no frame."""
        masks = batch.masks()
        length = max(mask.shape[1] for mask in masks.values())

        def side_by_side(parts: Sequence[Tensor]) -> Tensor:
            return torch.cat([F.pad(x, (0, 0, 0, length - x.shape[1])) for x in parts], dim=-1)

        with self.autocast():
            frames = self.frames(batch.streams, masks)
            predicted = self.prediction(side_by_side(self.outputs(frames, masks)))
            target = side_by_side([frames[name] for name in self.target])
            real = side_by_side([masks[name][..., None].expand_as(frames[name]) for name in self.target])
            return (predicted - target).masked_fill(~real, 0.0), target

    def counts(self, batch: Batch) -> Tensor:
        """How many real frames the batch has of each of the D numbers to predict."""
        return torch.cat([batch.num_frames[n].sum().expand(self.features[n]) for n in self.target])


def pretrain(
    recipe: recipes.Recipe,
    *,
    data: Source,
    out: Path,
    target: Sequence[str],
    validation: Source | None = None,
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
    """Teach a recipe's streams to predict the `target` features of `data`, by the recipe's training settings.

    Labels are not looked at. The error is the mean of the squared differences over real frames, between what
    the recipe's normalisation makes of the features and the prediction; a validation adds the share of their
    variance that is `explained`. Checkpoints, `resume`, signals, log and errors are as in `train`.
    """
    place = pick_device(device)
    open_writer = summary_writer() if tensorboard else None
    recipe = settle(recipe, data, ["any"])
    seed_everything(seed)
    model = FramePredictor(recipe, target=target)
    identity: Row = {
        "seed": seed,
        "target": list(model.target),
        "data": data.fingerprint(),
        "validation": validation.fingerprint() if validation is not None else None,
    }
    position = find_position(out, recipe, identity, resume=resume)
    if position is None:
        prepare(model)
    loop = Loop(
        out,
        model,
        data=data,
        validation=validation,
        identity=identity,
        position=position,
        classes=sys.maxsize,
        extra={},
        taken=0,
        device=place,
        threads=threads,
        validate_every=validate_every,
        save_minutes=save_minutes,
        keep=keep,
        log_every=log_every,
        skip_damaged=skip_damaged,
        open_writer=open_writer,
        on_event=on_event,
    )
    with closing(loop.log), set_by_signals(loop.stop):
        _learn(loop)
    return loop.outcome()


def _learn(loop: Loop) -> None:
    """Take the steps that are left; what a step does, from top to bottom."""
    model, shown = loop.model, loop.shown
    assert isinstance(model, FramePredictor)
    assert isinstance(shown, FramePredictor)
    facts = {"target": list(model.target)}
    for batches in loop.steps():
        videos = sum(map(len, batches))
        # Of all real frames in the step, however they are spread over its batches.
        numbers = sum(int(model.counts(batch).sum()) for batch in batches)
        for batch in batches:
            errors, _ = model.compare(batch.to(loop.device))
            loss = errors.square().sum() / max(numbers, 1)
            loss.backward()  # type: ignore[no-untyped-call]
            loop.meter.add(loss * (videos / len(batch)), len(batch))
        loop.update(videos)

        if loop.line_due:
            loop.log_line()
        if loop.held_out is not None and loop.validation_due:
            loop.meter.check(loop.state.step)
            began = time.perf_counter()
            try:
                scores = validate(shown, loop.held_out, device=loop.device)
            except DataError:
                loop.save(facts)  # what is wrong with the validation set costs no training
                raise
            loop.log_scores(scores, seconds=time.perf_counter() - began, best_by="error", lowest=True)
        if loop.save_due:
            loop.save(facts)
    if loop.unsaved:
        loop.save(facts)


@torch.inference_mode()
def validate(model: FramePredictor, batches: Loader, *, device: torch.device) -> Row:
    """The mean squared error over all real frames, and the share of their variance that is explained.

    Whoever always predicts the mean frame explains 0. Raises `DataError` when there is no frame to predict.
    """
    width = model.prediction.out_features
    squares = power = 0.0
    sums, counts = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    training = model.training
    model.eval()
    try:
        for _, batch in batches.epoch():
            errors, target = model.compare(batch.to(device))
            squares += errors.square().sum().item()
            power += target.square().sum().item()
            sums += target.sum((0, 1)).cpu()
            counts += model.counts(batch)
    finally:
        model.train(training)
    if not counts.all():
        missing = "no frame of what is to be predicted could be read"
        raise DataError(missing, path=str(batches.source.paths[0]))
    numbers, variance = counts.sum().item(), power - (sums.square() / counts).sum().item()
    # Of features that never change there is nothing to explain.
    return {"error": squares / numbers, "explained": 1 - squares / variance if variance > 0 else 0.0}
