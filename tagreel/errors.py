"""What a user can mend: every error here is printed as one line and ends a command with exit code 2.

TagreelError(ValueError)
├── DataError       a file or record is not what it should be: says which, what was found, what to do
├── RecipeError     a recipe, an option or a command's argument is wrong: says which ones there are
└── RemoteError     a store does not give what it listed: says what it answered, how to go on
"""

from __future__ import annotations

from functools import partial
from typing import Any


class TagreelError(ValueError):
    """The root of all errors that a user can mend."""


class RecipeError(TagreelError):
    """A recipe, one of its options or an argument of a command cannot be used as given."""


class RemoteError(TagreelError):
    """A store of files does not answer, refuses, or has other content than it had.

    No damage, which `--skip-damaged` would step over: it ends the command.
    """


class DataError(TagreelError):
    """A file, or one record in it, cannot be read as what it claims to be.

    `path` is the file as the user named it, `record` the 0-based position of the record in it (None when
    the whole file is meant), `reason` says what was found and what was expected, and how to mend it.
    """

    def __init__(self, reason: str, *, path: str, record: int | None = None) -> None:
        self.reason, self.path, self.record = reason, path, record
        where = path if record is None else f"{path}, record {record:,}"
        super().__init__(f"{where}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled by their arguments, of which this one's are not what it was built from.
        return partial(DataError, path=self.path, record=self.record), (self.reason,)
