"""Files in object stores and on web servers: listed, copied whole into a cache, before they are needed.

Anything that fsspec knows by a URL (s3://, gs://, az://, https://, ...). A copy has its name once it is
whole, and the name says of which content; the readers of local files read it. Processes share the folder:
what one reads is locked (flock), and what nobody has locked goes when room is needed, the longest unused
first. Locks only save work: where a disk has none, a copy that is removed while it is read stays readable to
its reader, as POSIX has it. Windows does not remove what is open.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from tagreel.errors import DataError, RecipeError, RemoteError, TagreelError
from tagreel.provenance import Provenance

FOLDER, SIZE = "TAGREEL_CACHE", "TAGREEL_CACHE_SIZE"
USUAL_SIZE = 64 * 10**9
TRIES = 6  # without progress
FIRST_TRIES = 3  # to list what is there: somebody waits for it
PAUSE = 1.0  # seconds before the second try, twice as many before each further one
PART = 8 << 20
ABREAST = 8  # parts of a file
FETCHES = 4  # files at once
AHEAD = 64  # files, each with a descriptor
_END = 1 << 18
_FORMAT = 1
_AGAIN = "the same command goes on (a training with --resume) once that is mended"
_S3 = (
    "s3fs takes keys from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from AWS_PROFILE or ~/.aws, and "
    "the server from AWS_ENDPOINT_URL"
)
_GONE, _LATER = (404, 410), (408, 416, 425, 429)  # of HTTP; 416: it may have become shorter
_LASTING = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}  # botocore's

_fetching = threading.BoundedSemaphore(FETCHES)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Stored:
    """A file in a store: its URL, where fsspec has it, its bytes, and what changes with its content."""

    url: str
    fs: Any
    path: str
    size: int
    version: str

    @property
    def key(self) -> str:
        """A name for the copy of this content."""
        identity = f"{_FORMAT}\0{self.url}\0{self.size}\0{self.version}"
        name = re.sub(r"[^\w.-]", "_", self.path.rstrip("/").rpartition("/")[2])[-80:]
        return f"{blake2b(identity.encode(), digest_size=10).hexdigest()}-{name}"


@dataclass(frozen=True)
class Facts:
    """What a source has to know of a shard before it is read; no format if no reader recognises the file."""

    format: str | None
    count: int = 0
    label_names: list[str] | None = None
    provenance: Provenance | None = None


def is_url(name: str) -> bool:
    """Whether a name is a URL of a store, and no local path."""
    return "://" in name


def find(url: str, ignored: list[str]) -> tuple[list[Stored], bool]:
    """The files that a URL means, in the order of a local disk, and whether it names one itself.

    A folder, which may end in `/`, has all that is below it; hidden files are added to `ignored`. Raises
    `DataError` where there is nothing, `RemoteError` where the store does not answer.
    """
    fs, path = _file_system(url)
    root = url.rstrip("/") if path == path.rstrip("/") else url
    prefix = root.removesuffix(path) if root.endswith(path) else None

    def named(info: dict[str, Any]) -> Stored:
        name = str(info["name"])
        if info.get("size") is None:  # listings of web servers
            info = fs.info(name)
        if info.get("size") is None:
            raise DataError("the server does not say how long it is", path=name)
        where = fs.unstrip_protocol(name) if prefix is None else prefix + name
        return Stored(where, fs, name, int(info["size"]), _version(info))

    def listed() -> tuple[list[dict[str, Any]], bool]:
        try:
            return look()
        except Exception as error:  # every store has exceptions of its own
            if isinstance(error, FileNotFoundError) or _status(error) in _GONE:
                return [], False
            raise

    def look() -> tuple[list[dict[str, Any]], bool]:
        fs.invalidate_cache()
        info = None
        if not url.endswith("/"):
            with suppress(FileNotFoundError):
                info = _info(fs, path)
        if info is not None and info["type"] == "file":
            return [info], True
        if info is not None or url.endswith("/"):
            return _below(fs, path, prefix or "", ignored), False
        hits = fs.glob(path, detail=True) if re.search(r"[*?[]", path) else {}
        found: list[dict[str, Any]] = []
        for name in sorted(hits):
            if "/." not in name or "/." in path:  # hidden, unless it is asked for
                is_folder = hits[name]["type"] == "directory"
                found += _below(fs, name, prefix or "", ignored) if is_folder else [hits[name]]
        return found, False

    infos, chosen = _patiently(listed, url, tries=FIRST_TRIES)
    if not infos:
        reason = "no file matches this pattern" if re.search(r"[*?[]", path) else "no such file or folder"
        raise DataError(reason + _hint(url), path=url)
    return [_patiently(partial(named, info), url) for info in infos], chosen


def open_end(stored: Stored) -> BinaryIO | None:
    """A file in a store, to be read from its end by ranges; None where the store cannot."""
    with suppress(Exception):  # every store has exceptions of its own; fetched whole, it will tell
        file: BinaryIO = stored.fs.open(
            stored.path, "rb", block_size=_END, cache_type="blockcache", size=stored.size
        )
        return file
    return None


class Held:
    """A copy that is not removed as long as this is referred to."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        weakref.finalize(self, os.close, descriptor)


class Cache:
    """A folder of copies, of at most `limit` bytes besides those that are being read, and of facts.

    The environment says which, in `TAGREEL_CACHE` and, in GB, `TAGREEL_CACHE_SIZE`: it is the machine's
    affair and that of all commands alike. Else it is tagreel in the user's cache folder, and 64 GB, or half
    of what is free if that is less.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._copies, self._claims, self._facts = folder / "copies", folder / "claims", folder / "facts"
        try:
            for inner in (self._copies, self._claims, self._facts):
                inner.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"{FOLDER}: {folder}: cannot be written: {error.strerror or error}") from error

    @classmethod
    def usual(cls) -> Cache:
        """The one that the environment says."""
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = cls(Path(os.environ.get(FOLDER) or Path(home, "tagreel")), USUAL_SIZE)
        if told := os.environ.get(SIZE):
            try:
                cache.limit = int(float(told.upper().removesuffix("GB")) * 10**9)
            except (ValueError, OverflowError):
                raise RecipeError(f"{SIZE} is {told!r}; expected a number of GB, such as 64 or 0.5") from None
        else:
            taken = sum(size for _, size, _ in cache._files())
            cache.limit = min(USUAL_SIZE, (shutil.disk_usage(cache.folder).free + taken) // 2)
        return cache

    def hold(self, stored: Stored, *, force: bool = True) -> Held | None:
        """A copy of a file, fetched if it is not there; None where there is no room, unless by `force`.

        Raises `RemoteError` when it cannot be had, or is another by now.
        """
        target, claims = self._copies / stored.key, self._claims / stored.key
        if held := _held(target, stored.size):
            return held
        with _fetching:
            claim = _claim(claims)  # others who want the same wait here
            try:
                while not (held := _held(target, stored.size)):
                    if not self._obtain(stored, target, force):
                        return None
            finally:
                claims.unlink(missing_ok=True)
                os.close(claim)
        return held

    def _obtain(self, stored: Stored, target: Path, force: bool) -> bool:
        """Fetch a file; whether there is room for it."""
        unfinished = target.with_name(f"{target.name}.partial")
        try:
            mine = _claim(unfinished)  # or it might be taken for what a killed process left
            try:
                if not self._reserve(unfinished, stored.size, force):
                    return False
                _fetch(stored, unfinished)
                os.replace(unfinished, target)
            finally:
                unfinished.unlink(missing_ok=True)
                os.close(mine)
        except OSError as error:
            reason = f"cannot be written: {error.strerror or error}; {FOLDER} may name another folder"
            raise RemoteError(f"{self.folder}: {reason}") from error
        return True

    def facts(self, stored: Stored, *, whole_videos: bool) -> Facts | None:
        """What was noted of a file."""
        try:
            row = json.loads(self._note(stored, whole_videos).read_text("utf-8"))
            names, provenance = _about(self._facts / row["about"]) if row["about"] else (None, None)
            return Facts(row["format"], int(row["count"]), names, provenance)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def note(self, stored: Stored, facts: Facts, *, whole_videos: bool) -> None:
        """Remember what is known of a file; what many say alike, of classes and features, is kept once."""
        about = ""
        if facts.label_names is not None or facts.provenance is not None:
            made = facts.provenance
            text = json.dumps(
                {
                    "label_names": facts.label_names,
                    "streams": None if made is None else dict(made.streams),
                    "files": {}
                    if made is None
                    else {name: base64.b64encode(content).decode() for name, content in made.files.items()},
                },
                sort_keys=True,
            )
            about = f"about-{blake2b(text.encode(), digest_size=10).hexdigest()}.json"
            if not (self._facts / about).exists():
                _replace(self._facts / about, text)
        row = {"url": stored.url, "format": facts.format, "count": facts.count, "about": about}
        _replace(self._note(stored, whole_videos), json.dumps(row))

    def _note(self, stored: Stored, whole_videos: bool) -> Path:
        return self._facts / f"{stored.key}.{'whole.' if whole_videos else ''}json"

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """When each copy was last used, in ns, how large it is, and where; those on their way as well."""
        for entry in os.scandir(self._copies):
            with suppress(FileNotFoundError):
                status = entry.stat()
                yield status.st_mtime_ns, status.st_size, Path(entry.path)

    def _reserve(self, unfinished: Path, size: int, force: bool) -> bool:
        """Make room for a file and take it; whether there is any."""
        lock = _claim(self.folder / "lock")
        try:
            files = sorted(self._files())
            room = self.limit - sum(taken for _, taken, _ in files)
            for _, taken, path in files:
                if room >= size:
                    break
                if taken and _remove(path):
                    room += taken
            if room < size and not force:
                return False
            os.truncate(unfinished, size)
            return True
        finally:
            os.close(lock)


class Ahead:
    """Fetches files in the order in which they are needed, in threads, and keeps each until it was needed.

    `plan` has the files in the order of need, each with the last step that needs it. Half of the cache is for
    what was fetched ahead, since others read through it as well. A file that cannot be had ends it: whoever
    needs the file gets the reason.
    """

    def __init__(self, cache: Cache, plan: Sequence[tuple[Stored, int]]) -> None:
        self._cache, self._plan = cache, plan
        self._next, self._step, self._stopped = 0, -1, False
        self._held: dict[int, Held | None] = {}
        self._changed = threading.Condition()
        # Daemons: an interrupted command need not wait for a silent server.
        for _ in range(min(FETCHES, len(plan))):
            threading.Thread(target=self._work, daemon=True).start()

    def done(self, step: int) -> None:
        """Say that this step, and those before it, need nothing any more."""
        with self._changed:
            self._step = step
            for number in [number for number in self._held if self._plan[number][1] <= step]:
                del self._held[number]
            self._changed.notify_all()

    def close(self) -> None:
        """End it, but for what is on its way."""
        with self._changed:
            self._stopped = True
            self._held.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        with suppress(TagreelError, OSError):
            while (number := self._take()) is not None:
                while self._wanted(number) and not self._get(number):
                    time.sleep(0.2)  # until others leave room

    def _get(self, number: int) -> bool:
        held = self._cache.hold(self._plan[number][0], force=False)
        with self._changed:
            if self._wanted(number):
                self._held[number] = held
        return held is not None

    def _take(self) -> int | None:
        """The next file to fetch, once there is room for it; None at the end."""
        with self._changed:
            while not self._stopped and self._next < len(self._plan):
                if self._plan[self._next][1] <= self._step:
                    self._next += 1
                elif self._has_room(self._plan[self._next][0].size):
                    self._next += 1
                    self._held[self._next - 1] = None
                    return self._next - 1
                else:
                    self._changed.wait()
            return None

    def _has_room(self, size: int) -> bool:
        held = sum(self._plan[number][0].size for number in self._held)
        return not held or (len(self._held) < AHEAD and held + size <= self._cache.limit / 2)

    def _wanted(self, number: int) -> bool:
        return not self._stopped and number in self._held


def _file_system(url: str) -> tuple[Any, str]:
    """What fsspec reads a URL with, and the path it has there."""
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(url)
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or str(error)
        package = "'tagreel[remote]'" if missing in ("s3fs", "aiohttp") else missing
        raise RecipeError(f"{url}: reading it needs {missing}; pip install {package}") from None
    except ValueError as error:
        raise RecipeError(f"{url}: {error}; expected s3://, gs://, az://, https:// or a path") from None
    return fs, str(path)


def _below(fs: Any, path: str, prefix: str, ignored: list[str]) -> list[dict[str, Any]]:
    """What a folder and those below it hold, hidden files left out; a folder's files before its folders."""
    found: dict[tuple[tuple[bool, str], ...], dict[str, Any]] = {}
    for name, info in fs.find(path, detail=True).items():
        parts = name.removeprefix(path).strip("/").split("/")
        hidden = next((at for at, part in enumerate(parts) if part.startswith(".")), None)
        if hidden is not None:
            told = "/".join([f"{prefix}{path.rstrip('/')}", *parts[: hidden + 1]])
            ignored += [told] if told not in ignored else []
        elif info["type"] == "file" and not name.endswith("/"):
            found[tuple((at < len(parts) - 1, part) for at, part in enumerate(parts))] = info
    return [found[place] for place in sorted(found)]


def _info(fs: Any, path: str) -> dict[str, Any]:
    """What the store says of a file; `FileNotFoundError` only where it says that there is none."""
    try:
        info: dict[str, Any] = fs.info(path)
    except FileNotFoundError as error:
        # Of a web server fsspec says so whatever went wrong.
        if error.__cause__ is not None and _status(error.__cause__) not in _GONE:
            raise error.__cause__ from None
        raise
    return info


def _version(info: dict[str, Any]) -> str:
    """What changes with a file's content: a hash where the store has one, else the time."""
    for name in ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest"):
        if info.get(name):
            return f"{name} {info[name]}".replace('"', "")
    for name in ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified", "created"):
        if value := info.get(name):
            return f"{name} {value.timestamp() if isinstance(value, datetime) else value}"
    return ""


def _patiently(call: Callable[[], _T], url: str, *, tries: int = TRIES) -> _T:
    """What a call to a store returns, which is tried again where that may help."""
    for failures in range(1, tries + 1):
        try:
            return call()
        except TagreelError:
            raise
        except Exception as error:  # every store has exceptions of its own
            _judge(error, url, failures, tries)
            time.sleep(_pause(failures))
    raise AssertionError("the last failure raises")


def _judge(error: Exception, url: str, failures: int, tries: int) -> None:
    """Raise `RemoteError` for what will not be mended by trying again, or was tried often enough."""
    reason = (str(error).strip().partition("\n")[0] or type(error).__name__)[:300]
    if isinstance(error, FileNotFoundError):
        raise RemoteError(f"{url}: is not there ({reason}){_hint(url)}") from error
    refused = 400 <= _status(error) < 500 and _status(error) not in _LATER
    if refused or isinstance(error, PermissionError) or type(error).__name__ in _LASTING:
        raise RemoteError(f"{url}: refused: {reason}{_hint(url)}") from error
    if failures >= tries:
        raise RemoteError(f"{url}: gave up after {tries} tries: {reason}; {_AGAIN}{_hint(url)}") from error


def _status(error: BaseException) -> int:
    """What a server answered by HTTP, as aiohttp or botocore tell it; 0 if nothing."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    status = getattr(error, "status", 0)
    return status if isinstance(status, int) else 0


def _hint(url: str) -> str:
    return f"; {_S3}" if url.startswith(("s3:", "s3a:")) else ""


def _pause(failures: int) -> float:
    """Seconds before the next try; some chance, so that many who failed do not all come back at once."""
    return PAUSE * 2.0 ** (failures - 1) * random.uniform(0.5, 1)


def _fetch(stored: Stored, target: Path) -> None:
    """Write a file's bytes into one that is there, and as long; parts of it are fetched at the same time."""
    missing = [(start, min(start + PART, stored.size)) for start in range(0, stored.size, PART)]
    failures = done = 0
    with open(target, "r+b") as file:
        while missing:
            # The first goes alone: a web server that knows no ranges sends all of the file.
            some = missing[: ABREAST if done else 1]
            failed: list[tuple[int, int]] = []
            problem: Exception | None = None
            for (start, stop), part in zip(some, _ranges(stored, some), strict=True):
                if isinstance(part, Exception):
                    failed.append((start, stop))
                    problem = part
                elif len(part) == stored.size:
                    file.seek(0)
                    file.write(part)
                    missing, some, failed = [], [], []
                    break
                elif len(part) != stop - start:
                    failed.append((start, stop))
                    problem = OSError(f"{len(part):,} bytes came of {stop - start:,}")
                else:
                    file.seek(start)
                    file.write(part)
            done += len(some) - len(failed)
            missing = failed + missing[len(some) :]
            failures = failures + 1 if problem is not None and len(failed) == len(some) else 0
            if problem is not None:
                _check_unchanged(stored)
                _judge(problem, stored.url, failures, TRIES)
                time.sleep(_pause(max(failures, 1)))
        file.flush()
        os.fsync(file.fileno())
    _patiently(lambda: _check_unchanged(stored, surely=True), stored.url)


def _ranges(stored: Stored, parts: Sequence[tuple[int, int]]) -> list[bytes | Exception]:
    """The bytes of each part, or what went wrong."""
    starts, stops = zip(*parts, strict=True)
    try:
        found: list[bytes | Exception] = stored.fs.cat_ranges(
            [stored.path] * len(parts), list(starts), list(stops), on_error="return"
        )
    except Exception as error:  # every store has exceptions of its own
        return [error] * len(parts)
    return found


def _check_unchanged(stored: Stored, *, surely: bool = False) -> None:
    """Raise `RemoteError` where the store has other content by now; unless `surely`, only if it answers."""
    stored.fs.invalidate_cache()
    try:
        info = _info(stored.fs, stored.path)
    except Exception:
        if surely:
            raise
        return
    size, version = info.get("size") or 0, _version(info)
    # Some stores tell more of a file by itself than in a list.
    alike = version.partition(" ")[0] == stored.version.partition(" ")[0]
    if size != stored.size or (alike and version != stored.version):
        raise RemoteError(
            f"{stored.url}: it was {stored.size:,} bytes ({stored.version}) when it was listed, and is now "
            f"{size:,} bytes ({version}); give the command again to read what is there now"
        )


def _held(target: Path, size: int) -> Held | None:
    """A copy that is there, locked against removal; one of another length is no copy."""
    try:
        descriptor = os.open(target, os.O_RDONLY)
    except FileNotFoundError:
        return None
    _lock(descriptor, wait=True, shared=True)
    if not _is_named(descriptor, target) or os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        with suppress(OSError):
            if os.stat(target).st_size != size:
                target.unlink()
        return None
    with suppress(OSError):
        os.utime(target)
    return Held(target, descriptor)


def _claim(path: Path) -> int:
    """A descriptor of a file, made if there is none, which nobody else has until it is closed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _lock(descriptor, wait=True)
        if _is_named(descriptor, path):
            return descriptor
        os.close(descriptor)  # whoever had it renamed or removed it


def _remove(path: Path) -> bool:
    """Remove a copy that nobody has locked; whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if not _lock(descriptor, wait=False):
                return False
        finally:
            os.close(descriptor)
        path.unlink()
    except FileNotFoundError:
        return True
    except PermissionError:  # Windows: it is open
        return False
    return True


def _lock(descriptor: int, *, wait: bool, shared: bool = False) -> bool:
    """Lock an open file; whether it is locked, or the disk knows no locks."""
    if sys.platform != "win32":
        import fcntl

        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            return False
        except OSError:
            return True
    return True


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


@lru_cache(maxsize=64)
def _about(path: Path) -> tuple[list[str] | None, Provenance | None]:
    about = json.loads(path.read_text("utf-8"))
    files = {name: base64.b64decode(content) for name, content in about["files"].items()}
    streams = about["streams"]
    return about["label_names"], None if streams is None else Provenance(streams, files)


def _replace(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
