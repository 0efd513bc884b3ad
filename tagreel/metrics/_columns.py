"""A matrix that is written by rows and read by columns, and may be larger than the memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray

Tile: TypeAlias = NDArray[np.float32]  # (C, rows)


class Columns:
    """An (N, C) float32 matrix; beyond `memory_limit` bytes its rows go to a file that has no name.

    Rows are kept in tiles that lie column by column, so that reading some columns reads them only. Half of
    the limit is for tiles in memory, a quarter for the columns that are being read, the rest for their
    reader; one column is read at least. The file lies where `tempfile` puts it (`TMPDIR`) and is gone when
    the matrix is.
    """

    def __init__(self, memory_limit: int) -> None:
        self.memory_limit = memory_limit
        self._tiles: list[Tile] = []
        self._bytes = 0
        self._columns = 0
        self._file: IO[bytes] | None = None
        self._extents: list[tuple[int, int]] = []  # of each tile in the file: offset in bytes, rows

    def append(self, rows: NDArray[np.float32]) -> None:
        """Adds rows (B, C); they are copied."""
        step = max(1, self.memory_limit // 8 // (4 * rows.shape[1]))
        for start in range(0, len(rows), step):
            self._keep(rows[start : start + step].T.copy())

    def extend(self, other: Columns) -> None:
        """Adds all rows of another matrix."""
        extents, tiles = list(other._extents), list(other._tiles)  # the other one may be this one
        for extent in extents:
            self._keep(other._read(extent, slice(0, other._columns)))
        for tile in tiles:
            self._keep(tile)

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All columns in order, some at a time: the number of the first one, and (columns, N)."""
        rows = sum(tile.shape[1] for tile in self._tiles) + sum(rows for _, rows in self._extents)
        step = max(1, self.memory_limit // 4 // (4 * max(1, rows)))
        for start in range(0, self._columns, step):
            columns = slice(start, min(start + step, self._columns))
            block = np.empty((columns.stop - start, rows), np.float32)
            at = 0
            for extent in self._extents:
                block[:, at : at + extent[1]] = self._read(extent, columns)
                at += extent[1]
            np.concatenate([block[:, :0], *(t[columns] for t in self._tiles)], axis=1, out=block[:, at:])
            yield start, block

    def __getstate__(self) -> dict[str, object]:
        if self._file is not None:
            raise ValueError(
                f"scores beyond memory_limit={self.memory_limit:,} bytes lie in a file, which cannot "
                "be pickled; raise the limit, or merge in one process"
            )
        return self.__dict__

    def _keep(self, tile: Tile) -> None:
        self._columns = len(tile)
        self._tiles.append(tile)
        self._bytes += tile.nbytes
        if self._bytes > self.memory_limit // 2:
            self._spill()

    def _spill(self) -> None:
        """Writes the tiles in memory to the file, as one tile."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="tagreel-", buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        offset = self._file.seek(0, os.SEEK_END)
        for start in range(0, self._columns, 64):
            np.concatenate([tile[start : start + 64] for tile in self._tiles], axis=1).tofile(self._file)
        self._extents.append((offset, sum(tile.shape[1] for tile in self._tiles)))
        self._tiles, self._bytes = [], 0

    def _read(self, extent: tuple[int, int], columns: slice) -> Tile:
        offset, rows = extent
        assert self._file is not None
        self._file.seek(offset + columns.start * rows * 4)
        flat = np.fromfile(self._file, np.float32, count=(columns.stop - columns.start) * rows)
        return flat.reshape(-1, rows)
