"""Device, seeds and threads."""

from __future__ import annotations

import hashlib

import torch

from tagreel.errors import RecipeError


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, then Apple's MPS, then the CPU."""
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


def seed_everything(seed: int, *position: int) -> None:
    """Make what torch draws next depend on the seed and a position (a step, a rank) alone.

    Called before every step, so that a resumed run draws the same dropout as one that was never stopped,
    with no generator state to save.
    """
    text = ",".join(map(str, (seed, *position)))
    torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1)
