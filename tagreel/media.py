"""Media files by their names: what is in a folder, and what a table lists."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagreel.errors import DataError

# By name, for folders: to try every picture and text in one would report each as unreadable.
SUFFIXES = frozenset(
    """
    .3g2 .3gp .aac .ac3 .aif .aiff .amr .asf .avi .caf .dv .eac3 .f4v .flac .flv .gif .h264 .h265 .hevc .ivf
    .m2ts .m2v .m4a .m4v .mka .mkv .mov .mp2 .mp3 .mp4 .mpeg .mpg .mts .mxf .nut .oga .ogg .ogv .opus .ra .rm
    .rmvb .ts .vob .wav .weba .webm .wma .wmv .wv .y4m
    """.split()  # noqa: SIM905
)
STDIN = "-"
_PATH, _ID, _SPLIT, _GROUP = "path", "id", "split", "group"


@dataclass(frozen=True)
class File:
    """A media file, and the name by which it is known: its path below the folder that was named."""

    name: str
    path: str


@dataclass(frozen=True)
class Listed:
    """A line of a table: a file, its tags, and where given its split and the group it must not leave."""

    file: File
    tags: tuple[str, ...]
    split: str | None
    group: str | None


def files(sources: Iterable[str]) -> tuple[list[File], list[str]]:
    """The media files in files and folders, in order, and what was left out of folders.

    A file named itself is taken whatever it is called, and "-" is standard input. Raises `DataError` for what
    is not there, and where a folder holds no media file.
    """
    found: dict[str, File] = {}
    ignored: list[str] = []
    for source in sources:
        if source == STDIN:
            found[source] = File("standard input", source)
            continue
        if not os.path.exists(source):
            raise DataError("no such file or folder", path=source)
        here = [File(os.path.basename(source), source)]
        if os.path.isdir(source):
            here = []
            for path in _walk(source):
                if Path(path).suffix.lower() in SUFFIXES:
                    here.append(File(Path(os.path.relpath(path, source)).as_posix(), path))
                else:
                    ignored.append(path)
            if not here:
                raise DataError(
                    f"holds no media file by name ({', '.join(sorted(SUFFIXES)[:4])}, ...); name files "
                    "themselves to take them whatever they are called",
                    path=source,
                )
        for file in here:
            found.setdefault(os.path.realpath(file.path), file)
    return list(found.values()), ignored


def table(path: str | Path, *, separator: str = ";") -> list[Listed]:
    """The videos that a CSV file lists: columns `path`, `tags`, and optional `id`, `split`, `group`.

    Paths are relative to the table's folder. Tags stand in one column between separators, or in several whose
    names begin with `tag`. Raises `DataError` that names the line.
    """
    name = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=name) from error
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text: byte {error.start}", path=name) from error
    rows = csv.DictReader(text.splitlines(keepends=True))
    columns = [column.strip() for column in rows.fieldnames or ()]
    tagged = [column for column in columns if column.lower().startswith("tag")]
    if _PATH not in columns or not tagged:
        raise DataError(
            f"has the columns {', '.join(columns) or '(none)'}; expected path and tags, and if you like id, "
            "split and group",
            path=name,
        )
    rows.fieldnames = columns
    listed: list[Listed] = []
    known: dict[str, int] = {}
    for row in rows:
        line = f"line {rows.line_num}"
        if None in row or None in row.values():
            raise DataError(f"{line}: has not the {len(columns)} columns of the first line", path=name)
        where = row[_PATH].strip()
        if not where:
            raise DataError(f"{line}: has no path", path=name)
        key = row.get(_ID, "").strip() or where
        if key in known:
            raise DataError(f"{line}: {key!r} is in line {known[key]} already", path=name)
        known[key] = rows.line_num
        cells = [cell for column in tagged for cell in row[column].split(separator)]
        tags = tuple(dict.fromkeys(cell.strip() for cell in cells if cell.strip()))
        split, group = (row.get(column, "").strip() or None for column in (_SPLIT, _GROUP))
        file = File(key, os.path.join(os.path.dirname(name), where))
        listed.append(Listed(file, tags, split, group))
    if not listed:
        raise DataError("lists no video", path=name)
    return listed


def _walk(folder: str) -> Iterator[str]:
    """All files below, sorted, but hidden ones."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(here, name) for name in sorted(names) if not name.startswith("."))


def told(paths: Sequence[str]) -> str:
    """Some of many paths, for a line."""
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3:,} more" if len(paths) > 3 else "")
