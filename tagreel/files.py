"""Files that are there whole or not at all: written under another name, flushed to disk, and renamed.

So a process may be killed, and the power fail, at any moment. Numbers lie in safetensors with a checksum of
ours, everything else in JSON: no file of tagreel holds code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tagreel.errors import DataError
from tagreel.storage import decode


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which becomes `path` at the end; nothing is left where that fails."""
    temporary = path.with_name(path.name + ".partial")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes; the folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write JSON."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; raises `DataError` when the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=str(path)) from error
    except ValueError as error:
        raise DataError(f"is not JSON: {error}", path=str(path)) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file with a checksum in its metadata."""
    # Copies: safetensors refuses tensors that share memory.
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    with written_whole(path) as temporary:
        try:
            safetensors.torch.save_file(plain, temporary, metadata={"crc32c": _checksum(plain)})
        except SafetensorError as error:  # a full disk, for one
            raise DataError(f"cannot be written: {error}", path=str(path)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises `DataError` when it is missing or damaged.

    The format knows no checksum, so ours lies in its metadata. Tensors stored in 8 bits come out in float32.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get("crc32c")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot be read as safetensors: {error}", path=str(path)) from error
    if expected is not None and (found := _checksum(tensors)) != expected:
        raise DataError(f"is damaged: its checksum is {found}, expected {expected}", path=str(path))
    return decode(tensors, path=str(path))


def flush(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    crc = 0
    for name in sorted(tensors):
        flat = tensors[name].contiguous().reshape(-1)
        crc = google_crc32c.extend(google_crc32c.extend(crc, name.encode()), flat.view(torch.uint8).numpy())
    return f"{crc:08x}"
