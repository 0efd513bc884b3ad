"""The framing of TFRecord files, plain and gzip: checksums, damage, and a way on behind it.

A record is a length (uint64), the masked CRC-32C of those eight bytes, the payload, and the payload's
masked CRC-32C, all little-endian; the mask is `rotate_right(crc, 15) + 0xa282ead8` (TensorFlow,
`core/lib/io/record_writer.h` and `core/lib/hash/crc32c.h`). Nothing marks the beginning of a file, its
end, or the number of records: a file that lost whole records exactly at a record boundary is a sound,
shorter file, and no reader can tell.
"""

from __future__ import annotations

import gzip
import mmap
import os
import struct
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tagreel.errors import DataError

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_GZIP = b"\x1f\x8b\x08"
_WINDOW = 1 << 20


class RecordFile:
    """One TFRecord file as a sequence of payloads, each a view of the file and no copy.

    The length headers are walked on opening and their checksums always verified; a payload's checksum is
    verified when it is read, unless `check_crc` is False. What cannot be read is an entry of its own, so
    `len` counts it and reading it raises a `DataError`: a damaged header (the walk goes on at the next sound
    one), a record cut short, an empty file, and at the very end a gzip stream that breaks off.
    `limit` reads only about so many bytes of the file, enough to see what is in it.
    """

    def __init__(self, path: str | Path, *, check_crc: bool = True, limit: int | None = None) -> None:
        self.path, self._check_crc = str(path), check_crc
        try:
            with open(path, "rb", buffering=0) as file:
                self._data, packed, problem = _load(file, limit)
                header_at = _in_memory(self._data) if packed else _on_disk(file)
                self._starts, self._lengths, self._damage = _walk(self._data, header_at)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", path=self.path) from None
        if problem is not None:
            self._add_problem(problem)

    def __len__(self) -> int:
        return len(self._starts)

    def payload(self, index: int, *, check_crc: bool | None = None) -> NDArray[np.uint8]:
        """The bytes of a record; raises `DataError` where they are damaged."""
        if index in self._damage:
            raise self.error(index, self._damage[index])
        start = self._starts[index]
        stop = start + self._lengths[index]
        payload = self._data[start:stop]
        if (self._check_crc if check_crc is None else check_crc) and not _sound(self._data, start, stop):
            raise self.error(index, f"the checksum of its {len(payload):,} bytes is wrong")
        return payload

    def error(self, index: int, reason: str) -> DataError:
        """The error that names this file, a record of it, and what is wrong there."""
        return DataError(reason, path=self.path, record=index)

    def _add_problem(self, problem: str) -> None:
        """The gzip stream's own damage is told by the record it cut, or else by an entry at the end."""
        last = len(self) - 1
        if last in self._damage and self._starts[last] + self._lengths[last] == len(self._data):
            self._damage[last] += f"; {problem}"
        else:
            self._damage[last + 1] = problem
            self._starts.append(len(self._data))
            self._lengths.append(0)


def write(path: str | Path, payloads: Iterable[bytes]) -> None:
    """Write a TFRecord file, gzip if its name ends in `.gz`; it has its name only once it is complete."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            if path.suffix == ".gz":
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
                    packed.writelines(_frame(payloads))
            else:
                file.writelines(_frame(payloads))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def masked_crc(data: bytes | NDArray[np.uint8]) -> int:
    """CRC-32C, rotated and shifted the way TFRecord stores it."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _frame(payloads: Iterable[bytes]) -> Iterator[bytes]:
    for payload in payloads:
        length = struct.pack("<Q", len(payload))
        yield length + _CRC.pack(masked_crc(length))
        yield payload
        yield _CRC.pack(masked_crc(payload))


def _sound(data: NDArray[np.uint8], start: int, stop: int) -> bool:
    """Whether data[start:stop] has the checksum that follows it."""
    return bool(_CRC.unpack_from(data.data, stop)[0] == masked_crc(data[start:stop]))


def _load(file: FileIO, limit: int | None) -> tuple[NDArray[np.uint8], bool, str | None]:
    """The bytes of a file, whether they were decompressed, and what is wrong with its gzip stream."""
    magic = file.read(len(_GZIP))
    if not magic:
        return np.empty(0, np.uint8), False, None
    data: NDArray[np.uint8] = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    if magic != _GZIP:
        return data[:limit], False, None
    content, problem = _inflate(data, limit)
    return content, True, problem


def _in_memory(data: NDArray[np.uint8]) -> Callable[[int], bytes]:
    return lambda at: data[at : at + 12].tobytes()


def _on_disk(file: FileIO) -> Callable[[int], bytes]:
    """Headers by reads, not through the mapping.

    A page fault would hold the interpreter lock while the disk seeks, and a source walks many files at once
    in threads.
    """

    def read(at: int) -> bytes:
        file.seek(at)
        return file.read(12) or b""

    return read


def _walk(
    data: NDArray[np.uint8], header_at: Callable[[int], bytes]
) -> tuple[array[int], array[int], dict[int, str]]:
    """Where each payload starts, how long it is, and which entries are damaged and why."""
    size = len(data)
    starts, lengths, damage = array("q"), array("q"), dict[int, str]()
    if size == 0:
        return array("q", [0]), array("q", [0]), {0: "the file is empty (0 bytes)"}
    at = 0
    while at < size:
        header = header_at(at)
        whole = len(header) == 12
        length, crc = _HEADER.unpack(header) if whole else (0, 0)
        sound = whole and crc == masked_crc(header[:8])
        if sound and at + length + 16 <= size:
            starts.append(at + 12)
            lengths.append(length)
            at += length + 16
            continue
        last, search = len(starts) - 1, at + 12 if sound else at + 1
        if last >= 0 and last not in damage and not sound and not _sound(data, starts[-1], at - 4):
            # Bytes are missing inside the last record: its length reached over records that are intact.
            search = starts[-1]
        resume = _next_header(data, search)
        if resume < at:
            lengths[-1] = resume - starts[-1]
            damage[last] = f"bytes are missing in it; {lengths[-1]:,} bytes are skipped to the next record"
        else:
            damage[len(starts)] = _reason(size, at, resume, length if sound else None, whole)
            starts.append(at)
            lengths.append(resume - at)
        at = resume
    return starts, lengths, damage


def _reason(size: int, at: int, resume: int, length: int | None, whole: bool) -> str:
    skipped = f"{resume - at:,} bytes from byte {at:,} are skipped"
    if length is not None:
        return f"it is cut short: {length:,} bytes long by its header, {size - at - 12:,} are left; {skipped}"
    if not whole:
        return f"it is cut short: {size - at} bytes of a 12 byte header are left"
    return f"its length header is damaged (the checksum is wrong); {skipped}"


def _next_header(data: NDArray[np.uint8], at: int) -> int:
    """The first position from `at` on that holds a sound header of a record that fits; else the file's end.

    Any eight bytes with their checksum behind them would do: by chance that is one position in 2^32, and a
    length that fits into the file is as rare again.
    """
    size = len(data)
    top = 8 - (size.bit_length() + 7) // 8  # so many high bytes of a length that fits are zero
    for begin in range(at, size - 15, _WINDOW):
        end = min(begin + _WINDOW, size - 15)
        high = data[begin + 8 - top : end + 8 - top].copy()
        for byte in range(8 - top + 1, 8):
            high |= data[begin + byte : end + byte]
        places = begin + np.flatnonzero(high == 0)
        length, stored = _at_every_byte(data, "<u8", 0)[places], _at_every_byte(data, "<u4", 8)[places]
        fits = length <= (size - 16 - places).astype(np.uint64)
        fits &= (length > 0) | (stored == masked_crc(bytes(8)))  # long runs of zeros: no table look-ups
        places = places[fits]
        words = data[places[:, None] + np.arange(8)]
        hits = places[stored[fits] == _masked_crcs(words)]
        if len(hits):
            return int(hits[0])
    return size


def _at_every_byte(data: NDArray[np.uint8], dtype: str, offset: int) -> NDArray[Any]:
    """The number that begins at each byte of `data`, `offset` bytes on; a view."""
    count = len(data) - offset - np.dtype(dtype).itemsize + 1
    return np.ndarray((count,), dtype, data.data, offset, (1,))


def _masked_crcs(words: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The masked CRC-32C of each row of eight bytes, (rows, 8), by eight table look-ups."""
    flipped = words ^ np.array([0xFF] * 4 + [0] * 4, np.uint8)
    crc = ~np.asarray(np.bitwise_xor.reduce(_tables()[np.arange(7, -1, -1), flipped], axis=1), np.uint32)
    return (crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(0xA282EAD8)


@cache
def _tables() -> NDArray[np.uint32]:
    """Tables (8, 256) of the CRC-32C of a byte followed by 0..7 zero bytes ("slicing by eight")."""
    tables: NDArray[np.uint32] = np.empty((8, 256), np.uint32)
    tables[0] = np.arange(256)
    for _ in range(8):
        tables[0] = np.where(tables[0] & 1, 0x82F63B78, 0) ^ (tables[0] >> 1)
    for zeros in range(1, 8):
        tables[zeros] = tables[0, tables[zeros - 1] & 0xFF] ^ (tables[zeros - 1] >> 8)
    return tables


def _inflate(packed: NDArray[np.uint8], limit: int | None) -> tuple[NDArray[np.uint8], str | None]:
    """All that a gzip file's members still hold, and the first thing that is wrong with them.

    Behind damage the next member is looked for: AudioSet's shards are often joined byte by byte.
    """
    raw, out, at = packed.data, bytearray(), 0
    problem: str | None = None
    while at < len(raw) and (limit is None or len(out) < limit):
        begin = at
        at, wrong = _inflate_member(raw, at, out, limit)
        if wrong is None:
            continue
        if not any(raw[begin:]):
            break  # zeros that fill up the last block of a disk or tape, as gzip itself accepts
        problem = problem or f"the gzip stream that begins at byte {begin:,} is damaged: {wrong}"
        found = packed[max(at, begin + 1) :].tobytes().find(_GZIP)
        at = len(raw) if found < 0 else max(at, begin + 1) + found
    return np.frombuffer(out, np.uint8), problem


def _inflate_member(
    raw: memoryview[Any], at: int, out: bytearray, limit: int | None
) -> tuple[int, str | None]:
    """Append one gzip member to `out`; where it ends or breaks, and what is wrong with it."""
    inflater = zlib.decompressobj(wbits=31)
    while at < len(raw) and (limit is None or len(out) < limit):
        chunk = raw[at : at + 65536]
        before = inflater.copy()
        try:
            out += inflater.decompress(chunk)
        except zlib.error:
            # The failed call took its output with it; byte by byte all that is sound comes out.
            for offset in range(len(chunk)):
                try:
                    out += before.decompress(chunk[offset : offset + 1])
                except zlib.error as error:
                    return at + offset, str(error).rpartition(": ")[2]
            raise AssertionError("a stream that broke as a whole did not break in parts") from None
        at += len(chunk)
        if inflater.eof:
            return at - len(inflater.unused_data), None
    return at, None if limit is not None else "it breaks off before its end"
