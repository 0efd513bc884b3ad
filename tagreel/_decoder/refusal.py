"""Why a file is not decoded."""

from __future__ import annotations

from fractions import Fraction


class RefusedError(Exception):
    """The file cannot be decoded, for a reason in words."""


class LimitError(Exception):
    """The file needs more than a limit allows: its name, and what was found."""


def clock(seconds: Fraction | float) -> str:
    """12 as 0:00:12."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
