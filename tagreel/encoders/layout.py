"""Where in a picture light, colours and edges lie: a weak baseline that needs no weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tagreel.decoding import Pictures
from tagreel.encoders._identity import identity
from tagreel.encoders._inputs import check
from tagreel.errors import RecipeError

_CELL = 16
_DIRECTIONS = 8


class Layout:
    """(n, 16·grid, 16·grid, 3) to (n, 14·grid²): for each cell of a grid over the picture, 14 numbers.

    The mean and the standard deviation of red, green and blue, and how much of the edges' strength runs in
    each of 8 directions, all in [0, 1]. It tells night from day and a football pitch from a kitchen, and
    little more. For trying things out; what is to be used takes an encoder that was trained.
    """

    kind = "layout"
    expects = None

    def __init__(self, *, grid: int = 4) -> None:
        if grid < 1:
            raise RecipeError(f"grid={grid}: expected 1 cell or more along each side")
        self.grid = grid
        self.stream = "rgb"
        self.wants = Pictures(resize=(_CELL * grid, _CELL * grid), crop=None)
        self.out_dim = (6 + _DIRECTIONS) * grid**2

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Encode pictures; raises `ValueError` for any other input."""
        check(inputs, self.wants)
        pictures = inputs / 255.0  # (n, H, W, 3), in float64
        cells = self._cells(pictures)  # (n, grid, grid, 256, 3)
        edges = self._cells(_edges(pictures.mean(-1)))  # (n, grid, grid, 256, 8)
        parts = [cells.mean(3), cells.std(3), edges.mean(3)]
        return np.concatenate(parts, axis=-1).reshape(len(inputs), self.out_dim).astype(np.float32)

    def identity(self) -> dict[str, Any]:
        """What determines the features."""
        return identity(self.kind, None, wants=self.wants, out_dim=self.out_dim, options={"grid": self.grid})

    def _cells(self, values: NDArray[Any]) -> NDArray[Any]:
        n, _, _, channels = values.shape
        split = values.reshape(n, self.grid, _CELL, self.grid, _CELL, channels).swapaxes(2, 3)
        return np.ascontiguousarray(split).reshape(n, self.grid, self.grid, _CELL**2, channels)


def _edges(light: NDArray[Any]) -> NDArray[Any]:
    """(n, H, W) to (n, H, W, 8): each pixel's gradient, in the one of 8 directions in which it points.

    Directions that are opposite count as one: an edge is the same from dark to light and back.
    """
    down, across = np.gradient(light, axis=(1, 2))
    nearest = np.rint(np.arctan2(down, across) * (_DIRECTIONS / np.pi)) % _DIRECTIONS
    strength = np.hypot(down, across)
    return np.where(nearest[..., None] == np.arange(_DIRECTIONS), strength[..., None], 0.0)
