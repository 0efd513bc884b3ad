"""Numbers that arrive in pieces and are read whole."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


class Pool(Generic[Scalar]):
    """A flat array that grows: pieces are kept as they come and joined when they are read."""

    def __init__(self, dtype: type[Scalar]) -> None:
        self._dtype = dtype
        self._pieces: list[NDArray[Scalar]] = []

    def append(self, values: NDArray[Any]) -> None:
        """Adds the values (copied: the caller may go on writing to his array)."""
        self._pieces.append(values.astype(self._dtype).ravel())

    def extend(self, other: Pool[Scalar]) -> None:
        """Adds all values of another pool."""
        self._pieces.extend(other._pieces)

    def array(self) -> NDArray[Scalar]:
        """All values; not to be written to."""
        if len(self._pieces) != 1:
            self._pieces = [np.concatenate([np.empty(0, self._dtype), *self._pieces])]
        return self._pieces[0]
