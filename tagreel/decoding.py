"""A video or sound file to its pictures and its sound, second by second, on one clock.

Files come from strangers and decoders have bugs, so each file is decoded in a child process of its own
(`_decoder/`), without network, in bounded time and memory. What happens to it there is at worst one
`DataError` here.

Second t is [t, t + 1) of the time that a player shows: 0 is where the first picture or sound of the file
begins. Its picture is the one on screen at t + 0.5, its sound a window around t + 0.5. A file has
N = max(1, duration rounded, halves up) seconds, where the longer of its two tracks counts, whether it is
asked for or not: what is made of one track fits what is made of the other.

- Pictures are as displayed: turned and mirrored as the file says, pixels that are not square stretched.
  Before its first picture a track shows that one, after its last one that. Colours are converted to RGB by
  the file's matrix and range (BT.601 where it names none, as FFmpeg does); HDR is converted plainly, without
  tone mapping; transparency is ignored, interlaced pictures stay woven.
- Sound is mixed down to mono and resampled by FFmpeg. Time stamps place it, to a sample and for hours: gaps
  are filled with zeros, and of what overlaps the first counts. Time stamps that are off by up to 20 ms are
  taken for rounding.
- Of several tracks the one that FFmpeg would play is taken. A cover in a sound file is no picture track.
- Damage up to a tenth of a track's packets is passed over and counted (`Piece.damaged`). More is an error,
  and so is a file that ends more than 2 s and 5 % before its header says, or before one of its tracks does.
  Live recordings and transport streams do not say; of these what is there is the whole.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tagreel.errors import DataError, RecipeError

SECONDS = 16
STDIN = "-"
# What Python and FFmpeg need before they have read a byte.
LEAST_MEMORY = 256 << 20
_CHILD = Path(__file__).parent / "_decoder" / "__main__.py"


@dataclass(frozen=True)
class Pictures:
    """What is made of a picture: scaled, then the middle of it.

    `resize` is the length of the shorter side in pixels, or the height and width exactly; `crop` the side of
    the square that is cut out of the middle, None for the whole. Of a file whose pictures change their shape,
    all get the first one's.
    """

    resize: int | tuple[int, int] = 256
    crop: int | None = None

    def __post_init__(self) -> None:
        sides = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        if len(sides) not in (1, 2) or min(sides) < 1:
            raise RecipeError(
                f"resize={self.resize}; expected a side or (height, width), at least 1 pixel each"
            )
        if self.crop is not None and not 1 <= self.crop <= min(sides):
            raise RecipeError(
                f"crop={self.crop}; expected 1 to {min(sides)}, what resize={self.resize} leaves"
            )


@dataclass(frozen=True)
class Sound:
    """What is made of sound: `rate` samples a second, a window of `seconds` around each second's middle."""

    rate: int = 16_000
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.rate < 1 or not 1 <= self.samples <= 60 * self.rate:
            raise RecipeError(
                f"rate={self.rate}, seconds={self.seconds}; expected a sample or more, and up to 60 seconds"
            )

    @property
    def samples(self) -> int:
        """Samples in a window."""
        return round(self.rate * self.seconds)


@dataclass(frozen=True)
class Limits:
    """What one file may cost before it is given up.

    `seconds`: the longest wait for the next 16 seconds of it; the child's processor time is bounded likewise.
    `memory`: bytes of address space of the child (macOS does not enforce that). `pixels` of a picture.
    `duration` in seconds. `threads` that decode at the same time, each with pictures of its own.
    """

    seconds: float = 120.0
    memory: int = 4 << 30
    pixels: int = 1 << 26
    duration: float = 24 * 3600.0
    threads: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = LEAST_MEMORY if name == "memory" else 0
            if not value > least:
                raise RecipeError(f"limits.{name} is {value:,}; expected more than {least:,}")


@dataclass(frozen=True)
class Piece:
    """Up to 16 seconds of a file, or as many as were asked for at once, from second `first` on.

    `pictures` are uint8 (n, H, W, 3), RGB; `times` (n,) when each of them came on screen, in seconds from the
    start of the file; `sound` is float32 (n, samples) in [-1, 1]. None stands for a track that the file lacks
    or nobody asked for. `damaged` counts packets that could not be decoded, from the start of the file on.
    """

    first: int
    pictures: NDArray[np.uint8] | None
    times: NDArray[np.float64] | None
    sound: NDArray[np.float32] | None
    damaged: int

    def __len__(self) -> int:
        held = self.sound if self.pictures is None else self.pictures
        assert held is not None
        return len(held)


def decode(
    path: str | os.PathLike[str],
    *,
    pictures: Pictures | None = None,
    sound: Sound | None = None,
    limits: Limits | None = None,
    at_once: int = SECONDS,
) -> Decoding:
    """Start to decode a file; the pieces come from the iterator, in order, of `at_once` seconds each.

    The path "-" is standard input: anything that can be read from front to back, also while it is recorded.
    The child starts at once and works ahead as far as a pipe holds: called for the next file before the last
    one is read, this takes the start out of the way. Raises `DataError` here or on the way for what is
    missing, damaged, cut off or beyond a limit; the pieces before are then not the whole. Raises
    `RecipeError` where PyAV is not installed.
    """
    if pictures is None and sound is None:
        raise RecipeError("neither pictures nor sound asked for; expected one of them or both")
    if importlib.util.find_spec("av") is None:
        raise RecipeError("decoding needs PyAV; install it with pip install 'tagreel[video]'")
    return Decoding(os.fspath(path), pictures, sound, limits or Limits(), at_once)


class Decoding(Iterator[Piece]):
    """The pieces of one file, from its child process. Closing it, or letting go of it, ends the child."""

    def __init__(
        self, path: str, pictures: Pictures | None, sound: Sound | None, limits: Limits, at_once: int
    ) -> None:
        self.path, self.pictures, self.sound, self.limits = path, pictures, sound, limits
        self._at_once = at_once
        self._process: subprocess.Popen[bytes] | None = None
        self._second = 0
        if path != STDIN:
            _check_file(path)
        request = {
            "path": path if path == STDIN else os.path.abspath(path),
            "video": pictures and {"resize": pictures.resize, "crop": pictures.crop},
            "audio": sound and {"rate": sound.rate, "samples": sound.samples},
            "limits": asdict(limits),
        }
        # Not in our process group: an interrupt is ours to handle, and ends the child by our closing.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD), json.dumps(request)],
            stdin=None if path == STDIN else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            process_group=0,
        )
        assert self._process.stdout is not None
        self._pipe = _Pipe(self._process.stdout.fileno())

    def __enter__(self) -> Decoding:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """End the child, if it still runs."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            process.stderr.close()
            process.kill()
            process.wait()

    def __next__(self) -> Piece:
        if self._process is None:
            raise StopIteration
        try:
            piece = self._receive()
        except TimeoutError:
            self.close()
            raise self._beyond("seconds", f"nothing comes after {_clock(self._second)}") from None
        except EOFError:
            raise self._died() from None
        except (TypeError, KeyError, json.JSONDecodeError):
            self.close()
            raise DataError("broke its decoder, which now says what makes no sense", path=self.path) from None
        except BaseException:
            self.close()
            raise
        if piece is None:
            raise StopIteration
        return piece

    def _receive(self) -> Piece | None:
        """The next piece; None at the end."""
        self._pipe.deadline = time.monotonic() + self.limits.seconds
        first, damaged = self._second, 0
        pictures: list[NDArray[np.uint8]] = []
        windows: list[NDArray[np.float32]] = []
        times: list[float] = []
        while self._second < first + self._at_once:
            header: dict[str, Any] = json.loads(self._pipe.line())
            if "refused" in header:
                raise DataError(header["refused"], path=self.path)
            if "limit" in header:
                raise self._beyond(header["limit"], header["found"])
            if "end" in header:
                self.close()
                break
            if "picture" in header:
                pictures.append(self._picture(header))
                times.append(header["time"])
            if "sound" in header:
                windows.append(self._window())
            damaged = header["damaged"]
            self._second += 1
        if self._second == first:
            return None
        return Piece(
            first=first,
            pictures=np.stack(pictures) if pictures else None,
            times=np.array(times) if times else None,
            sound=np.stack(windows) if windows else None,
            damaged=damaged,
        )

    def _picture(self, header: dict[str, Any]) -> NDArray[np.uint8]:
        assert self.pictures is not None
        height, width = header["picture"]
        if not 0 < SECONDS * height * width * 3 <= self.limits.memory:
            raise self._beyond("memory", f"{SECONDS} of its pictures are {width} × {height}")
        picture = np.empty((height, width, 3), np.uint8)
        self._pipe.fill(picture)
        transposed, upside_down, mirrored = header["turn"]
        if transposed:
            picture = picture.transpose(1, 0, 2)
        if upside_down:
            picture = picture[::-1]
        if mirrored:
            picture = picture[:, ::-1]
        if (crop := self.pictures.crop) is not None:
            top, left = (picture.shape[0] - crop) // 2, (picture.shape[1] - crop) // 2
            picture = picture[top : top + crop, left : left + crop]
        return picture

    def _window(self) -> NDArray[np.float32]:
        assert self.sound is not None
        samples = np.empty(self.sound.samples, np.int32)
        self._pipe.fill(samples)
        return (samples * 2.0**-31).astype(np.float32)

    def _died(self) -> DataError:
        """Why the child ended without a last word."""
        process = self._process
        assert process is not None
        assert process.stderr is not None
        try:
            code = process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        os.set_blocking(process.stderr.fileno(), False)
        words = (process.stderr.read() or b"").decode(errors="replace").split("\n")
        self.close()
        if code == -signal.SIGXCPU:
            return self._beyond("seconds", f"it takes more processor time after {_clock(self._second)}")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        last = next((f", {line.strip()}" for line in reversed(words) if line.strip()), "")
        return DataError(
            f"broke its decoder after {_clock(self._second)} ({how}{last}): it is damaged, or decoding takes "
            f"more memory than the machine has or limits.memory={self.limits.memory:,} allows",
            path=self.path,
        )

    def _beyond(self, limit: str, found: str) -> DataError:
        value = getattr(self.limits, limit)
        return DataError(
            f"is beyond limits.{limit}={value:,}: {found}; raise the limit if you trust the file",
            path=self.path,
        )


class _Pipe:
    """The reading end of a pipe: lines, and bytes straight into an array, by a deadline."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.deadline = descriptor, 0.0
        self._ahead = b""
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN | select.POLLHUP)

    def line(self) -> bytes:
        """The next line; raises `TimeoutError` or `EOFError` where it does not come."""
        while b"\n" not in self._ahead:
            self._wait()
            if not (more := os.read(self.descriptor, 1 << 16)):
                raise EOFError
            self._ahead += more
        line, _, self._ahead = self._ahead.partition(b"\n")
        return line

    def fill(self, array: NDArray[Any]) -> None:
        """Fill an array with the next bytes; raises as `line` does."""
        view = array.data.cast("B")
        count = min(len(view), len(self._ahead))
        view[:count] = self._ahead[:count]
        self._ahead = self._ahead[count:]
        while count < len(view):
            self._wait()
            if not (more := os.readv(self.descriptor, [view[count:]])):
                raise EOFError
            count += more

    def _wait(self) -> None:
        rest = self.deadline - time.monotonic()
        if rest <= 0 or not self._poll.poll(rest * 1000):
            raise TimeoutError


def _check_file(path: str) -> None:
    """Refuse early what is no file to read: a pipe would be waited for."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise DataError("is no ordinary file", path=path)
        if not found.st_size:
            raise DataError("is empty", path=path)
        open(path, "rb").close()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from error


def _clock(seconds: int) -> str:
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
