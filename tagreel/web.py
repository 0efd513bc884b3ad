"""Asking a web server: which answers are final, and which may be another the next time.

Dropped connections, silence, and answers that say "later" are tried again, with pauses that grow.
"""

from __future__ import annotations

import http.client
import random
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from tagreel.errors import DataError

TIMEOUT = 30.0  # seconds of silence, after which a connection counts as dropped
TRIES = 8  # without a byte of progress
PAUSE = 1.0  # seconds before the second try, twice as many before each further one


class Later(Exception):  # noqa: N818
    """It may work the next time, `after` seconds from now at the earliest."""

    def __init__(self, reason: str, *, after: float = 0.0) -> None:
        self.after = after
        super().__init__(reason)


class Patience:
    """Pauses that grow from try to try, and begin anew once there was progress; a limit to it all."""

    def __init__(
        self, name: str, say: Callable[[str], None], wait: Callable[[float], Any] = time.sleep
    ) -> None:
        self._name, self._say, self._wait = name, say, wait
        self._best, self._failures = 0, 0

    def pause(self, problem: Later, *, position: int = 0) -> None:
        """Wait for the next try; raises `DataError` when there have been enough."""
        if position > self._best:
            self._best, self._failures = position, 0
        self._failures += 1
        if self._failures == TRIES:
            raise DataError(f"gave up after {TRIES} tries: {problem}", path=self._name) from problem
        # Some chance, so that files that were refused at once do not all come back at once.
        seconds = max(PAUSE * 2 ** (self._failures - 1) * random.uniform(0.5, 1), problem.after)
        if self._failures > 1:
            self._say(f"{self._name}: {problem}; again in {seconds:.0f}s")
        self._wait(seconds)


def ask(url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Any:
    """A server's answer, of which 416 (no such range) is one; raises `Later` or, for good, `DataError`."""
    headers = {"User-Agent": "tagreel", **(headers or {})}
    try:
        return urllib.request.urlopen(
            urllib.request.Request(url, headers=headers, method=method), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:
            return error
        error.close()
        said = f"the server says {error.code} {error.reason}"
        if error.code in (408, 425, 429) or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            raise Later(said, after=min(float(after), 300) if after.isdecimal() else 0) from error
        raise DataError(said, path=url) from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DataError(f"its certificate is not trusted: {reason.verify_message}", path=url) from error
        raise Later(network(reason)) from error


def network(error: BaseException | str) -> str:
    """What went wrong between here and there."""
    if isinstance(error, TimeoutError):
        return f"nothing came for {TIMEOUT:.0f}s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
