"""Calibration and thresholds of every tag, fitted on videos that the model was not trained on.

    tagreel calibrate RUN --data VALIDATE

**What is kept.** One pass counts, for each tag, how many videos and how many positives have their logit in
each of 256 bins from -16 to 16, in five folds by the video's id: 10 kB a tag however many videos, 40 MB for
3,862, and ten times that for the moment of fitting.

**Calibration.** p' = sigmoid(a · logit(p) + b), a line for every tag (Platt, Probabilistic Outputs for
Support Vector Machines, 1999); a > 0, so no two videos change places. Most tags have too few positives for a
line of their own. So one is fitted to all pairs together, and each tag's is the most probable under a normal
prior around that one. How far tags stray from it, in log a and in b, is what predicts left-out folds best: a
tag of 3 positives stays close, one of 3,000 goes its own way.

**Thresholds.** From calibrated probabilities it follows which threshold is best for a tag's F1 (half of the
F1 that is reached: Lipton, Elkan and Naryanaswamy, Optimal Thresholding of Classifiers to Maximize F1
Measure, 2014), without counting labels, of which a rare tag has too few. There it may be a hundredth, though:
right for F1 and wrong for who reads it. So what is taken lies, in logits, between it and the one threshold
that is best for all tags together: halfway for a common tag, and all the nearer to that one the fewer
positives are expected.

With `precision` a threshold is the lowest from which on the tag's precision is that with 95 % confidence:
Wilson's bound (1927) of what was counted, and of 30 more predictions as the calibrated probabilities expect
them. Counts alone could vouch for 0.9 only after 25 predictions without a mistake. A tag that gets there
nowhere is never shown.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from tagreel.errors import DataError, RecipeError
from tagreel.evaluate import check_names
from tagreel.loader import Loader
from tagreel.metrics.calibration import Calibration
from tagreel.model import Model
from tagreel.tags import Fit, TagSet

_BINS, _FIRST, _WIDTH = 256, -16.0, 0.125
_MIDDLES = _FIRST + _WIDTH * (torch.arange(_BINS, dtype=torch.float64) + 0.5)
_FOLDS = 5
# How far tags may stray from the shared line, in its bias and in the logarithm of its slope.
_BIAS_SPREADS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0)
_SLOPE_SPREADS = (0.0, 0.05, 0.1, 0.2, 0.4)
_BLOCK = 4096  # tags fitted at a time
_CONFIDENT = 1.645  # one-sided 95 %
_PRIOR = 30  # predictions


@dataclass(frozen=True)
class Shown:
    """What is shown of videos at some thresholds: `micro_f1` of all pairs, `macro_f1` the mean over tags."""

    micro_f1: float
    macro_f1: float
    precision: float
    recall: float
    tags_per_video: float


@dataclass(frozen=True)
class Calibrated:
    """The `tags` as fitted, and what calibration does to videos that it was not fitted on.

    `calibration_error` and `log_loss` (a video) are as trained and calibrated; `shown` has a row "0.5" and a
    row "one threshold", both as trained, and a row "fitted". `never` names the tags that are not shown.
    """

    tags: TagSet
    videos: int
    positives: int
    calibration_error: tuple[float, float]
    log_loss: tuple[float, float]
    shown: dict[str, Shown]
    never: list[str]


@torch.inference_mode()
def calibrate(
    model: Model,
    tags: TagSet,
    loader: Loader,
    *,
    device: torch.device,
    precision: float | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Calibrated:
    """Fit calibration and thresholds of `tags` on the loader's videos, whatever they were before.

    Of rated segments only the rated pairs count. `on_batch` is told how many videos are done. Raises
    `DataError` when nothing could be read, the classes are named otherwise, or no video has a label.
    """
    if precision is not None and not 0 < precision < 1:
        raise RecipeError(f"--precision is {precision}; expected more than 0 and less than 1, such as 0.9")
    check_names(model, loader.source)
    model.eval()
    counts = Counts(len(tags.tags))
    for _, batch in loader.epoch():
        batch = batch.to(device)
        scores, labels = model.probabilities(batch), batch.labels(model.classes)
        if scores.isnan().any():
            raise RecipeError("the model's scores are NaN; its weights cannot be used")
        rated = batch.rated(model.classes)
        true = tags.merged(labels) > 0
        judged = None if rated is None else (tags.merged(1 - rated) == 0) | true
        counts.add(batch.ids, tags.merged(scores), true, judged)
        if on_batch is not None:
            on_batch(counts.videos)
    where = str(loader.source.paths[0])
    if not counts.videos:
        raise DataError("no record could be read", path=where)
    per_fold = counts.positives.sum((1, 2))
    if (per_fold == per_fold.sum()).any():
        raise DataError(
            f"{int(per_fold.sum()):,} labels in {counts.videos:,} videos are too few to calibrate on",
            path=where,
        )
    return _fitted(counts, tags, precision=precision, paths=[str(path) for path in loader.source.paths])


class Counts:
    """How many pairs of each tag, and how many `positives`, have their logit where; (folds, S, bins) each."""

    def __init__(self, tags: int) -> None:
        self.pairs = torch.zeros(_FOLDS, tags, _BINS, dtype=torch.int32)
        self.positives = torch.zeros_like(self.pairs)
        self.videos = 0

    def add(self, ids: Sequence[str], scores: Tensor, true: Tensor, judged: Tensor | None = None) -> None:
        """Count videos by their ids, with probabilities (B, S), whether they are true, and were judged."""
        self.pairs, self.positives = self.pairs.to(scores.device), self.positives.to(scores.device)
        bins = ((scores.float().logit() - _FIRST) / _WIDTH).clamp(0, _BINS - 1).long()
        folds = torch.tensor([_fold(name) for name in ids], device=scores.device)
        tags = torch.arange(scores.shape[1], device=scores.device)
        at = (folds[:, None] * scores.shape[1] + tags) * _BINS + bins
        for counts, chosen in ((self.pairs, judged), (self.positives, true)):
            found = at.view(-1) if chosen is None else at[chosen]
            counts.view(-1).index_add_(0, found, counts.new_ones(1).expand(len(found)))
        self.videos += len(ids)


def _fold(name: str) -> int:
    """The fold of a video; all segments of one, video:start, have the same."""
    video, colon, start = name.rpartition(":")
    return zlib.crc32((video if colon and start.isdecimal() else name).encode()) % _FOLDS


@dataclass(frozen=True)
class _Lines:
    """A line for each tag: slopes exp(log_slopes) (S,), and biases (S,) at the logit `pivot`."""

    log_slopes: Tensor
    biases: Tensor
    pivot: float

    def logits(self) -> Tensor:
        """Calibrated logits (S, bins) of the bins."""
        return self.log_slopes.exp()[:, None] * (_MIDDLES - self.pivot) + self.biases[:, None]

    def fits(self, thresholds: Tensor, positives: Tensor) -> list[Fit]:
        """What a tag set keeps of them, with calibrated thresholds (S,) and how many positives there were."""
        slopes = self.log_slopes.exp()
        columns = (slopes, self.biases - slopes * self.pivot, thresholds, positives)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [Fit(_short(a), _short(b), _short(t), int(n)) for a, b, t, n in rows]


def _fitted(counts: Counts, tags: TagSet, *, precision: float | None, paths: list[str]) -> Calibrated:
    positives, pairs = counts.positives.cpu().double(), counts.pairs.cpu().double()
    spreads = _best_spreads(positives, pairs)
    held_out = _held_out(positives, pairs, spreads, precision, counts.videos)
    positives, pairs = positives.sum(0), pairs.sum(0)
    shared = _shared_line(positives, pairs)
    lines = _stray(shared, positives, pairs, spreads)
    thresholds = _thresholds(lines.logits(), positives, pairs, precision)
    together = _pooled(lines.logits(), positives, pairs)
    one = _best_f1(*together).sigmoid() if precision is None else _precise(*together, precision)
    fits = lines.fits(thresholds, positives.sum(1))
    (default,) = shared.fits(one, positives.sum().view(1))
    noted = {
        "data": paths,
        "videos": counts.videos,
        "positives": int(positives.sum()),
        "precision": precision,
        "spread": {"log_slope": spreads[0], "bias": spreads[1]},
    }
    return Calibrated(
        tags=tags.with_fits(fits, default=default, fitted=noted),
        videos=counts.videos,
        positives=int(positives.sum()),
        never=[name for name, t in zip(tags.names, thresholds.tolist(), strict=True) if t == math.inf],
        **held_out,
    )


# ---------------------------------------------------------------------- calibration


def _shared_line(positives: Tensor, pairs: Tensor) -> _Lines:
    """One line for all tags together, as the first and only."""
    positives, pairs = positives.sum(0, keepdim=True), pairs.sum(0, keepdim=True)
    # Slope and bias are about independent at the logit where the pairs say most about either.
    weights = pairs * _MIDDLES.sigmoid() * (-_MIDDLES).sigmoid()
    pivot = float((weights * _MIDDLES).sum() / weights.sum())
    start = torch.tensor([0.0, pivot], dtype=torch.float64)
    # So wide a prior is nothing to go by, but where scores say nothing it keeps the slope above 0.
    found = _most_probable(positives, pairs, start, pivot, (1.0, math.inf))
    return _Lines(found[:, 0], found[:, 1], pivot)


def _stray(shared: _Lines, positives: Tensor, pairs: Tensor, spreads: tuple[float, float]) -> _Lines:
    """The most probable line of each tag under a normal prior around the shared one."""
    start = torch.stack([shared.log_slopes[0], shared.biases[0]])
    blocks = zip(torch.split(positives, _BLOCK), torch.split(pairs, _BLOCK), strict=True)
    found = torch.cat([_most_probable(*block, start, shared.pivot, spreads) for block in blocks])
    return _Lines(found[:, 0], found[:, 1], shared.pivot)


def _most_probable(
    positives: Tensor, pairs: Tensor, start: Tensor, pivot: float, spreads: tuple[float, float]
) -> Tensor:
    """Log-slope and bias (S, 2) by Fisher scoring; a step that makes a tag's loss worse is halved."""
    # A spread of 0 leaves no room; so small a number keeps the equations regular.
    precisions = torch.tensor([max(spread, 1e-6) ** -2 for spread in spreads], dtype=torch.float64)
    offsets = _MIDDLES - pivot

    def loss(at: Tensor) -> Tensor:
        logits = at[:, :1].exp() * offsets + at[:, 1:]
        of_data = (pairs * softplus(logits) - positives * logits).sum(1)
        return of_data + 0.5 * (precisions * (at - start) ** 2).sum(1)

    found = start.expand(len(positives), 2).clone()
    losses = loss(found)
    for _ in range(50):
        scaled = found[:, :1].exp() * offsets
        rates = (scaled + found[:, 1:]).sigmoid()
        off, weights = pairs * rates - positives, pairs * rates * (1 - rates)
        gradient = torch.stack([(off * scaled).sum(1), off.sum(1)], 1) + precisions * (found - start)
        a, b = (weights * scaled * scaled).sum(1) + precisions[0], (weights * scaled).sum(1)
        c = weights.sum(1) + precisions[1]
        step = torch.stack(
            [c * gradient[:, 0] - b * gradient[:, 1], a * gradient[:, 1] - b * gradient[:, 0]], 1
        )
        step /= (a * c - b * b).clamp_min(1e-12)[:, None]
        for _ in range(20):
            after = loss(found - step)
            worse = after > losses + 1e-7  # more than rounding
            if not worse.any():
                break
            step[worse] /= 2
        step[worse] = 0
        found -= step
        losses, before = torch.where(worse, losses, after), losses
        if (before - losses).max() < 1e-6:
            break
    return found


def _best_spreads(positives: Tensor, pairs: Tensor) -> tuple[float, float]:
    """The spreads of log-slope and bias that predict left-out folds best, sought in turn."""
    rest = [(positives.sum(0) - positives[k], pairs.sum(0) - pairs[k]) for k in range(_FOLDS)]
    shared = [_shared_line(*counts) for counts in rest]
    known: dict[tuple[float, float], float] = {}

    def left_out_loss(spreads: tuple[float, float]) -> float:
        if spreads not in known:
            losses = (
                _log_loss(_stray(shared[k], *rest[k], spreads).logits(), positives[k], pairs[k])
                for k in range(_FOLDS)
            )
            known[spreads] = sum(losses)
        return known[spreads]

    slope = bias = 0.0
    for _ in range(2):
        bias = min(_BIAS_SPREADS, key=lambda spread: left_out_loss((slope, spread)))
        slope = min(_SLOPE_SPREADS, key=lambda spread: left_out_loss((spread, bias)))
    return slope, bias


def _log_loss(logits: Tensor, positives: Tensor, pairs: Tensor) -> float:
    return float((pairs * softplus(logits) - positives * logits).sum())


# ---------------------------------------------------------------------- thresholds


def _thresholds(logits: Tensor, positives: Tensor, pairs: Tensor, precision: float | None) -> Tensor:
    """Calibrated probabilities (S,) from which on tags are shown, infinity for never.

    Of calibrated logits (S, bins) in ascending order, and what was counted there.
    """
    if precision is not None:
        return _precise(logits, positives, pairs, precision)
    one = _best_f1(*_pooled(logits, positives, pairs))
    expected = pairs * logits.sigmoid()
    own = _best_f1(logits, expected, pairs)
    # Nothing is expected of a tag that nobody judged, and it has the shared one.
    share = expected.sum(1) / (2 * expected.sum(1) + 1)
    return (share * own + (1 - share) * one).sigmoid()


def _precise(logits: Tensor, positives: Tensor, pairs: Tensor, precision: float) -> Tensor:
    """The lowest calibrated probabilities (S,) from which on the precision is that, infinity for nowhere."""
    expected = pairs * logits.sigmoid()
    shown = _from_there_on(pairs)
    hits = _from_there_on(positives) + _PRIOR * _from_there_on(expected) / shown.clamp_min(1)
    reached = (_lower_bound(hits, shown + _PRIOR) >= precision) & (pairs > 0)
    return logits.sigmoid().masked_fill(~reached, math.inf).amin(1)


def _pooled(logits: Tensor, positives: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The bins (S, bins) of all tags as those of one (1, S · bins), in ascending order of their logits."""
    order = logits.reshape(-1).argsort()
    logits, positives, pairs = (each.reshape(1, -1)[:, order] for each in (logits, positives, pairs))
    return logits, positives, pairs


def _best_f1(logits: Tensor, positives: Tensor, pairs: Tensor) -> Tensor:
    """The logits (S,), of those (S, bins) in ascending order, from which on F1 is highest."""
    hits, shown = _from_there_on(positives), _from_there_on(pairs)
    f1 = 2 * hits / (shown + positives.sum(1, keepdim=True)).clamp_min(1e-12)
    # Bins that hold nothing would lower a threshold to where nothing is known.
    best = f1.masked_fill(pairs == 0, -1.0).argmax(1, keepdim=True)
    return logits.gather(1, best)[:, 0]


def _from_there_on(counts: Tensor) -> Tensor:
    """The sum of each bin (..., bins) and all above."""
    return counts.flip(-1).cumsum(-1).flip(-1)


def _lower_bound(hits: Tensor, shown: Tensor) -> Tensor:
    """Wilson's lower bound of a share."""
    z, rate = _CONFIDENT, hits / shown
    spread = z * (rate * (1 - rate) / shown + z * z / (4 * shown * shown)).clamp_min(0).sqrt()
    return (rate + z * z / (2 * shown) - spread) / (1 + z * z / shown)


# ---------------------------------------------------------------------- what it is worth


def _held_out(
    positives: Tensor, pairs: Tensor, spreads: tuple[float, float], precision: float | None, videos: int
) -> dict[str, Any]:
    """Each fold read by what was fitted on the others, but for the two spreads: fields of `Calibrated`."""
    trained = _MIDDLES.expand_as(pairs[0])
    calibrated = torch.empty_like(pairs)
    shown = {
        name: torch.zeros(2, pairs.shape[1], dtype=torch.float64)
        for name in ("0.5", "one threshold", "fitted")
    }
    for k in range(_FOLDS):
        others = positives.sum(0) - positives[k], pairs.sum(0) - pairs[k]
        calibrated[k] = _stray(_shared_line(*others), *others, spreads).logits()
        fitted = _thresholds(calibrated[k], *others, precision).logit()
        one = _best_f1(_MIDDLES[None], *(each.sum(0, keepdim=True) for each in others))
        for name, logits, threshold in (
            ("0.5", trained, torch.zeros(1, dtype=torch.float64)),
            ("one threshold", trained, one),
            ("fitted", calibrated[k], fitted.nan_to_num(math.inf, math.inf)),
        ):
            above = logits >= threshold[:, None]
            shown[name] += torch.stack([(above * counts[k]).sum(1) for counts in (positives, pairs)])
    both = (trained.expand_as(calibrated), calibrated)
    true = positives.sum((0, 2))
    return {
        "calibration_error": tuple(_calibration_error(logits, positives, pairs) for logits in both),
        "log_loss": tuple(_log_loss(logits, positives, pairs) / videos for logits in both),
        "shown": {name: _shown(hits, predicted, true, videos) for name, (hits, predicted) in shown.items()},
    }


def _shown(hits: Tensor, predicted: Tensor, true: Tensor, videos: int) -> Shown:
    """Of counts a tag (S,): right, shown, and true; a tag that nothing has is not in the mean over tags."""
    f1 = (2 * hits / (predicted + true))[true > 0]
    return Shown(
        micro_f1=float(2 * hits.sum() / (predicted.sum() + true.sum())),
        macro_f1=float(f1.mean()),
        precision=float(hits.sum() / predicted.sum().clamp_min(1)),
        recall=float(hits.sum() / true.sum()),
        tags_per_video=float(predicted.sum() / videos),
    )


def _calibration_error(logits: Tensor, positives: Tensor, pairs: Tensor) -> float:
    """What `Calibration` says of these pairs, but for the width of our bins."""
    scores = logits.sigmoid().reshape(-1)
    edges = torch.from_numpy(Calibration().edges()).double()
    bins = torch.bucketize(scores, edges, right=True)
    off = torch.zeros(len(edges) + 1, dtype=torch.float64)
    off.index_add_(0, bins, scores * pairs.reshape(-1) - positives.reshape(-1))
    return float(off.abs().sum() / pairs.sum())


def _short(number: float) -> float:
    """Six digits, which is more than is known, for whoever reads the file."""
    return float(f"{number:.6g}")
