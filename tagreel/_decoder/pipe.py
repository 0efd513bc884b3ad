"""What comes through a pipe, for several demuxers that each read it from its beginning."""

from __future__ import annotations

from typing import Any


class Pipe:
    """Bytes that come once, for several demuxers that each read them from the beginning.

    Once all have begun, and those that read on are known (`keep`), what all of these have read is forgotten.
    """

    def __init__(self, raw: Any) -> None:
        self.raw, self.held, self.first = raw, bytearray(), 0
        self.readers: list[Reader] = []
        self.is_kept = False

    def open(self) -> Reader:
        """What another demuxer reads."""
        self.readers.append(Reader(self))
        return self.readers[-1]

    def keep(self, readers: list[Reader]) -> None:
        """From now on only these read."""
        self.readers, self.is_kept = readers, True

    def read(self, start: int, size: int) -> bytes:
        """Some bytes from `start` on; none at the end."""
        if start == self.first + len(self.held):
            self.held += self.raw.read(size)
        found = bytes(self.held[start - self.first : start - self.first + size])
        if self.is_kept:
            least = min(reader.at for reader in self.readers)
            del self.held[: least - self.first]
            self.first = least
        return found


class Reader:
    """A file of which one cannot seek, as a demuxer reads it."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe, self.at = pipe, 0

    def read(self, size: int) -> bytes:
        """The next bytes."""
        found = self.pipe.read(self.at, size)
        self.at += len(found)
        return found
