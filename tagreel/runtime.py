"""Device, seeds and threads."""

from __future__ import annotations

import hashlib
import os

import torch

from tagreel.errors import RecipeError


def started_together() -> bool:
    """Whether torchrun, or whoever speaks as it does, has started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Of several processes on a machine each takes a GPU of its own.
    """
    if started_together():
        return _own_device(name)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _own_device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise RecipeError(
            f"device {name!r}: several processes share out the GPUs; expected auto, cpu or cuda"
        )
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    index, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= there:
        raise RecipeError(
            f"device {name!r}: this is process {index + 1:,} of its machine, which has {there:,} GPUs; start "
            "one for each (--nproc-per-node), or take --device cpu"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def seed_everything(seed: int, *position: int) -> None:
    """Make what torch draws next depend on the seed and a position (a step, a rank) alone.

    Called before every step, so that a resumed run draws the same dropout as one that was never stopped,
    with no generator state to save.
    """
    text = ",".join(map(str, (seed, *position)))
    torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1)
