"""Parts of an output file: finished pieces of its rows, in a folder beside it, until they become the file.

A part has its name once it is whole, and says in itself of which run it is. So any number of processes, on
all machines that see the folder, make parts at the same time, and each may be killed at any moment: what is
missing is made again, and who made a part, or whether two did, makes no difference.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from tagreel.errors import DataError
from tagreel.files import flush

_RUN, _DAMAGED = b"run", b"damaged"


@dataclass(frozen=True)
class Part:
    """What is known of a finished part: how many rows it has, and the records that could not be read."""

    rows: int
    damaged: list[DataError]


class Parts:
    """The parts 0 ... `count` - 1 of the file `out` in a run that `run` identifies; others' do not count.

    Raises `DataError` where their folder cannot be made.
    """

    def __init__(self, out: Path, *, run: str, count: int) -> None:
        self.run, self.count = run, count
        self.folder = out.absolute().with_name(out.name + ".parts")  # workers have other current folders
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot be written: {error.strerror}", path=str(out)) from error

    def find(self, number: int) -> Part | None:
        """What is known of a part; None where it is missing."""
        try:
            metadata = pq.read_metadata(self._path(number))
        except (OSError, pa.ArrowException):
            return None
        noted = metadata.metadata or {}
        if noted.get(_RUN) != self.run.encode():
            return None
        damaged = [
            DataError(reason, path=path, record=record)
            for path, record, reason in json.loads(noted[_DAMAGED])
        ]
        return Part(metadata.num_rows, damaged)

    def add(self, number: int, rows: pa.Table, damaged: Sequence[DataError]) -> None:
        """Write a part."""
        noted = json.dumps([(error.path, error.record, error.reason) for error in damaged])
        with self.written(self._path(number)) as temporary:
            pq.write_table(
                rows.replace_schema_metadata({_RUN: self.run, _DAMAGED: noted}),
                temporary,
                write_page_checksum=True,
            )

    def table(self, number: int, *columns: str) -> pa.Table:
        """The rows of a part; raises `DataError` where it is damaged, and removes it, to be made again."""
        path = self._path(number)
        try:
            rows = pq.read_table(path, columns=list(columns) or None, page_checksum_verification=True)
        except FileNotFoundError:  # somebody else has made the file of it
            raise
        except (OSError, pa.ArrowException) as error:
            path.unlink(missing_ok=True)
            raise DataError(
                f"was damaged after it was written, and is removed: {error}; the same command makes it again",
                path=str(path),
            ) from error
        return rows.replace_schema_metadata(None)

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """The rows of all parts, in order, a part at a time."""
        return (self.table(number, *columns) for number in range(self.count))

    @contextmanager
    def written(self, path: Path) -> Iterator[Path]:
        """A name to write to, which nobody else uses, and which becomes `path` when it is whole."""
        temporary = self.folder / f"{uuid4().hex}.partial"
        try:
            yield temporary
            flush(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all of them, at once for whoever looks."""
        gone = self.folder.with_name(f"{self.folder.name}.{uuid4().hex}")
        with suppress(FileNotFoundError):
            os.replace(self.folder, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def remove_empty(self) -> None:
        """Leave nothing behind where there is not one."""
        with suppress(OSError):  # which says that there is one
            self.folder.rmdir()

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"
