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
    reader; one row and one column are kept at least. The file lies where `tempfile` puts it (`TMPDIR`) and
    is gone when the matrix is.
    """

    def __init__(self, memory_limit: int) -> None:
        self.memory_limit = memory_limit
        # Tiles are filled again after they went to the file: memory that is new to a process is slow.
        self._tiles: list[Tile] = []
        self._filled = 0  # tiles that are full
        self._rows = 0  # of the tile after them
        self._columns = 0
        self._file: IO[bytes] | None = None
        self._extents: list[tuple[int, int]] = []  # of each tile in the file: offset in bytes, rows

    def append(self, rows: NDArray[np.float32]) -> None:
        """Adds rows (B, C); they are copied."""
        self._columns = rows.shape[1]
        while len(rows):
            if self._filled == len(self._tiles):
                self._make_room(len(rows))
            tile = self._tiles[self._filled][:, self._rows :]
            some = min(len(rows), tile.shape[1])
            tile[:, :some] = rows[:some].T
            rows = rows[some:]
            self._rows += some
            if some == tile.shape[1]:
                self._filled, self._rows = self._filled + 1, 0

    def extend(self, other: Columns) -> None:
        """Adds all rows of another matrix."""
        extents, tiles = list(other._extents), other._in_memory()
        if other is self:
            tiles = [tile.copy() for tile in tiles]
        for extent in extents:
            self.append(other._read(extent, slice(0, other._columns)).T)
        for tile in tiles:
            self.append(tile.T)

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All columns in order, some at a time: the number of the first one, and (columns, N).

        A block is written over by the next.
        """
        tiles = self._in_memory()
        rows = sum(tile.shape[1] for tile in tiles) + sum(rows for _, rows in self._extents)
        step = max(1, self.memory_limit // 4 // (4 * max(1, rows)))
        whole = np.empty((min(step, self._columns), rows), np.float32)
        for start in range(0, self._columns, step):
            columns = slice(start, min(start + step, self._columns))
            block = whole[: columns.stop - start]
            at = 0
            for extent in self._extents:
                block[:, at : at + extent[1]] = self._read(extent, columns)
                at += extent[1]
            np.concatenate([block[:, :0], *(t[columns] for t in tiles)], axis=1, out=block[:, at:])
            yield start, block

    def __getstate__(self) -> dict[str, object]:
        if self._file is not None:
            raise ValueError(
                f"scores beyond memory_limit={self.memory_limit:,} bytes lie in a file, which cannot "
                "be pickled; raise the limit, or merge in one process"
            )
        return self.__dict__

    def _in_memory(self) -> list[Tile]:
        """The tiles that are not in the file, the last one as far as it is filled."""
        started = [self._tiles[self._filled][:, : self._rows]] if self._rows else []
        return [*self._tiles[: self._filled], *started]

    def _make_room(self, rows: int) -> None:
        """Another tile, as large as those before together, or none: the tiles go to the file, each whole."""
        held = sum(tile.shape[1] for tile in self._tiles)
        limit = self.memory_limit // (4 * self._columns)  # in rows
        room = limit // 2 - held
        if held and room < 1:
            self._spill()
            return
        size = max(1, min(max(rows, held), limit // 8, room))
        self._tiles.append(np.empty((self._columns, size), np.float32))

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="tagreel-", buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        for tile in self._tiles:
            self._extents.append((self._file.seek(0, os.SEEK_END), tile.shape[1]))
            tile.tofile(self._file)
        self._filled = 0

    def _read(self, extent: tuple[int, int], columns: slice) -> Tile:
        offset, rows = extent
        assert self._file is not None
        self._file.seek(offset + columns.start * rows * 4)
        flat = np.fromfile(self._file, np.float32, count=(columns.stop - columns.start) * rows)
        return flat.reshape(-1, rows)
