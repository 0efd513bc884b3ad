"""The official files of YouTube-8M and AudioSet: what they are, and how they get here whole.

YouTube-8M is fetched as its own script does (data.yt8m.org/download.py, of which there are public copies):

- each partition has a plan, `{"files": {name: md5}}`, at VERSION/download_plans/LEVEL_SPLIT.json;
- a file lies on each of three mirrors at VERSION/LEVEL/SPLIT/NAME;
- part I,N of a partition is the files for which the MD5 of the name is I - 1 modulo N;
- on disk a number stands for the two letters of a name: `trainaA` and `trainaa` are one file on some disks.

Version 2 is the data of 2018, 3 the rated segments of 2019; those of 2016 and 2017 were to be deleted in July
2018 (research.google.com/youtube8m/download2017.html). The folders are those of the starter code's README
(github.com/google/youtube-8m), which also holds segment_label_ids.csv. AudioSet is one archive
(research.google.com/audioset/download.html) without an official checksum; the one here is what two public
programs that fetch it expect, from two mirrors. All of it lies in Google Cloud Storage, which is asked by its
own https address (cloud.google.com/storage/docs/request-endpoints) where the script uses http and the name
data.yt8m.org.

A file is written below OUT/.download, goes on there after a break (RFC 9110, ranges), and gets its name once
its checksum is right: what has a name is whole, and readers of OUT see nothing else.
"""

from __future__ import annotations

import filecmp
import gzip
import hashlib
import http.client
import json
import os
import queue
import random
import re
import shutil
import ssl
import string
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tagreel.errors import DataError, RecipeError

MIRRORS = ("us", "eu", "asia")
LEVELS = ("frame", "video")
SPLITS = {
    "train": "2/{level}/train",
    "validate": "2/{level}/validate",
    "test": "2/{level}/test",
    "segments": "3/{level}/validate",
    "segments-test": "3/{level}/test",
}
"""The partitions of YouTube-8M under our names for them."""
ARCHIVE = "features.tar.gz"
STATE = ".download"
"""The folder below OUT of what is not whole yet, and of what is known of the rest."""

TIMEOUT = 30.0  # seconds of silence, after which a connection counts as dropped
TRIES = 8  # without a byte of progress
PAUSE = 1.0  # seconds before the second try, twice as many before each further one
SAMPLE = 16  # files that are asked for their size before thousands are fetched
_BLOCK = 1 << 18
_GOOGLE = "https://storage.googleapis.com"
_ARCHIVE_SHA256 = "cd95d500ab2422d4233cb822e25cf73033633e2068eab64d39024e85125cb760"
_LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits


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


def parse_shard(text: str) -> tuple[int, int]:
    """`1,100` as (1, 100): the first of a hundred parts."""
    found = re.fullmatch(r"([1-9]\d*),([1-9]\d*)", text)
    if not found or int(found[1]) > int(found[2]):
        raise RecipeError(f"--shard {text}: expected I,N with I from 1 to N, such as 1,100 for one hundredth")
    return int(found[1]), int(found[2])


def youtube8m(
    *,
    level: str = "frame",
    splits: Sequence[str] = ("train", "validate"),
    shard: tuple[int, int] = (1, 1),
    mirror: str = "us",
    base: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[File]:
    """The files of these splits, and the vocabularies; their plans are fetched for it.

    `base` is a server of one's own with the same paths. Raises `RecipeError` for a split, level or mirror
    there is none of, `DataError` when a plan cannot be had or is none.
    """
    _one_of("--level", level, LEVELS)
    _one_of("--mirror", mirror, MIRRORS)
    home = None if base is None else _server(base)
    plans, shards, vocabulary, ids = (
        (
            f"{_GOOGLE}/data.yt8m.org",
            f"{_GOOGLE}/{mirror}.data.yt8m.org",
            "https://research.google.com/youtube8m/csv/2/vocabulary.csv",
            "https://raw.githubusercontent.com/google/youtube-8m/master/segment_label_ids.csv",
        )
        if home is None
        else (home, home, f"{home}/vocabulary.csv", f"{home}/segment_label_ids.csv")
    )
    files = [File(vocabulary, "vocabulary.csv")]
    for split in splits:
        _one_of("--split", split, SPLITS)
        if split.startswith("segments"):
            if level != "frame":
                reason = f"rated segments are frame level; leave out --level {level}"
                raise RecipeError(f"--split {split}: {reason}")
            files.append(File(ids, "segment_label_ids.csv"))
    for split in splits:
        partition = SPLITS[split].format(level=level)
        version, _, kind = partition.split("/")
        plan = f"{plans}/{version}/download_plans/{level}_{kind}.json"
        for name, md5 in _read_plan(plan, kind, say).items():
            if _part(name, of=shard[1]) == shard[0]:
                path = f"{partition}/{_numbered(name)}"
                files.append(File(f"{shards}/{partition}/{name}", path, f"md5:{md5}"))
    return list(dict.fromkeys(files))


def audioset(*, mirror: str = "us", base: str | None = None) -> list[File]:
    """AudioSet's archive of features, the names of its classes and their ontology.

    `base` is a server of one's own with the same paths, whose archive may be another.
    """
    _one_of("--mirror", mirror, MIRRORS)
    home = f"{_GOOGLE}/{mirror}_audioset/youtube_corpus/v1" if base is None else _server(base)
    ontology = "https://raw.githubusercontent.com/audioset/ontology/master" if base is None else home
    return [
        File(f"{home}/csv/class_labels_indices.csv", "class_labels_indices.csv"),
        File(f"{ontology}/ontology.json", "ontology.json"),
        File(f"{home}/features/{ARCHIVE}", ARCHIVE, f"sha256:{_ARCHIVE_SHA256}" if base is None else ""),
    ]


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
    with _alone(out):
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


def unpack(
    archive: Path,
    out: Path,
    *,
    verify: bool = False,
    on_bytes: Callable[[int], None] = lambda done: None,
) -> int:
    """Unpack a .tar.gz into a folder; the number of its files.

    A file gets its name once it is whole, and keeps it where its content is right already, so that unpacking
    goes on after a break; done once, it is taken by the sizes, with `verify` by the contents. Anything but
    plain files below the folder (`tarfile`'s data filter) raises `DataError`, and so does damage, upon which
    the archive is removed. `on_bytes` is told of the bytes of the archive read.
    """
    with _alone(out):
        status = archive.stat()
        identity = [status.st_size, status.st_mtime_ns]
        listing = out / STATE / f"{archive.name}.json"
        if not verify and (members := _unpacked(listing, identity, out)):
            return len(members)
        try:
            members = _unpack(archive, out, on_bytes)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            archive.unlink()
            reason = f"is damaged ({error}) and was removed; the same command fetches it again"
            raise DataError(reason, path=str(archive)) from error
        except OSError as error:
            raise _unwritable(error, out) from error
        _replace(listing, json.dumps({"archive": identity, "members": members}))
        return len(members)


class _Later(Exception):  # noqa: N818
    """It may work the next time, `after` seconds from now at the earliest."""

    def __init__(self, reason: str, *, after: float = 0.0) -> None:
        self.after = after
        super().__init__(reason)


class _Stopped(Exception):  # noqa: N818
    """Somebody else ended the download."""


class _Patience:
    """Pauses that grow from try to try, and begin anew once there was progress; a limit to it all."""

    def __init__(
        self, name: str, say: Callable[[str], None], wait: Callable[[float], Any] = time.sleep
    ) -> None:
        self._name, self._say, self._wait = name, say, wait
        self._best, self._failures = 0, 0

    def pause(self, problem: _Later, *, position: int = 0) -> None:
        """Wait for the next try; raises `DataError` when there have been enough."""
        if position > self._best:
            self._best, self._failures = position, 0
        self._failures += 1
        if self._failures == TRIES:
            raise DataError(f"gave up after {TRIES} tries: {problem}", path=self._name) from problem
        # Some chance, so that files that were refused at once do not all come back at once.
        seconds = max(PAUSE * 2 ** (self._failures - 1) * random.uniform(0.5, 1), problem.after)
        if self._failures > 1:
            self._say(f"{self._name}: {problem}; again in {seconds:.0f}s")
        self._wait(seconds)


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
            self.fatal = _unwritable(error, self._out) if isinstance(error, OSError) else error
            self.stop.set()

    def _obtain(self, file: File) -> bool:
        """Get one file whole; whether it was there already."""
        if self._has(file):
            return True
        partial, wrong = self._partial(file), False
        partial.parent.mkdir(parents=True, exist_ok=True)
        patience = _Patience(file.url, self._say, self._wait)
        while True:
            try:
                self._transfer(file, partial)
            except _Later as problem:
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
        """Get the rest of a file; raises `_Later` when it did not come to its end."""
        have = partial.stat().st_size if partial.exists() else 0
        validator = _tag(partial).read_text("utf-8") if have and _tag(partial).exists() else ""
        if not validator:  # whether it is still the same file could not be told
            have = 0
        self._at[file.path] = have
        asked = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
        with _open(file.url, asked) as response:
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
                    raise _Later("it is not what it was; from its beginning")
            else:
                length = headers.get("Content-Length", "")
                have, total = 0, int(length) if length.isdecimal() else -1
                partial.write_bytes(b"")  # before the new tag: this tag must never stand beside other bytes
                _replace(_tag(partial), _validator(headers))
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
            raise _Later(f"the connection ended after {have:,} of {total:,} bytes")

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            block = response.read1(_BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _Later(_network(error)) from error
        if self.stop.is_set():
            raise _Stopped
        return block

    def _wait(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise _Stopped

    def _partial(self, file: File) -> Path:
        return self._out / STATE / f"{file.path}.partial"


def _open(url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Any:
    """A server's answer, of which 416 (no such range) is one; raises `_Later` or, for good, `DataError`."""
    headers = {"User-Agent": "tagreel", **(headers or {})}
    try:
        return urllib.request.urlopen(
            urllib.request.Request(url, headers=headers, method=method), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:
            return error
        error.close()
        said = f"the server says {error.code} {error.reason}"
        if error.code in (408, 425, 429) or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            raise _Later(said, after=min(float(after), 300) if after.isdecimal() else 0) from error
        raise DataError(said, path=url) from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DataError(f"its certificate is not trusted: {reason.verify_message}", path=url) from error
        raise _Later(_network(reason)) from error


def _network(error: BaseException | str) -> str:
    """What went wrong between here and there."""
    if isinstance(error, TimeoutError):
        return f"nothing came for {TIMEOUT:.0f}s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _validator(headers: Mapping[str, str]) -> str:
    """What tells that a file is still the same, byte for byte; empty if the server says nothing of it."""
    tag = headers.get("ETag") or ""
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified") or ""


def _tag(partial: Path) -> Path:
    """Where the validator of the bytes that are here stands."""
    return partial.with_name(f"{partial.name}.tag")


def _size_of(file: File) -> int | None:
    try:
        with _open(file.url, method="HEAD") as response:
            length = response.headers.get("Content-Length", "")
            return int(length) if length.isdecimal() else None
    except (_Later, DataError):
        return None


def _read_plan(url: str, split: str, say: Callable[[str], None]) -> dict[str, str]:
    """The names and MD5s of a partition; a name that is none of the official ones is refused."""
    patience = _Patience(url, say)
    while True:
        try:
            with _open(url) as response:
                content = response.read()
            break
        except (OSError, http.client.HTTPException) as error:
            patience.pause(_Later(_network(error)))
        except _Later as problem:
            patience.pause(problem)
    try:
        files = json.loads(content)["files"]
        items = list(files.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError('is no download plan; expected {"files": {name: md5}}', path=url) from error
    for name, md5 in items:
        if not re.fullmatch(rf"{split}[a-zA-Z0-9]{{2}}\.tfrecord", name):
            raise DataError(f"names the file {name!r}; expected names like {split}aZ.tfrecord", path=url)
        if not isinstance(md5, str) or not re.fullmatch(r"[0-9a-f]{32}", md5):
            raise DataError(f"{name}: its md5 is {md5!r}; expected 32 hexadecimal digits", path=url)
    return dict(items)


def _part(name: str, *, of: int) -> int:
    """Which of so many parts a file belongs to, counted from 1."""
    return int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16) % of + 1


def _numbered(name: str) -> str:
    """`trainaZ.tfrecord` as the official script writes it to disk: train0051.tfrecord."""
    stem, _, ending = name.partition(".")
    first, second = map(_LETTERS.index, stem[-2:])
    return f"{stem[:-2]}{first * len(_LETTERS) + second:04}.{ending}"


def _one_of(option: str, value: str, known: Sequence[str] | Mapping[str, str]) -> None:
    if value not in known:
        raise RecipeError(f"{option} {value}: expected one of {', '.join(known)}")


def _server(base: str) -> str:
    if not re.fullmatch(r"https?://[\w.-]+(:\d+)?(/[^\s?#]*)?", base, re.ASCII):
        raise RecipeError(f"--base {base}: expected the address of a server, http://... or https://...")
    return base.rstrip("/")


def _digest(path: Path, like: str) -> str:
    """The checksum of a file, by the algorithm of another."""
    algorithm = like.partition(":")[0]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return f"{algorithm}:{digest.hexdigest()}"


def _replace(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _unwritable(error: OSError, out: Path) -> DataError:
    return DataError(
        f"cannot be written: {error.strerror or error}; the same command goes on once that is mended",
        path=str(error.filename or out),
    )


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Make the folder, and keep other processes from writing to it; the lock ends with the process."""
    try:
        (out / STATE).mkdir(parents=True, exist_ok=True)
        lock = open(out / STATE / "lock", "w")  # noqa: SIM115
    except OSError as error:
        raise _unwritable(error, out) from error
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


def _unpacked(listing: Path, identity: list[int], out: Path) -> dict[str, int]:
    """The members of an archive if they were unpacked and are all there; else none."""
    try:
        found = json.loads(listing.read_text("utf-8"))
        members: dict[str, int] = found["members"] if found["archive"] == identity else {}
        whole = all((out / name).stat().st_size == size for name, size in members.items())
        return members if whole else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _unpack(archive: Path, out: Path, on_bytes: Callable[[int], None]) -> dict[str, int]:
    members: dict[str, int] = {}
    temporary = out / STATE / "member"
    with open(archive, "rb") as raw, gzip.GzipFile(fileobj=raw) as plain:
        with tarfile.open(fileobj=plain, mode="r|") as tar:
            for member in tar:
                if member.isdir():
                    continue
                target = out / _member_name(member, archive, out)
                content = tar.extractfile(member)
                assert content is not None, "plain files have content"
                with content, open(temporary, "wb") as file:
                    shutil.copyfileobj(content, file)
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.is_file() or not filecmp.cmp(temporary, target, shallow=False):
                    os.replace(temporary, target)
                members[member.name] = member.size
                on_bytes(raw.tell())
        while plain.read(_BLOCK):  # tarfile stops before the end, where gzip's checksum stands
            pass
    return members


def _member_name(member: tarfile.TarInfo, archive: Path, out: Path) -> str:
    try:
        name = tarfile.data_filter(member, str(out)).name
    except tarfile.FilterError:
        name = ""
    if not member.isreg() or name != member.name or STATE in name.split("/"):
        reason = (
            f"holds {member.name!r}, which is no plain file below the folder; it was not unpacked further"
        )
        raise DataError(reason, path=str(archive))
    return name
