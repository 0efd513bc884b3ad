"""What a model predicts, written to a file: a row a video or a segment, or a ranking of segments a class.

Rows are first written in parts of a fixed number of batches, into a folder beside the output. A run that was
killed starts again behind its last whole part; at the end the parts become one file, under a temporary name
that is then renamed. For a ranking a part holds what was then among a class's best, and what came later can
only have displaced it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagreel.batch import Batch
from tagreel.errors import DataError, RecipeError
from tagreel.files import read_json, write_json, written_whole
from tagreel.loader import Loader
from tagreel.model import Model, top_classes
from tagreel.predictions import FORMATS, RANKED, line_error, table, write, write_ranking
from tagreel.ranking import Ranking, cut
from tagreel.sampling import view
from tagreel.tags import TagSet

TOP_K = 20
PART_VIDEOS = 8192
_SEGMENTS = 64  # of a video of usual length
_NO_ROWS = table([], *(np.zeros(0, np.int64),) * 3)


@dataclass(frozen=True)
class Prediction:
    """What `predict` wrote.

    `rows` videos, or segments of them, of which `resumed` were left by an earlier, killed run; `damaged`
    lists the records that could not be read.
    """

    path: Path
    rows: int
    resumed: int
    damaged: list[str]


@torch.inference_mode()
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
    model.eval()
    listed = np.arange(model.classes) if only is None else np.unique(only)
    settings = [top_k or TOP_K, listed.tolist(), segments, (per_class or RANKED) if ranked else None]
    if tags is not None:
        settings += [repr(tags.tags), threshold]
    output = (
        _Ranked(listed, per_class or RANKED)
        if ranked
        else _Tagged(listed, top_k or TOP_K, model.label_names, tags=tags, threshold=threshold)
    )
    parts = _Parts(out, _fingerprint(model, loader, settings))
    output.resume(parts)
    batches_per_part = max(PART_VIDEOS // (loader.batch_size * (_SEGMENTS if segments else 1)), 1)
    resumed = parts.rows()
    tables: list[pa.Table] = []
    damaged: list[str] = []

    def finish_part() -> None:
        parts.add(pa.concat_tables([_NO_ROWS, *tables]), damaged)
        tables.clear()
        damaged.clear()

    start = part = len(parts)
    for index, batch in loader.epoch(start=start * batches_per_part, empty=True):
        if index // batches_per_part > part:
            finish_part()
            part += 1
        damaged += map(str, batch.damaged)
        if segments is not None and index == 0:
            _check_frames(batch, str(loader.source.paths[0]))
        for shown in _shown(model, batch.to(device), segments, at_once=loader.batch_size):
            scores = model.probabilities(shown)
            if scores.isnan().any():
                raise RecipeError("the model's scores are NaN; its weights cannot be used")
            tables.append(output.rows(shown.ids, scores))
        if on_batch is not None:
            on_batch(min((index + 1) * loader.batch_size, len(loader.source)))
    if part < -(-len(loader) // batches_per_part):
        finish_part()
    listed_damage, done = parts.damaged(), parts.rows()
    if not done:
        parts.remove()
        raise DataError("no record could be read", path=str(loader.source.paths[0]))
    with written_whole(out) as temporary:
        output.write(temporary, parts, out.suffix)
    parts.remove()
    return Prediction(path=out, rows=done, resumed=resumed, damaged=listed_damage)


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


class _Tagged:
    """A file of rows: of each video the `top_k` best of the classes `only`, or of the tags made of them."""

    def __init__(
        self,
        only: NDArray[np.int64],
        top_k: int,
        label_names: Sequence[str],
        *,
        tags: TagSet | None = None,
        threshold: bool = False,
    ) -> None:
        self.only, self.names, self.tags = only, label_names, tags
        self.thresholds = tags.thresholds if tags is not None and threshold else None
        if tags is not None:
            chosen = [np.isin(tag.classes, only).any() for tag in tags.tags]
            self.only, self.names = np.flatnonzero(chosen), tags.names
            if not len(self.only):
                raise RecipeError("--only: no tag is made of any of these classes; --raw has them as trained")
        self.top_k = min(top_k, len(self.only))

    def rows(self, ids: Sequence[str], scores: Tensor) -> pa.Table:
        """The rows of some videos with their scores (B, C)."""
        if self.tags is not None:
            scores = self.tags.apply(scores)
        if self.thresholds is not None:
            scores = scores.masked_fill(scores < self.thresholds.to(scores.device), -1.0)
        if len(self.only) < scores.shape[1]:
            scores = scores[:, torch.from_numpy(self.only).to(scores.device)]
        best, classes = top_classes(scores, self.top_k)
        shown = (best >= 0).cpu().numpy()
        found = self.only[classes.cpu().numpy()][shown]
        return table(ids, shown.sum(1), found, best.float().cpu().numpy()[shown], self.names)

    def resume(self, parts: _Parts) -> None:
        """Go on behind the rows of an earlier run, of which there is nothing to know."""

    def write(self, path: Path, parts: _Parts, ending: str) -> None:
        """Write all rows in the format that the ending says; of tags the labels would be no classes."""
        write(path, parts.tables(), ending, labels=self.tags is None)


class _Ranked:
    """A ranking: of each of the classes `only` its best segments, made of rows of what may be among them."""

    def __init__(self, only: NDArray[np.int64], per_class: int) -> None:
        self.only, self._ranking = only, Ranking(len(only), per_class)

    def rows(self, ids: Sequence[str], scores: Tensor) -> pa.Table:
        """The rows of some segments with their scores (B, C)."""
        for name in ids:
            if name.split() != [name]:
                raise RecipeError(
                    f"the video {name.rpartition(':')[0]!r} has a space in its id, by which a ranking parts "
                    "segments; write .parquet or .jsonl"
                )
        found = scores.float().cpu().numpy()[:, self.only]
        chosen = self._ranking.add(found)
        classes = self.only[np.nonzero(chosen)[1]]
        return table(ids, chosen.sum(1), classes, found[chosen])

    def resume(self, parts: _Parts) -> None:
        """Take in the rows of an earlier run."""
        for piece in (p for rows in parts.tables() for p in rows.to_batches(max_chunksize=4096)):
            labels, scores = (piece.column(name) for name in ("labels", "probabilities"))
            segments = np.repeat(np.arange(len(piece)), pc.list_value_length(labels).to_numpy())
            classes = np.searchsorted(self.only, labels.flatten().to_numpy())
            found = np.zeros((len(piece), len(self.only)), np.float32)
            found[segments, classes] = scores.flatten().to_numpy()
            self._ranking.add(found)

    def write(self, path: Path, parts: _Parts, ending: str) -> None:
        """Write what is left of all that was taken in; the parts say what the segments are called."""
        ids = pa.concat_tables(parts.tables("id")).column("id").cast(pa.large_string()).combine_chunks()
        best = zip(self.only.tolist(), self._ranking.best(), strict=True)
        write_ranking(path, ((label, ids.take(pa.array(rows)).to_pylist()) for label, rows in best))


def _fingerprint(model: Model, loader: Loader, settings: list[object]) -> str:
    """Says on a restart whether the parts that lie there belong to the same model, data and settings."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else b"")
    # Times too: another day's shards often have the names and sizes of this one's.
    changed = [os.stat(path).st_mtime_ns if os.path.exists(path) else 0 for path in loader.source.paths]
    digest.update(
        json.dumps(
            [
                loader.source.fingerprint(),
                changed,
                loader.batch_size,
                PART_VIDEOS,
                settings,
                model.label_names,
                model.settings(),
            ]
        ).encode()
    )
    return digest.hexdigest()


class _Parts:
    """The folder of finished parts beside an output file."""

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.folder = out.with_name(out.name + ".parts")
        manifest = self.folder / "manifest.json"
        if not manifest.exists() or read_json(manifest) != {"fingerprint": fingerprint}:
            shutil.rmtree(self.folder, ignore_errors=True)
            try:
                self.folder.mkdir(parents=True)
            except OSError as error:
                raise DataError(f"cannot be written: {error.strerror}", path=str(out)) from error
            write_json(manifest, {"fingerprint": fingerprint})
        whole = list(map(_readable, map(self._path, range(len(self)))))
        if not all(whole):
            for index in range(whole.index(False), len(whole)):
                self._path(index).unlink()

    def _path(self, index: int) -> Path:
        return self.folder / f"part-{index:06d}.parquet"

    def __len__(self) -> int:
        count = 0
        while self._path(count).exists():
            count += 1
        return count

    def rows(self) -> int:
        return sum(pq.read_metadata(self._path(index)).num_rows for index in range(len(self)))

    def damaged(self) -> list[str]:
        noted = [pq.read_schema(self._path(index)).metadata[b"damaged"] for index in range(len(self))]
        return [line for lines in noted for line in json.loads(lines)]

    def add(self, table: pa.Table, damaged: list[str]) -> None:
        with written_whole(self._path(len(self))) as temporary:
            pq.write_table(table.replace_schema_metadata({"damaged": json.dumps(damaged)}), temporary)

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        for index in range(len(self)):
            yield pq.read_table(self._path(index), columns=list(columns) or None).replace_schema_metadata(
                None
            )

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def _readable(part: Path) -> bool:
    try:
        pq.read_table(part)
    except (OSError, pa.ArrowException):
        return False
    return True
