"""Prediction files: the top-k tags of every video, one row each, in the order of the input.

Rows are first written in parts of a fixed number of batches, into a folder beside the output. A run that was
killed starts again behind its last whole part; at the end the parts become one file, under a temporary name
that is then renamed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tagreel.batch import Batch
from tagreel.checkpoint import read_json, write_json
from tagreel.errors import DataError, RecipeError
from tagreel.loader import Loader
from tagreel.model import Model, top_classes

FORMATS = (".parquet", ".jsonl", ".csv")
PART_VIDEOS = 8192

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("names", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Prediction:
    """What `predict` wrote.

    `videos` rows, of which `resumed` were left by an earlier, killed run; `damaged` lists the records that
    could not be read.
    """

    path: Path
    videos: int
    resumed: int
    damaged: list[str]


@torch.inference_mode()
def predict(
    model: Model,
    loader: Loader,
    out: Path,
    *,
    device: torch.device,
    top_k: int = 20,
    on_batch: Callable[[int], None] | None = None,
) -> Prediction:
    """Write the `top_k` tags of every video of the loader to `out`, whose ending says the format.

    .parquet: columns id, labels, names, probabilities. .jsonl: one object a video with the same keys. .csv:
    YouTube-8M's submission file, `VideoId,LabelConfidencePairs`. Raises `RecipeError` for another ending.
    """
    if out.suffix not in FORMATS:
        raise RecipeError(f"--out {out}: the ending must be one of {', '.join(FORMATS)}")
    if out.is_dir():
        raise RecipeError(f"--out {out}: is a folder; expected the name of a file")
    if top_k < 1:
        raise RecipeError(f"--top-k is {top_k}; expected at least 1")
    model.eval()
    parts = _Parts(out, _fingerprint(model, loader, top_k))
    batches_per_part = max(PART_VIDEOS // loader.batch_size, 1)
    resumed = done = parts.rows()
    tables: list[pa.Table] = []
    damaged: list[str] = []

    def finish_part() -> None:
        table = pa.concat_tables(tables) if tables else _SCHEMA.empty_table()
        parts.add(table, damaged)
        tables.clear()
        damaged.clear()

    start = len(parts) * batches_per_part
    part = len(parts)
    for index, batch in loader.epoch(start=start, empty=True):
        if index // batches_per_part > part:
            finish_part()
            part += 1
        damaged += map(str, batch.damaged)
        if len(batch):
            tables.append(_rows(model, batch, device, min(top_k, model.classes)))
        done += len(batch)
        if on_batch is not None:
            on_batch(done)
    if part < -(-len(loader) // batches_per_part):
        finish_part()
    listed = parts.damaged()
    if not done:
        parts.remove()
        raise DataError("no record could be read", path=str(loader.source.paths[0]))
    parts.join(out)
    return Prediction(path=out, videos=done, resumed=resumed, damaged=listed)


def _rows(model: Model, batch: Batch, device: torch.device, top_k: int) -> pa.Table:
    best, classes = top_classes(model.probabilities(batch.to(device)), top_k)
    labels = classes.cpu()
    names = [[model.label_names[label] for label in row] for row in labels.tolist()]
    scores = pa.array(best.cpu().numpy().reshape(-1))
    flat = pa.array(labels.to(torch.int32).numpy().reshape(-1))
    offsets = pa.array(range(0, len(batch) * top_k + 1, top_k), pa.int32())
    columns = [
        pa.array(batch.ids, pa.string()),
        pa.ListArray.from_arrays(offsets, flat),
        pa.array(names, pa.list_(pa.string())),
        pa.ListArray.from_arrays(offsets, scores),
    ]
    return pa.table(columns, schema=_SCHEMA)


def _fingerprint(model: Model, loader: Loader, top_k: int) -> str:
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
                loader.seed,
                top_k,
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
        path = self._path(len(self))
        temporary = path.with_suffix(".partial")
        pq.write_table(table.replace_schema_metadata({"damaged": json.dumps(damaged)}), temporary)
        _commit(temporary, path)

    def tables(self) -> Iterator[pa.Table]:
        for index in range(len(self)):
            yield pq.read_table(self._path(index)).replace_schema_metadata(None)

    def join(self, out: Path) -> None:
        """All parts as one file, then no parts."""
        temporary = out.with_name(out.name + ".partial")
        if out.suffix == ".parquet":
            with pq.ParquetWriter(temporary, _SCHEMA) as writer:
                for table in self.tables():
                    writer.write_table(table)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                write = _write_csv if out.suffix == ".csv" else _write_jsonl
                write(file, (row for table in self.tables() for row in table.to_pylist()))
        _commit(temporary, out)
        self.remove()

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def _readable(part: Path) -> bool:
    try:
        pq.read_table(part)
    except (OSError, pa.ArrowException):
        return False
    return True


def _commit(temporary: Path, path: Path) -> None:
    """Give a whole file its name; on disk first, or a power cut could leave the name without the rows."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _write_jsonl(file: TextIO, rows: Iterator[dict[str, Any]]) -> None:
    for row in rows:
        row["probabilities"] = [float(f"{p:.6g}") for p in row["probabilities"]]
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_csv(file: TextIO, rows: Iterator[dict[str, Any]]) -> None:
    table = csv.writer(file, lineterminator="\n")
    table.writerow(("VideoId", "LabelConfidencePairs"))
    for row in rows:
        pairs = zip(row["labels"], row["probabilities"], strict=True)
        table.writerow((row["id"], " ".join(f"{label} {p:.6g}" for label, p in pairs)))
