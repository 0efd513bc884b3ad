"""Files, folders, globs, URLs as one numbered sequence of shards, each opened by the reader that knows it."""

from __future__ import annotations

import glob
import hashlib
import importlib
import os
import pkgutil
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tagreel import readers
from tagreel.batch import Example, Shard
from tagreel.errors import DataError, RecipeError
from tagreel.provenance import Provenance, difference, merged
from tagreel.remote import SIZE, Ahead, Cache, Facts, Held, Stored, find, is_url, open_end


class Reader(Protocol):
    """What a module of `tagreel.readers` holds for a format: a class that recognises and opens its files.

    One whose files are lost as a whole may also have `count(path)`: how many examples such a file held. One
    whose files tell it at their end may have `glance(file)`: the number of examples, the class names and the
    provenance of a file that lies in a store, None where its end cannot tell.
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

    They may be URLs, of object stores and web servers, whose shards are copied into a cache to be read
    (`tagreel.remote`). A file's format is told from its content. What no reader recognises in a folder or
    behind a glob, and hidden files, are listed in `ignored`; a file named on its own that no reader
    recognises is an error. `paths` and `counts` list the shards and how many examples each has, damaged ones
    counted; together none is an error; `label_names` and `provenance` are what the shards say of classes and
    of how features were made, None where none says so. A shard that cannot be opened at all is as many
    examples as it is known to hold, else one, and reading them raises the reason. `keep_open` shards stay
    open. `progress` is called with how many files were looked at, and of how many. The source can be sent to
    worker processes; each opens its own shards.
    """

    def __init__(
        self,
        paths: Iterable[str | Path] | str | Path,
        *,
        check_crc: bool = True,
        whole_videos: bool = False,
        keep_open: int = 32,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        named = [paths] if isinstance(paths, str | Path) else list(paths)
        self.check_crc, self.whole_videos, self.keep_open = check_crc, whole_videos, keep_open
        self.ignored: list[str] = []
        self._stored: dict[str, Stored] = {}
        self._open: OrderedDict[str, Shard] = OrderedDict()
        self._lock = Lock()
        files = _expand(named, self.ignored, self._stored)
        self._cache = Cache.usual() if self._stored else None
        looks: list[_Look] = []
        # Of a store most of the time is waiting for its answers.
        with ThreadPoolExecutor(32 if self._stored else None) as pool:
            for look in pool.map(self._first_look, files):
                looks.append(look)
                if progress is not None:
                    progress(len(looks), len(files))
        for look in looks:
            if look.reader is None and files[look.path]:
                raise DataError(
                    f"no reader recognises it; there are: {', '.join(known_formats())}", path=look.path
                )
            if look.reader is None:
                self.ignored.append(look.path)
        looks = [look for look in looks if look.reader is not None]
        where = ", ".join(map(str, named)) or "no path given"
        if not looks:
            raise DataError(
                f"nothing to read here; the formats are: {', '.join(known_formats())}"
                + (f"; not recognised: {self.ignored[0]}" if self.ignored else ""),
                path=where,
            )
        self.paths = [look.path for look in looks]
        self._readers = [look.reader for look in looks if look.reader is not None]
        self.formats = [look.facts.format for look in looks]
        self.counts = [look.facts.count for look in looks]
        if not len(self):
            raise DataError(self._reason_for_none(), path=where)
        self.label_names = self._agree([look.facts.label_names for look in looks])
        self.provenance = self._merged([look.facts.provenance for look in looks])

    def __len__(self) -> int:
        return sum(self.counts)

    def open(self, index: int) -> Shard:
        """The shard at `index` of `paths`, kept open for the next calls; safe from any thread."""
        path = self.paths[index]
        with self._lock:
            shard = self._open.get(path)
            if shard is not None:
                self._open.move_to_end(path)
                return shard
        shard = self._read(path, self._readers[index])
        if len(shard) != self.counts[index]:
            now, expected = len(shard), self.counts[index]
            changed = DataError(f"it held {expected:,} examples at first and has {now:,} now", path=path)
            shard = Unreadable(
                path, shard.error if isinstance(shard, Unreadable) else changed, count=expected
            )
        self._keep(shard)
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

    def sizes(self) -> list[int]:
        """The bytes of each shard; -1 where it is gone."""
        return [
            _size(path) if (stored := self._stored.get(path)) is None else stored.size for path in self.paths
        ]

    def versions(self) -> list[str]:
        """For each shard what changes with its content: its time in ns, or what its store says."""
        return [
            _time(path) if (stored := self._stored.get(path)) is None else stored.version
            for path in self.paths
        ]

    def fingerprint(self) -> str:
        """A short hash of names, sizes, counts and the way of reading: whether this is the same data."""
        digest = hashlib.blake2b(f"whole_videos={self.whole_videos}\n".encode(), digest_size=8)
        for path, size, count in zip(self.paths, self.sizes(), self.counts, strict=True):
            digest.update(f"{os.path.basename(path)}\0{size}\0{count}\n".encode())
        return digest.hexdigest()

    @contextmanager
    def fetching(
        self, needs: Callable[[], tuple[NDArray[np.int64], NDArray[np.int64]]] | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Within, shards that lie in stores are fetched in the background, before they are needed.

        `needs` says for each shard the first and the last step that needs it, -1 for one that none does;
        without it each is a step, in their order. What is yielded is to be told of each step that is done.
        Raises `RecipeError` where the cache is too small for what is needed at the same time.
        """
        if self._cache is None:
            yield lambda step: None
            return
        first, last = (np.arange(len(self.paths)),) * 2 if needs is None else needs()
        stored = [self._stored.get(path) for path in self.paths]
        _check_room(self._cache, stored, first, last)
        order = [number for number in np.argsort(first, kind="stable").tolist() if first[number] >= 0]
        plan = [(found, int(last[number])) for number in order if (found := stored[number]) is not None]
        ends = sorted(plan, key=lambda file: -file[1])

        with closing(Ahead(self._cache, plan)) as ahead:

            def done(step: int) -> None:
                with self._lock:
                    while ends and ends[-1][1] <= step:
                        self._open.pop(ends.pop()[0].url, None)
                ahead.done(step)

            yield done

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_lock": None, "_cache": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock(), _cache=Cache.usual() if state["_stored"] else None)

    def _read(self, path: str, reader: Reader | DataError) -> Shard:
        """A shard, opened; its errors name it as the user did, wherever its copy lies."""
        if isinstance(reader, DataError):
            return Unreadable(path, reader)
        held = self._hold(path)
        local = path if held is None else str(held.path)
        try:
            shard = reader(local, check_crc=self.check_crc, whole_videos=self.whole_videos)
        except DataError as error:
            count = getattr(reader, "count", None)
            known = None if count is None else count(local)
            return Unreadable(path, _renamed(error, path), count=known or 1)
        return shard if held is None else _Copied(path, shard, held)

    def _hold(self, path: str) -> Held | None:
        """The copy of a shard that lies in a store; None of one that does not."""
        stored = self._stored.get(path)
        if stored is None:
            return None
        assert self._cache is not None
        while (held := self._cache.hold(stored, force=False)) is None:
            with self._lock:
                oldest = next((open_ for open_ in self._open if open_ in self._stored), None)
                if oldest is None:
                    break
                del self._open[oldest]
        return held or self._cache.hold(stored)

    def _reason_for_none(self) -> str:
        if not self.whole_videos:
            for path, reader in zip(self.paths, self._readers, strict=True):
                assert not isinstance(reader, DataError), "one that cannot be read counts as an example"
                held = self._hold(path)
                local = path if held is None else str(held.path)
                if len(reader(local, check_crc=self.check_crc, whole_videos=True)):
                    return "holds no rated segments; read its videos as wholes with --whole-videos"
        return "holds no videos"

    def _first_look(self, path: str) -> _Look:
        """What a file is, how many examples it has, what it calls the classes, and what made its features."""
        stored = self._stored.get(path)
        if stored is None:
            return self._look_inside(path, _find_reader(path))
        assert self._cache is not None
        facts = self._cache.facts(stored, whole_videos=self.whole_videos)
        if facts is None:
            facts = _glance(stored)
            if facts is None:
                held = self._hold(path)
                assert held is not None
                reader = _find_reader(str(held.path))
                look = self._look_inside(
                    path, _renamed(reader, path) if isinstance(reader, DataError) else reader
                )
                if look.damaged:
                    return look
                facts = look.facts
            self._cache.note(stored, facts, whole_videos=self.whole_videos)
        return _Look(path, known_formats()[facts.format] if facts.format else None, facts)

    def _look_inside(self, path: str, reader: Reader | DataError | None) -> _Look:
        if reader is None:
            return _Look(path, None, Facts(None))
        shard = self._read(path, reader)
        if path not in self._stored:  # whose copies may have to make room for others
            self._keep(shard)
        names, provenance = getattr(shard, "label_names", None), getattr(shard, "provenance", None)
        name = None if isinstance(reader, DataError) else reader.format
        return _Look(path, reader, Facts(name, len(shard), names, provenance), isinstance(shard, Unreadable))

    def _keep(self, shard: Shard) -> None:
        with self._lock:
            self._open[shard.path] = shard
            self._open.move_to_end(shard.path)
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


@dataclass(frozen=True)
class _Look:
    """What the first look at a file found: its reader, or what is wrong with it, and the facts."""

    path: str
    reader: Reader | DataError | None
    facts: Facts
    damaged: bool = False


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


class _Copied:
    """A shard that lies in a store, read from its copy, which stays there as long; errors name the store."""

    def __init__(self, path: str, shard: Shard, held: Held) -> None:
        self.path, self._shard, self._held = path, shard, held
        self.label_names: list[str] | None = getattr(shard, "label_names", None)
        self.provenance: Provenance | None = getattr(shard, "provenance", None)

    def __len__(self) -> int:
        return len(self._shard)

    def __getitem__(self, index: int) -> Example:
        try:
            return self._shard[index]
        except DataError as error:
            raise _renamed(error, self.path) from None


def _renamed(error: DataError, path: str) -> DataError:
    return DataError(error.reason, path=path, record=error.record)


def _expand(named: Sequence[str | Path], ignored: list[str], stored: dict[str, Stored]) -> dict[str, bool]:
    """The files meant, each once, and whether it was named itself rather than found.

    Adds to `ignored`, and to `stored` those that lie in a store.
    """
    files: dict[str, bool] = {}
    real: dict[str, str] = {}
    for name in map(str, named):
        name = name.removeprefix("file://")
        if is_url(name):
            found, chosen = find(name, ignored)
            stored.update((file.url, file) for file in found)
            for file in found:
                files[file.url] = files.get(file.url, False) or chosen
            continue
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


def _glance(stored: Stored) -> Facts | None:
    """What the end of a file in a store tells, if it is of a format that tells it there."""
    for reader in known_formats().values():
        glance = getattr(reader, "glance", None)
        if glance is not None and (file := open_end(stored)) is not None:
            with file:
                found = glance(file)
            if found is not None:
                return Facts(reader.format, *found)
    return None


def _check_room(
    cache: Cache, stored: Sequence[Stored | None], first: NDArray[np.int64], last: NDArray[np.int64]
) -> None:
    """Raise `RecipeError` where shards that are needed at the same time are more than the cache takes."""
    sizes = np.array([0 if file is None else file.size for file in stored])
    change = np.zeros(last.max(initial=0) + 2, np.int64)
    needed = first >= 0
    np.add.at(change, first[needed], sizes[needed])
    # Within a step they follow each other: what ends in it makes room for what begins.
    np.add.at(change, np.maximum(last, first + 1)[needed], -sizes[needed])
    most = int(np.cumsum(change).max())
    if most > cache.limit:
        raise RecipeError(
            f"{SIZE}: the cache {cache.folder} takes {cache.limit / 1e9:.3g} GB, and files of "
            f"{most / 1e9:.3g} GB are read at the same time; expected at least that, better twice as much"
        )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _time(path: str) -> str:
    try:
        return str(os.stat(path).st_mtime_ns)
    except OSError:
        return "0"
