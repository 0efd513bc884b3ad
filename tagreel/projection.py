"""PCA: features onto the few directions in which they vary most, each to about the same spread.

    y_i = (x - mean) · component_i / sqrt(eigenvalue_i + 1e-4)

the division where it whitens. So YouTube-8M made 1,024 numbers of 2,048 (Abu-El-Haija et al., YouTube-8M: A
Large-Scale Video Classification Benchmark, 2016, arXiv:1609.08675, section 3.3), with the constant of its
feature extractor, github.com/google/youtube-8m/tree/master/feature_extractor. Its quantiser comes next,
`tagreel.batch.quantize`: whitening is what puts nearly all values within its [-2, 2].
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from tagreel.errors import DataError, RecipeError
from tagreel.files import read_tensors, write_tensors

_SMALLEST = 1e-4
_ROWS = 4096


@dataclass(frozen=True)
class Projection:
    """(n, D) in, (n, d) out: `mean` (D,), `components` (d, D), one direction a row, `eigenvalues` (d,).

    All in float32. With `whiten` each direction is divided by its deviation.
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    eigenvalues: NDArray[np.float32]
    whiten: bool

    @property
    def out_dim(self) -> int:
        """d."""
        return len(self.components)

    def apply(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Project features (n, D); raises `RecipeError` where they have another width."""
        if features.shape[1] != len(self.mean):
            raise RecipeError(f"the projection takes {len(self.mean):,} numbers, found {features.shape[1]:,}")
        # In float64, so that a row rounds to the same whatever number of others is beside it.
        return ((features - self.mean) @ self._scaled).astype(np.float32)

    def first(self, dim: int) -> Projection:
        """The same onto its first `dim` directions; raises `RecipeError` where it has fewer."""
        if not 1 <= dim <= self.out_dim:
            raise RecipeError(f"dim={dim}: the projection has {self.out_dim:,} directions")
        return Projection(self.mean, self.components[:dim], self.eigenvalues[:dim], self.whiten)

    def identity(self) -> dict[str, Any]:
        """What determines it, as plain JSON, whatever file it came from."""
        digest = hashlib.sha256()
        for values in (self.mean, self.components, self.eigenvalues):
            digest.update(np.ascontiguousarray(values, "<f4").tobytes())
        return {"kind": "pca", "sha256": digest.hexdigest(), "dim": self.out_dim, "whiten": self.whiten}

    def save(self, path: str | Path) -> None:
        """Write it as a safetensors file."""
        write_tensors(Path(path), self._tensors())

    def to_bytes(self) -> bytes:
        """The content of a safetensors file, to travel with a data set or a model."""
        return safetensors.torch.save(self._tensors())

    @classmethod
    def load(cls, path: str | Path) -> Projection:
        """Read what `save` wrote, or what YouTube-8M or AudioSet published.

        YouTube-8M: a folder with mean.npy (D, 1), eigenvals.npy (D, 1), of which those count that have a
        direction, and eigenvecs.npy (d, D), a direction in each row. AudioSet: vggish_pca_params.npz, whose
        matrix whitens by itself. Raises `DataError`.
        """
        name = str(path)
        if os.path.isdir(name):
            mean, values, components = (
                _array(os.path.join(name, f"{part}.npy")) for part in ("mean", "eigenvals", "eigenvecs")
            )
            return _checked(mean, components, values[: len(components)], True, path=name)
        if name.endswith(".npz"):
            mean, components = _arrays(name, "pca_means", "pca_eigen_vectors")
            return _checked(mean, components, np.ones(len(components)), False, path=name)
        return cls._of(read_tensors(Path(path)), path=name)

    @classmethod
    def from_bytes(cls, content: bytes, *, path: str) -> Projection:
        """What `to_bytes` gave, which was found at `path`; raises `DataError`."""
        try:
            tensors = safetensors.torch.load(content)
        except SafetensorError as error:
            raise DataError(f"cannot be read as safetensors: {error}", path=path) from error
        return cls._of(tensors, path=path)

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], *, path: str) -> Projection:
        if set(tensors) != {"mean", "components", "eigenvalues", "whiten"}:
            raise DataError(f"is no projection: it holds {', '.join(tensors) or 'nothing'}", path=path)
        mean, components, eigenvalues = (
            tensors[part].numpy() for part in ("mean", "components", "eigenvalues")
        )
        return _checked(mean, components, eigenvalues, bool(tensors["whiten"]), path=path)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "mean": torch.from_numpy(self.mean),
            "components": torch.from_numpy(self.components),
            "eigenvalues": torch.from_numpy(self.eigenvalues),
            "whiten": torch.tensor(self.whiten),
        }

    @cached_property
    def _scaled(self) -> NDArray[np.float64]:
        """(D, d), the columns divided by the deviations where it whitens."""
        scale = np.sqrt(self.eigenvalues.astype(np.float64) + _SMALLEST) if self.whiten else 1.0
        return np.asarray(self.components.T / scale, np.float64)


def fit(batches: Iterable[NDArray[np.float32]], dim: int, *, whiten: bool = True) -> Projection:
    """The projection onto the `dim` main directions of features (n, D) that come in batches, each seen once.

    Exact, not approximate: the mean and the covariance (over n - 1) are summed in float64, which takes a few
    D × D matrices whatever the number of batches. Each direction's largest number is positive. Raises
    `RecipeError` for fewer frames than it takes.
    """
    count, mean, scatter = 0, np.zeros(0), np.zeros((0, 0))
    for block in _blocks(batches):
        rows = block.astype(np.float64)
        centre = rows.mean(0)
        rows -= centre
        if not count:
            mean, scatter = np.zeros(len(centre)), np.zeros((len(centre), len(centre)))
        # Chan, Golub and LeVeque 1983: about each block's own mean, or large means would eat the digits.
        total, shift = count + len(rows), centre - mean
        scatter += rows.T @ rows + np.outer(shift, shift) * (count * len(rows) / total)
        mean += shift * (len(rows) / total)
        count = total
    if not count:
        raise RecipeError(f"dim={dim}: no frames to fit a projection to")
    if not 1 <= dim <= len(mean):
        raise RecipeError(f"dim={dim}: expected 1 to {len(mean):,}, the width of the features")
    if count <= dim:
        raise RecipeError(f"dim={dim}: {count:,} frames span fewer directions; give more, or a smaller dim")
    values, vectors = np.linalg.eigh(scatter / (count - 1))
    components = vectors.T[::-1][:dim]  # eigh's order is ascending
    largest = np.abs(components).argmax(1)
    components = components * np.sign(components[np.arange(dim), largest])[:, None]
    return Projection(
        mean=mean.astype(np.float32),
        components=np.ascontiguousarray(components, np.float32),
        # A direction in which nothing varies may come out a little below zero.
        eigenvalues=values[::-1][:dim].clip(0).astype(np.float32),
        whiten=whiten,
    )


def _blocks(batches: Iterable[NDArray[np.float32]]) -> Iterable[NDArray[np.float32]]:
    """The batches put together to some thousand rows, as a product for every few costs too much."""
    waiting: list[NDArray[np.float32]] = []
    for batch in batches:
        if waiting and batch.shape[1] != waiting[0].shape[1]:
            raise RecipeError(f"features of {batch.shape[1]:,} numbers among some of {waiting[0].shape[1]:,}")
        if not np.isfinite(batch).all():
            raise ValueError("the features hold numbers that are not finite")
        if len(batch):
            waiting.append(batch)
        if sum(map(len, waiting)) >= _ROWS:
            yield np.concatenate(waiting)
            waiting.clear()
    if waiting:
        yield np.concatenate(waiting)


def _checked(
    mean: NDArray[Any], components: NDArray[Any], eigenvalues: NDArray[Any], whiten: bool, *, path: str
) -> Projection:
    mean, eigenvalues = mean.reshape(-1), eigenvalues.reshape(-1)
    D, d = len(mean), len(eigenvalues)
    if components.shape != (d, D):
        raise DataError(
            f"its directions are {components.shape}; expected ({d}, {D}), as many as eigenvalues, as wide as "
            "the mean",
            path=path,
        )
    if not all(np.isfinite(values).all() for values in (mean, components, eigenvalues)):
        raise DataError("holds numbers that are not finite", path=path)
    if (eigenvalues < 0).any() or (np.diff(eigenvalues) > 0).any():
        raise DataError("its eigenvalues are not all positive and in falling order", path=path)
    return Projection(
        mean=mean.astype(np.float32),
        components=components.astype(np.float32),
        eigenvalues=eigenvalues.astype(np.float32),
        whiten=whiten,
    )


def _array(path: str) -> NDArray[Any]:
    with _opened(path) as file:
        found = np.load(file, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("it holds several")
        return found


def _arrays(path: str, *names: str) -> list[NDArray[Any]]:
    with _opened(path) as file:
        found = np.load(file, allow_pickle=False)
        missing = set(names) - set(found if isinstance(found, np.lib.npyio.NpzFile) else ())
        if missing:
            raise ValueError(f"it has no {' and no '.join(sorted(missing))}, as AudioSet's has")
        return [found[name] for name in names]


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as file:
            yield file
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"cannot be read as numpy's arrays: {error}", path=path) from error
