"""Files of weights, and the hash that says whether two are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from tagreel.errors import DataError


def read(path: str) -> bytes:
    """A file as a whole; raises `DataError` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path=path) from error


def hash_of_files(*contents: bytes) -> str:
    """SHA-256 of files one after the other, in hex; of one file, what `sha256sum` prints."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and numbers, in hex, in whatever files they lay."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
