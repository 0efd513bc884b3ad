"""Downloaded archives unpacked: whole files, below their folder, and nothing twice."""

from __future__ import annotations

import filecmp
import gzip
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

from tagreel.download import STATE, alone, replace, unwritable
from tagreel.errors import DataError

_BLOCK = 1 << 18


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
    with alone(out):
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
            raise unwritable(error, out) from error
        replace(listing, json.dumps({"archive": identity, "members": members}))
        return len(members)


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
