"""Files, folders and globs as one numbered sequence of shards, each opened by the reader that knows it."""

from __future__ import annotations

import glob
import hashlib
import importlib
import os
import pkgutil
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from tagreel import readers
from tagreel.batch import Example, Shard
from tagreel.errors import DataError
from tagreel.provenance import Provenance, difference, merged


class Reader(Protocol):
    """What a module of `tagreel.readers` holds for a format: a class that recognises and opens its files.

    One whose files are lost as a whole may also have `count(path)`: how many examples such a file held.
    """

    format: str

    def __call__(self, path: str, *, check_crc: bool, whole_videos: bool) -> Shard:
        """Open a file; raises `DataError` when the file as a whole is damaged."""
        ...

    def recognises(self, path: str) -> bool:
        """Whether a file is in this format, told from its content."""
        ...


class Source:
    """The videos in files, folders and quoted globs, in the order given, folders with all that is below them.

    A file's format is told from its content. What no reader recognises in a folder or behind a glob, and
    hidden files, are listed in `ignored`; a file named on its own that no reader recognises is an error.
    `paths` and `counts` list the shards and how many examples each has, damaged ones counted; together none
    is an error; `label_names` and `provenance` are what the shards say of classes and of how features were
    made, None where none says so. A shard that cannot be opened at all is as many examples as it is known to
    hold, else one, and reading them raises the reason. `keep_open` shards stay open. The source can be sent
    to worker processes; each opens its own shards.
    """

    def __init__(
        self,
        paths: Iterable[str | Path] | str | Path,
        *,
        check_crc: bool = True,
        whole_videos: bool = False,
        keep_open: int = 32,
    ) -> None:
        named = [paths] if isinstance(paths, str | Path) else list(paths)
        self.check_crc, self.whole_videos, self.keep_open = check_crc, whole_videos, keep_open
        self.ignored: list[str] = []
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._lock = Lock()
        files = _expand(named, self.ignored)
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(_find_reader, files))
        shards: list[tuple[str, Reader | DataError]] = []
        for (path, chosen), reader in zip(files.items(), found, strict=True):
            if reader is None and chosen:
                raise DataError(
                    f"no reader recognises it; there are: {', '.join(known_formats())}", path=path
                )
            if reader is None:
                self.ignored.append(path)
            else:
                shards.append((path, reader))
        where = ", ".join(map(str, named)) or "no path given"
        if not shards:
            raise DataError(
                f"nothing to read here; the formats are: {', '.join(known_formats())}"
                + (f"; not recognised: {self.ignored[0]}" if self.ignored else ""),
                path=where,
            )
        self.paths = [path for path, _ in shards]
        self._readers = [reader for _, reader in shards]
        self.formats = [None if isinstance(reader, DataError) else reader.format for reader in self._readers]
        with ThreadPoolExecutor() as pool:
            opened = list(pool.map(self._first_look, range(len(shards))))
        self.counts = [count for count, _, _ in opened]
        if not len(self):
            raise DataError(self._reason_for_none(), path=where)
        self.label_names = self._agree([names for _, names, _ in opened])
        self.provenance = self._merged([provenance for _, _, provenance in opened])

    def __len__(self) -> int:
        return sum(self.counts)

    def open(self, index: int) -> Shard:
        """The shard at `index` of `paths`, kept open for the next calls; safe from any thread."""
        with self._lock:
            shard = self._open.get(index)
            if shard is not None:
                self._open.move_to_end(index)
                return shard
        shard = self._read(index)
        if len(shard) != self.counts[index]:
            now, expected, path = len(shard), self.counts[index], self.paths[index]
            changed = DataError(f"it held {expected:,} examples at first and has {now:,} now", path=path)
            shard = Unreadable(
                path, shard.error if isinstance(shard, Unreadable) else changed, count=expected
            )
        self._keep(index, shard)
        return shard

    def first(self) -> Example:
        """The first example that can be read; raises the first one's `DataError` where none can."""
        problem: DataError | None = None
        for number, count in enumerate(self.counts):
            shard = self.open(number)
            for index in range(count):
                try:
                    return shard[index]
                except DataError as error:
                    problem = problem or error
        assert problem is not None, "a source is never empty"
        raise problem

    def fingerprint(self) -> str:
        """A short hash of names, sizes, counts and the way of reading: whether this is the same data."""
        digest = hashlib.blake2b(f"whole_videos={self.whole_videos}\n".encode(), digest_size=8)
        for path, count in zip(self.paths, self.counts, strict=True):
            digest.update(f"{os.path.basename(path)}\0{_size(path)}\0{count}\n".encode())
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())

    def _read(self, index: int) -> Shard:
        path, reader = self.paths[index], self._readers[index]
        if isinstance(reader, DataError):
            return Unreadable(path, reader)
        try:
            return reader(path, check_crc=self.check_crc, whole_videos=self.whole_videos)
        except DataError as error:
            count = getattr(reader, "count", None)
            return Unreadable(path, error, count=(count(path) if count is not None else None) or 1)

    def _reason_for_none(self) -> str:
        if not self.whole_videos:
            for path, reader in zip(self.paths, self._readers, strict=True):
                assert not isinstance(reader, DataError), "a shard that cannot be read counts as an example"
                if len(reader(path, check_crc=self.check_crc, whole_videos=True)):
                    return "holds no rated segments; read its videos as wholes with --whole-videos"
        return "holds no videos"

    def _first_look(self, index: int) -> tuple[int, list[str] | None, Provenance | None]:
        """How many examples a shard has, what it calls the classes, and what made its features."""
        shard = self._read(index)
        self._keep(index, shard)
        return len(shard), getattr(shard, "label_names", None), getattr(shard, "provenance", None)

    def _keep(self, index: int, shard: Shard) -> None:
        with self._lock:
            self._open[index] = shard
            self._open.move_to_end(index)
            while len(self._open) > self.keep_open:
                self._open.popitem(last=False)

    def _agree(self, names: Sequence[list[str] | None]) -> list[str] | None:
        """The class names that some shards carry; those that do must agree."""
        first = next((index for index, found in enumerate(names) if found is not None), None)
        if first is None:
            return None
        for path, found in zip(self.paths, names, strict=True):
            if found not in (None, names[first]):
                reason = f"its 'label_names' are not those of {self.paths[first]}; read the two on their own"
                raise DataError(reason, path=path)
        return names[first]

    def _merged(self, provenances: Sequence[Provenance | None]) -> Provenance | None:
        """What the shards say of how their features were made; those that say so must agree."""
        known, told = None, 0
        for index, provenance in enumerate(provenances):
            if found := difference(known, provenance):
                raise DataError(
                    f"its features are not those of {self.paths[told]}, where {found}; read the two on "
                    "their own",
                    path=self.paths[index],
                )
            known, told = merged([known, provenance]), told if known else index
        return known


@cache
def known_formats() -> dict[str, Reader]:
    """The reader of each format: every class in a module of `tagreel.readers` that recognises files."""
    found: dict[str, Reader] = {}
    for module in pkgutil.iter_modules(readers.__path__, f"{readers.__name__}."):
        if module.name.rpartition(".")[2].startswith("_"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and value.__module__ == module.name and hasattr(value, "recognises"):
                reader: Any = value
                found[reader.format] = reader
    return found


class Unreadable:
    """Stands for a shard that cannot be opened: reading any of its examples says why, as `error` does."""

    def __init__(self, path: str, error: DataError, *, count: int = 1) -> None:
        self.path, self.error, self._count = path, error, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        # Each of several names itself, or whoever counts damaged records would count one.
        record = self.error.record if self._count == 1 else index
        raise DataError(self.error.reason, path=self.error.path, record=record)


def _expand(named: Sequence[str | Path], ignored: list[str]) -> dict[str, bool]:
    """The files meant, each once, and whether it was named itself rather than found; adds to `ignored`."""
    files: dict[str, bool] = {}
    real: dict[str, str] = {}
    for name in map(str, named):
        chosen = not os.path.isdir(name)
        if os.path.isdir(name):
            paths: Iterable[str] = _walk(name, ignored)
        elif os.path.lexists(name):
            paths = [name]
        elif glob.has_magic(name):
            chosen = False
            paths = [file for hit in sorted(glob.glob(name, recursive=True)) for file in _walk(hit, ignored)]
            if not paths:
                raise DataError("no file matches this pattern", path=name)
        else:
            raise DataError("no such file or folder", path=name)
        for path in paths:
            path = real.setdefault(os.path.realpath(path), path)
            files[path] = files.get(path, False) or chosen
    return files


def _walk(path: str, ignored: list[str]) -> Iterator[str]:
    """All files at or below a path, sorted, folders that are links included; hidden ones are ignored."""
    if not os.path.isdir(path):
        yield path
        return
    seen = {os.path.realpath(path)}
    for folder, folders, files in os.walk(path, followlinks=True):
        inner = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(folder, name))
            if name.startswith("."):
                ignored.append(os.path.join(folder, name))
            elif real not in seen:  # a link upwards would never end
                seen.add(real)
                inner.append(name)
        folders[:] = inner
        for name in sorted(files):
            file = os.path.join(folder, name)
            if name.startswith("."):
                ignored.append(file)
            else:
                yield file


def _find_reader(path: str) -> Reader | DataError | None:
    """The reader of a file; None where none knows it, an error where it cannot even be looked at."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None  # a pipe, which would be waited for, or a device
        for reader in known_formats().values():
            if reader.recognises(path):
                return reader
    except DataError as error:
        return error
    except OSError as error:
        return DataError(f"cannot be read: {error.strerror or error}", path=path)
    return None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
