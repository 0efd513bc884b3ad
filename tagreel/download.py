"""Files from a web server into a folder, whole or not at all.

A file is written below OUT/.download, goes on there after a break (RFC 9110, ranges), and gets its name once
its checksum is right: what has a name is whole, and readers of OUT see nothing else.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import queue
import re
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from tagreel.errors import DataError, RecipeError
from tagreel.web import Later, Patience, ask, network

STATE = ".download"
"""The folder below OUT of what is not whole yet, and of what is known of the rest."""
SAMPLE = 16  # files that are asked for their size before thousands are fetched
_BLOCK = 1 << 18


@dataclass(frozen=True)
class File:
    """A file to fetch: its address, its path below the folder, and "md5:..." or "sha256:..." if known."""

    url: str
    path: str
    checksum: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a download is; `total` is estimated until every file has begun, None where nothing is known."""

    files: int
    whole: int
    bytes: int
    total: int | None
    received: int
    seconds: float


@dataclass(frozen=True)
class Downloaded:
    """What a download came to: how many files are new, were there already, and by path why others are not."""

    fetched: int
    kept: int
    received: int
    failed: dict[str, DataError]


def missing(files: Sequence[File], out: Path) -> list[File]:
    """The files that have no name in the folder yet."""
    return [file for file in files if not (out / file.path).exists()]


def estimate(files: Sequence[File], *, jobs: int = 4) -> int | None:
    """About how many bytes these files are, as the server says of some of them; None if it does not."""
    chosen = (
        [files[index * len(files) // SAMPLE] for index in range(SAMPLE)] if len(files) > SAMPLE else files
    )
    if not chosen:
        return 0
    with ThreadPoolExecutor(jobs) as pool:
        sizes = [size for size in pool.map(_size_of, chosen) if size is not None]
    return sum(sizes) * len(files) // len(sizes) if sizes else None


def free_bytes(out: Path) -> int:
    """Free bytes on the disk of a folder that need not be there yet."""
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def download(
    files: Sequence[File],
    out: Path,
    *,
    jobs: int = 4,
    verify: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda text: None,
) -> Downloaded:
    """Fetch what is not in the folder yet, `jobs` files at once, and go on where an earlier call was.

    Files that an earlier call fetched are taken by their size, with `verify` by their checksum; others that
    lie there are taken if their checksum is right. Dropped connections, silence, and answers that say "later"
    are tried again; a file that cannot be had is one of `failed`, and the rest is fetched all the same. `say`
    is told of what takes patience. Raises `DataError` when the folder cannot be written, on a full disk for
    one, and `RecipeError` when another process downloads into it.
    """
    with alone(out):
        run = _Run(files, out, verify=verify, say=say)
        # Daemons: an interrupted command need not wait for a silent server.
        threads = [threading.Thread(target=run.work, daemon=True) for _ in range(min(jobs, len(files)))]
        try:
            for thread in threads:
                thread.start()
            while running := [thread for thread in threads if thread.is_alive()]:
                on_progress(run.progress())
                running[0].join(0.2)
        finally:
            run.stop.set()
        on_progress(run.progress())
        if run.fatal is not None:
            raise run.fatal
        return Downloaded(run.fetched, run.kept, run.received, run.failed)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Make the folder, and keep other processes from writing to it; the lock ends with the process."""
    try:
        (out / STATE).mkdir(parents=True, exist_ok=True)
        lock = open(out / STATE / "lock", "w")  # noqa: SIM115
    except OSError as error:
        raise unwritable(error, out) from error
    with lock:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                reason = "another download into it is running; wait for its end, or take another folder"
                raise RecipeError(f"{out}: {reason}") from None
            except OSError:
                pass  # a disk that knows no locks
        yield


def replace(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def unwritable(error: OSError, out: Path) -> DataError:
    """What to say of a disk that is full, or a folder that is somebody else's."""
    return DataError(
        f"cannot be written: {error.strerror or error}; the same command goes on once that is mended",
        path=str(error.filename or out),
    )


class _Stopped(Exception):  # noqa: N818
    """Somebody else ended the download."""


class _Ledger:
    """What was found whole: a line of JSON a file, added once it has its name."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._known: dict[str, tuple[int, str]] = {}
        lines = path.read_bytes().splitlines() if path.exists() else []
        for line in lines:
            try:
                row = json.loads(line)
                self._known[row["path"]] = (row["bytes"], row["checksum"])
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill: that file is looked at again

    def get(self, path: str) -> tuple[int, str] | None:
        """Size and checksum of a file."""
        return self._known.get(path)

    def add(self, path: str, size: int, checksum: str) -> None:
        """Remember a file."""
        row = json.dumps({"path": path, "bytes": size, "checksum": checksum})
        with self._lock, open(self._path, "a", encoding="utf-8") as file:
            file.write(f"\n{row}")  # the line feed first: the line before may have been cut off
            self._known[path] = (size, checksum)


class _Run:
    """One call of `download`, shared by its threads."""

    def __init__(self, files: Sequence[File], out: Path, *, verify: bool, say: Callable[[str], None]) -> None:
        self.fetched = self.kept = self.received = 0
        self.failed: dict[str, DataError] = {}
        self.fatal: BaseException | None = None
        self.stop = threading.Event()
        self._files, self._out, self._verify, self._say = files, out, verify, say
        self._waiting: queue.SimpleQueue[File] = queue.SimpleQueue()
        for file in files:
            self._waiting.put(file)
        self._ledger = _Ledger(out / STATE / "whole.jsonl")
        self._lock, self._began = threading.Lock(), time.monotonic()
        self._kinds = Counter(PurePath(file.path).suffix for file in files)  # each about of a size
        self._at: dict[str, int] = {}  # bytes here of each file that was begun
        self._sizes: dict[str, int] = {}  # bytes of each file of which the server told

    def progress(self) -> Progress:
        """How far it is."""
        at, sizes = dict(self._at), dict(self._sizes)
        total: int | None = 0
        for kind, count in self._kinds.items():
            known = [size for path, size in sizes.items() if PurePath(path).suffix == kind]
            total = None if total is None or not known else total + count * sum(known) // len(known)
        return Progress(
            files=len(self._files),
            whole=self.fetched + self.kept,
            bytes=sum(at.values()),
            total=total,
            received=self.received,
            seconds=time.monotonic() - self._began,
        )

    def work(self) -> None:
        """Take files until there are none, or somebody stops it."""
        try:
            while not self.stop.is_set():
                file = self._waiting.get_nowait()
                try:
                    kept = self._obtain(file)
                except DataError as error:
                    self.failed[file.path] = error
                    self._at.pop(file.path, None)
                    self._sizes.setdefault(file.path, 0)
                    continue
                with self._lock:
                    self.kept += kept
                    self.fetched += not kept
        except (queue.Empty, _Stopped):
            pass
        except BaseException as error:
            self.fatal = unwritable(error, self._out) if isinstance(error, OSError) else error
            self.stop.set()

    def _obtain(self, file: File) -> bool:
        """Get one file whole; whether it was there already."""
        if self._has(file):
            return True
        partial, wrong = self._partial(file), False
        partial.parent.mkdir(parents=True, exist_ok=True)
        patience = Patience(file.url, self._say, self._wait)
        while True:
            try:
                self._transfer(file, partial)
            except Later as problem:
                patience.pause(problem, position=self._at.get(file.path, 0))
                continue
            found = _digest(partial, file.checksum or "md5:")
            if found == (file.checksum or found):
                break
            partial.unlink()
            if wrong:
                raise DataError(
                    f"its checksum is {found}, expected {file.checksum}, twice; "
                    "another --mirror may have the right one",
                    path=file.url,
                )
            wrong = True
        target = self._out / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        size = partial.stat().st_size
        os.replace(partial, target)
        _tag(partial).unlink(missing_ok=True)
        self._ledger.add(file.path, size, found)
        return False

    def _has(self, file: File) -> bool:
        target = self._out / file.path
        if not target.exists():
            return False
        size, known = target.stat().st_size, self._ledger.get(file.path)
        expected = file.checksum or (known[1] if known else "")
        if self._verify or known != (size, expected):
            found = _digest(target, expected or "md5:")
            if found != (expected or found):
                self._say(f"{target}: its checksum is {found}, expected {expected}; fetching it again")
                self._ledger.add(file.path, -1, expected)  # no longer taken by its size, if this fails
                return False
            self._ledger.add(file.path, size, found)
        self._at[file.path] = self._sizes[file.path] = size
        return True

    def _transfer(self, file: File, partial: Path) -> None:
        """Get the rest of a file; raises `Later` when it did not come to its end."""
        have = partial.stat().st_size if partial.exists() else 0
        validator = _tag(partial).read_text("utf-8") if have and _tag(partial).exists() else ""
        if not validator:  # whether it is still the same file could not be told
            have = 0
        self._at[file.path] = have
        asked = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
        with ask(file.url, asked) as response:
            headers = response.headers
            ranged = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", headers.get("Content-Range", ""))
            if response.status in (206, 416):
                total = int(ranged[2]) if ranged else -1
                if response.status == 416 and total == have:
                    return  # only its end had been missed
                # Not every server heeds If-Range (Google's does not say so): what came tells by itself.
                same = _validator(headers) in ("", validator)
                if not asked or response.status == 416 or not same or not ranged or ranged[1] != str(have):
                    partial.unlink(missing_ok=True)
                    raise Later("it is not what it was; from its beginning")
            else:
                length = headers.get("Content-Length", "")
                have, total = 0, int(length) if length.isdecimal() else -1
                partial.write_bytes(b"")  # before the new tag: this tag must never stand beside other bytes
                replace(_tag(partial), _validator(headers))
            if total >= 0:
                self._sizes[file.path] = total
            with open(partial, "ab") as written:
                while block := self._read(response):
                    written.write(block)
                    have += len(block)
                    self._at[file.path] = have
                    with self._lock:
                        self.received += len(block)
                written.flush()
                os.fsync(written.fileno())
        if have < total:
            raise Later(f"the connection ended after {have:,} of {total:,} bytes")

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            block = response.read1(_BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise Later(network(error)) from error
        if self.stop.is_set():
            raise _Stopped
        return block

    def _wait(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise _Stopped

    def _partial(self, file: File) -> Path:
        return self._out / STATE / f"{file.path}.partial"


def _validator(headers: Mapping[str, str]) -> str:
    """What tells that a file is still the same, byte for byte; empty if the server says nothing of it."""
    tag = headers.get("ETag") or ""
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified") or ""


def _tag(partial: Path) -> Path:
    """Where the validator of the bytes that are here stands."""
    return partial.with_name(f"{partial.name}.tag")


def _size_of(file: File) -> int | None:
    try:
        with ask(file.url, method="HEAD") as response:
            length = response.headers.get("Content-Length", "")
            return int(length) if length.isdecimal() else None
    except (Later, DataError):
        return None


def _digest(path: Path, like: str) -> str:
    """The checksum of a file, by the algorithm of another."""
    algorithm = like.partition(":")[0]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return f"{algorithm}:{digest.hexdigest()}"
