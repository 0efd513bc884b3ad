"""`python -m tagreel` and the `tagreel` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; what a user can mend is one line and exit code 2."""
    # Threads that spin while they wait are very slow where cores are shared; it must be set before torch
    # starts its threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from tagreel.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
