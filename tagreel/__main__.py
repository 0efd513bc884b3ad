"""`python -m tagreel` and the `tagreel` command."""

from __future__ import annotations

import ctypes
import os
import sys

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # of glibc's mallopt
_COMPUTE = ("train", "pretrain", "reproduce", "evaluate", "predict", "remember")


def main() -> None:
    """Run the command line; what a user can mend is one line and exit code 2."""
    # Threads that spin while they wait are very slow where cores are shared; it must be set before torch
    # starts its threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.argv[1:2] and sys.argv[1] in _COMPUTE:
        keep_freed_memory()
    from tagreel.cli import run

    sys.exit(run(sys.argv[1:]))


def keep_freed_memory() -> None:
    """Let glibc keep what was freed for the next tensor instead of giving it back to the system.

    A step frees and takes hundreds of megabytes, which the system hands out page by page, each zeroed: that
    took a fifth of a step of NeXtVLAD and half of a large weight's gradient.
    """
    if sys.platform == "linux" and callable(mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


if __name__ == "__main__":
    main()
