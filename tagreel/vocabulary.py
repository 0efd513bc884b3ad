"""Names of classes, from the files that data sets come with or one of your own."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from tagreel.errors import DataError

_ID_COLUMNS = ("Index", "index", "label_id", "id")
_NAME_COLUMNS = ("Name", "display_name", "label_name", "name")


def read_label_names(path: str | Path) -> list[str]:
    """The name of class 0, 1, 2, ...

    Reads YouTube-8M's vocabulary.csv (Index, Name) and label_names CSV (label_id, label_name), AudioSet's
    class_labels_indices.csv (index, display_name), any CSV with columns id and name, and plain text with one
    name a line, blank lines at its end left out. Names that are empty in a CSV file or occur twice get their
    number added, so that each stays distinct. Raises `DataError` when ids are missing, twice or not numbers,
    and when plain text has a header or a blank line in its midst: the classes behind would be wrong by one.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=str(path)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text: byte {error.start}", path=str(path)) from error
    if not text.strip():
        raise DataError("is empty; expected one class name a line, or a CSV file", path=str(path))
    if "," not in text.splitlines()[0]:
        return _distinct(_plain_names(text, path=str(path)))
    rows = csv.DictReader(text.splitlines(keepends=True))
    columns = list(rows.fieldnames or ())
    id_column = next((c for c in _ID_COLUMNS if c in columns), None)
    name_column = next((c for c in _NAME_COLUMNS if c in columns), None)
    if id_column is None or name_column is None:
        raise DataError(
            f"has the columns {', '.join(columns)}; expected one of {', '.join(_ID_COLUMNS)} and one of "
            f"{', '.join(_NAME_COLUMNS)}",
            path=str(path),
        )
    names: dict[int, str] = {}
    for row in rows:
        key, line = (row[id_column] or "").strip(), f"line {rows.line_num}"
        if not key.isdecimal():
            raise DataError(f"{line}: {id_column} is {key!r}; expected a number", path=str(path))
        if int(key) in names:
            raise DataError(f"{line}: {id_column} {key} occurs twice", path=str(path))
        names[int(key)] = (row[name_column] or "").strip()
    if not names:
        raise DataError("has a header and no classes", path=str(path))
    missing = sorted(set(range(len(names))) - set(names))
    if missing:
        raise DataError(f"has {len(names):,} classes but none with {id_column} {missing[0]}", path=str(path))
    return _distinct([names[index] for index in range(len(names))])


def _plain_names(text: str, *, path: str) -> list[str]:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    # Columns between tabs and the like too: read as names, a header would make every class wrong by one.
    words = {word.strip(" \"'").casefold() for word in re.split(r"[\t;|]", lines[0])}
    if words & {column.casefold() for column in (*_ID_COLUMNS, *_NAME_COLUMNS)}:
        raise DataError(
            f"line 1, {lines[0]!r}, is the header of a table; expected one class name a line and no header, "
            f"or a CSV file with commas between one of {', '.join(_ID_COLUMNS)} and one of "
            f"{', '.join(_NAME_COLUMNS)}",
            path=path,
        )
    if "" in lines:
        number = lines.index("") + 1
        raise DataError(
            f"line {number} is blank; expected the name of class {number - 1:,}, or no line", path=path
        )
    return lines


def _distinct(names: list[str]) -> list[str]:
    seen: set[str] = set()
    distinct = []
    for index, name in enumerate(names):
        while not name or name in seen:  # again where "x (3)" is itself a name
            name = f"{name} ({index})".strip()
        seen.add(name)
        distinct.append(name)
    return distinct
