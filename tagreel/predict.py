"""What a model predicts, written to a file: a row a video or a segment, or a ranking of segments a class.

Rows are first written in parts of a fixed number of batches, into a folder beside the output (`Parts`); at
the end the parts become one file. A part depends on the model, the data and its number alone, so that the
file is the same to the byte by however many processes or machines it was made, and however often they were
killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from tagreel.batch import Batch
from tagreel.errors import DataError, RecipeError, TagreelError
from tagreel.folding import fold
from tagreel.loader import Loader
from tagreel.model import Model
from tagreel.predict_parts import Parts
from tagreel.predict_rows import Ranked, Tagged
from tagreel.predictions import FORMATS, RANKED, line_error, table
from tagreel.ranking import cut
from tagreel.recorded import Recorded
from tagreel.remote import is_url
from tagreel.sampling import view
from tagreel.tags import TagSet

TOP_K = 20
PART_VIDEOS = 8192
_SEGMENTS = 64  # of a video of usual length
_NO_ROWS = table([], *(np.zeros(0, np.int64),) * 3)


@dataclass(frozen=True)
class Prediction:
    """What `predict` wrote.

    `rows` videos, or segments of them, of which an earlier, killed run had left `resumed`; `damaged` lists
    the records that could not be read. This run scored `videos`, and for `waiting` of its time, 0 to 1, the
    model, wherever it ran, waited for data. If not `whole`, others have parts left to make, and there is no
    file yet.
    """

    path: Path
    rows: int
    resumed: int
    damaged: list[str]
    videos: int
    waiting: float
    whole: bool


def predict(
    model: Model,
    loader: Loader,
    out: Path,
    *,
    device: torch.device,
    top_k: int | None = None,
    only: Sequence[int] | None = None,
    segments: int | None = None,
    per_class: int | None = None,
    tags: TagSet | None = None,
    threshold: bool = False,
    part: tuple[int, int] = (1, 1),
    engine: Literal["local", "ray"] = "local",
    precision: str = "float32",
    on_batch: Callable[[int], None] | None = None,
) -> Prediction:
    """Write the `top_k` tags (20) of every video of the loader to `out`, whose ending says the format.

    .parquet: columns id, labels, names, probabilities. .jsonl: one object a video with the same keys. .csv:
    YouTube-8M's submission file, `VideoId,LabelConfidencePairs`. `only` are the classes to choose from.

    With `tags` it is those that are written, without the column labels and not as .csv, which is of classes;
    `only` chooses the ones made of any of its classes. With `threshold` a video has those alone that reach
    theirs, or none.

    With `segments` each video, which the loader must read whole, is cut into segments of that many frames,
    each scored as the model reads a video of as many, and named `video:start`. There .csv is 2019's ranking,
    `Class,Segments`: the `per_class` best (100,000) of every class, in descending order. Raises `RecipeError`
    for another ending, and for options that do not fit.

    The same call goes on where one was stopped. As `part` (i, n) only the i-th of n equal shares of the work
    is done, by processes that see the same `out`; the last one makes the file. With Ray as `engine` parts are
    made by the workers of a cluster that see the same folders, each on `loader.threads` cores or, where
    `device` is a GPU, on one of those. The model predicts folded, in `precision` (`tagreel.folding`).
    `on_batch` is told how many videos of the share are done.
    """
    ranked = segments is not None and out.suffix == ".csv"
    _check_options(out, top_k=top_k, segments=segments, per_class=per_class, ranked=ranked)
    if out.suffix == ".csv" and tags is not None:
        raise RecipeError(f"--out {out}: .csv is of classes, not of tags; expected .parquet or .jsonl")
    if threshold and (tags is None or tags.fitted is None):
        raise RecipeError(
            "--threshold: tags have one once `tagreel calibrate` was run; classes as trained (--raw, .csv) "
            "have none"
        )
    if segments is not None and not model.features:
        raise RecipeError("--segments cuts frames, and this model looks at none")
    listed = np.arange(model.classes) if only is None else np.unique(only)
    ranking = (per_class or RANKED) if ranked else None
    settings: list[object] = [top_k or TOP_K, listed.tolist(), segments, ranking, precision]
    if tags is not None:
        settings += [repr(tags.tags), threshold]
    output = (
        Ranked(listed, per_class or RANKED)
        if ranked
        else Tagged(listed, top_k or TOP_K, model.label_names, tags=tags, threshold=threshold)
    )
    size = _part_size(loader, segments)
    parts = Parts(out, run=_fingerprint(model, loader, settings), count=-(-len(loader) // size))
    work = _Work(fold(model, precision), loader, parts, output, device, segments, size)
    try:
        resumed, videos, waiting = _make(work, part, engine, on_batch)
    except TagreelError:
        parts.remove_empty()
        raise
    found = [there for number in range(parts.count) if (there := parts.find(number)) is not None]
    rows = sum(each.rows for each in found)
    damaged = [error for each in found for error in each.damaged]
    _check_damage(damaged, loader.skip_damaged)
    whole = len(found) == parts.count
    if whole and not rows:
        parts.remove()
        raise DataError("no record could be read", path=str(loader.source.paths[0]))
    if whole:
        _assemble(output, parts, out)
    return Prediction(out, rows, resumed, list(map(str, damaged)), videos, waiting, whole)


def videos_of(loader: Loader, part: tuple[int, int], *, segments: int | None = None) -> int:
    """How many videos the i-th of n shares of the work has, damaged ones counted."""
    size = _part_size(loader, segments)
    return _videos(loader, _share(-(-len(loader) // size), part), size)


def read_classes(path: str | Path, *, classes: int) -> list[int]:
    """The classes that a file lists, one a line, in ascending order; a first line of words is a header.

    Of a line with commas the first column counts. Raises `DataError` for what is none of `classes`.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=str(path)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text: byte {error.start}", path=str(path)) from error
    seen: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        word = line.partition(",")[0].strip(' "')
        if not word or (number == 1 and not word.isdecimal()):
            continue
        if not word.isdecimal() or int(word) >= classes:
            raise line_error(
                path, number, f"{word!r}; expected one of {classes:,} classes (0 to {classes - 1:,})"
            )
        if int(word) in seen:
            raise line_error(path, number, f"class {word} again, as in line {seen[int(word)]:,}")
        seen[int(word)] = number
    if not seen:
        raise DataError("lists no class; expected the number of one a line", path=str(path))
    return sorted(seen)


def _check_options(
    out: Path, *, top_k: int | None, segments: int | None, per_class: int | None, ranked: bool
) -> None:
    if out.suffix not in FORMATS:
        raise RecipeError(f"--out {out}: the ending must be one of {', '.join(FORMATS)}")
    if out.is_dir():
        raise RecipeError(f"--out {out}: is a folder; expected the name of a file")
    for name, value in (("--top-k", top_k), ("--segments", segments), ("--per-class", per_class)):
        if value is not None and value < 1:
            raise RecipeError(f"{name} is {value}; expected at least 1")
    if ranked and top_k is not None:
        raise RecipeError("--top-k is of rows, and --segments with .csv writes a ranking; give --per-class")
    if not ranked and per_class is not None:
        raise RecipeError("--per-class is of a ranking; write one with --segments 5 --out FILE.csv")


def _check_frames(batch: Batch, path: str) -> None:
    if all(max(count, default=0) < 2 for count in batch.num_frames.values()):
        raise DataError("has one vector a video; segments are parts of frame-level records", path=path)


def _shown(model: Model, batch: Batch, segments: int | None, *, at_once: int) -> Iterator[Batch]:
    """What the model scores of a batch: its videos, or their segments as it reads videos of that length."""
    if not len(batch):
        return
    if segments is None:
        yield batch
        return
    sampler = model.reads()
    for piece in cut(batch, segments, at_once=at_once):
        yield view(piece, sampler)


@dataclass(frozen=True)
class _Step:
    """Videos that are done, what of them was damaged, and in how many seconds, `waited` of them for data."""

    videos: int
    damaged: list[DataError]
    seconds: float
    waited: float


@dataclass
class _Work:
    """What makes parts, of `size` batches each."""

    model: Model
    loader: Loader
    parts: Parts
    output: Tagged | Ranked
    device: torch.device
    segments: int | None
    size: int

    def make(self, numbers: range) -> Iterator[_Step]:
        """Make parts that follow each other, a step a batch."""
        tables, damaged = [_NO_ROWS], []
        began, waited = time.perf_counter(), self.loader.waited
        start, stop = numbers.start * self.size, numbers.stop * self.size
        for index, batch in self.loader.epoch(start=start, stop=stop, empty=True):
            number, place = divmod(index, self.size)
            if place == 0:
                self.output.begin(number, self.parts)
            if self.segments is not None and index == 0:
                _check_frames(batch, str(self.loader.source.paths[0]))
            tables += self._rows(batch)
            damaged += batch.damaged
            seconds, waiting = time.perf_counter() - began, self.loader.waited - waited
            yield _Step(len(batch) + len(batch.damaged), batch.damaged, seconds, waiting)
            began, waited = time.perf_counter(), self.loader.waited
            if place == self.size - 1 or index == len(self.loader) - 1:
                self.parts.add(number, pa.concat_tables(tables), damaged)
                tables, damaged = [_NO_ROWS], []

    @torch.inference_mode()
    def _rows(self, batch: Batch) -> list[pa.Table]:
        """The rows of a batch."""
        tables = []
        for shown in _shown(self.model, batch.to(self.device), self.segments, at_once=self.loader.batch_size):
            scores = self.model.probabilities(shown)
            if scores.isnan().any():
                raise RecipeError("the model's scores are NaN; its weights cannot be used")
            tables.append(self.output.rows(shown.ids, scores))
        return tables


def _make(
    work: _Work, part: tuple[int, int], engine: str, on_batch: Callable[[int], None] | None
) -> tuple[int, int, float]:
    """Make what is missing of a share.

    Returns how many rows were there, how many videos are done now, and for what share of the time the model
    waited.
    """
    damaged: list[DataError] = []
    missing, resumed, before = [], 0, 0
    for number in _share(work.parts.count, part):
        there = work.parts.find(number)
        if there is None:
            missing.append(number)
            continue
        resumed += there.rows
        damaged += there.damaged
        before += _videos(work.loader, range(number, number + 1), work.size)
    videos, seconds, waited = 0, 0.0, 0.0
    for step in _on_ray(work, missing) if engine == "ray" else _here(work, missing):
        damaged += step.damaged
        _check_damage(damaged, work.loader.skip_damaged)
        videos, seconds, waited = videos + step.videos, seconds + step.seconds, waited + step.waited
        if on_batch is not None:
            on_batch(before + videos)
    return resumed, videos, waited / seconds if seconds else 0.0


def _here(work: _Work, missing: Sequence[int]) -> Iterator[_Step]:
    """Make parts one after the other; those that follow each other without a stop between them."""
    for _, run in groupby(enumerate(missing), key=lambda placed: placed[1] - placed[0]):
        numbers = [number for _, number in run]
        yield from work.make(range(numbers[0], numbers[-1] + 1))


def _on_ray(work: _Work, missing: Sequence[int]) -> Iterator[_Step]:
    """Make parts as a Ray Data job, each by one of as many actors as the cluster has room for.

    A part that was lost with its worker is made again by another.
    """
    if not missing:
        return
    for model in work.model.modules():
        if isinstance(model, Recorded):
            raise RecipeError(
                f"--engine ray: {model.name} holds predictions, which another process cannot look up; share "
                "the work with --part I/N"
            )
    ray = connected()
    cores, gpus = work.loader.threads, int(work.device.type == "cuda")
    workers = min(_room(ray.nodes(), cores=cores, gpus=gpus), len(missing))
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Packed by us: arrays that Ray packs cannot be written to where they come out.
    packed = ray.cloudpickle.dumps(_portable(work))
    rows = [{"part": number} for number in missing]
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Maker,
        fn_constructor_args=(ray.put(packed),),
        num_cpus=cores,
        num_gpus=gpus,
        # One part at a time: what is queued at a slow worker, others wait for in the end.
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=workers, initial_size=workers, max_tasks_in_flight_per_actor=1
        ),
    )
    for row in made.iter_rows():
        if isinstance(row["made"], TagreelError):
            raise row["made"]
        yield from row["made"]


def connected() -> Any:
    """Ray, connected to the cluster that RAY_ADDRESS names, else to one of this machine's cores."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RecipeError("--engine ray needs Ray; install it with pip install 'tagreel[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="warning")
    return ray


def cluster_device(name: str) -> torch.device:
    """Where a cluster's workers compute: "cpu", "cuda" (a GPU each), or "auto", a GPU where there are any."""
    if name not in ("auto", "cpu", "cuda"):
        raise RecipeError(f"device {name!r} is one of a machine; of a cluster expected auto, cpu or cuda")
    gpus = int(connected().cluster_resources().get("GPU", 0))
    if name == "cuda" and not gpus:
        raise RecipeError("device 'cuda': the cluster has no GPU; expected auto or cpu")
    return torch.device("cuda" if gpus and name != "cpu" else "cpu")


def _room(machines: Sequence[Mapping[str, Any]], *, cores: int, gpus: int) -> int:
    """How many workers fit on machines; raises `RecipeError` where not even one does."""
    room = 0
    for machine in machines:
        has = machine["Resources"] if machine["Alive"] else {}
        fits = int(has.get("CPU", 0)) // cores
        room += min(fits, int(has.get("GPU", 0)) // gpus) if gpus else fits
    if not room:
        more = " and a GPU" if gpus else ""
        raise RecipeError(
            f"--threads {cores}: no machine of the cluster has {cores:,} cores{more} for a worker; expected "
            "fewer threads, or more machines"
        )
    return room


class _Maker:
    """What a worker of a cluster is: it holds the model, and makes the parts that it is told."""

    def __init__(self, work: Any) -> None:
        import ray

        self._work: _Work = ray.cloudpickle.loads(ray.get(work))
        self._work.model.to(self._work.device)
        torch.set_num_threads(self._work.loader.threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make one; an error is returned, or the cluster would take it for its own and wrap it."""
        number = row["part"]
        try:
            return {"made": list(self._work.make(range(number, number + 1)))}
        except TagreelError as error:
            return {"made": error}


def _portable(work: _Work) -> _Work:
    """The work as a machine takes it that has no GPU yet, and another current folder."""
    loader = copy(work.loader)
    loader.source = copy(loader.source)
    loader.source.paths = [path if is_url(path) else os.path.abspath(path) for path in loader.source.paths]
    return replace(work, model=work.model.cpu(), loader=loader)


def _assemble(output: Tagged | Ranked, parts: Parts, out: Path) -> None:
    """Make the file of its parts."""
    try:
        with parts.written(out) as temporary:
            output.write(temporary, parts, out.suffix)
    except FileNotFoundError:
        if parts.folder.exists():
            raise
        return  # another process has done it
    parts.remove()


def _part_size(loader: Loader, segments: int | None) -> int:
    """How many batches make a part."""
    return max(PART_VIDEOS // (loader.batch_size * (_SEGMENTS if segments else 1)), 1)


def _share(parts: int, part: tuple[int, int]) -> range:
    """The i-th of n equal shares of so many parts, which follow each other as their videos do."""
    i, n = part
    return range(parts * (i - 1) // n, parts * i // n)


def _videos(loader: Loader, numbers: range, size: int) -> int:
    """How many videos there are in parts of `size` batches that follow each other."""
    first, stop = (
        min(at * size * loader.batch_size, loader.examples) for at in (numbers.start, numbers.stop)
    )
    return stop - first


def _check_damage(damaged: Sequence[DataError], allowed: int) -> None:
    """Raise where more records are damaged than may be, counted over all parts."""
    if len(damaged) <= allowed:
        return
    error = damaged[allowed]
    if not allowed:
        raise error
    raise DataError(
        f"{error.reason}; this is damaged record number {allowed + 1:,}, and --skip-damaged allows "
        f"{allowed:,}",
        path=error.path,
        record=error.record,
    )


def _fingerprint(model: Model, loader: Loader, settings: list[object]) -> str:
    """Says on a restart whether the parts that lie there belong to the same model, data and settings."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(
        json.dumps(
            [
                loader.source.fingerprint(),
                loader.source.versions(),  # another day's shards often have the names and sizes of this one's
                loader.batch_size,
                PART_VIDEOS,
                settings,
                model.label_names,
                model.settings(),
            ]
        ).encode()
    )
    return digest.hexdigest()
