"""What the child process does: confines itself, decodes one file, and says how it ended.

On standard output come, for every second in turn, a line of JSON and the bytes that it announces: a picture
(height × width × 3, before it is turned and cropped) and a window of sound (32-bit integers). The last line
says how it ended.
"""

from __future__ import annotations

import json
import math
import os
import sys
from fractions import Fraction
from typing import Any

from tagreel._decoder.container import best, open_file
from tagreel._decoder.pictures import Pictures
from tagreel._decoder.pipe import Pipe
from tagreel._decoder.refusal import LimitError, RefusedError, clock
from tagreel._decoder.sound import Sound
from tagreel._decoder.track import HALF, NOUNS, File, Track

# A file that lacks more than both is cut: headers round, and tracks end apart.
MISSING, MISSING_SECONDS = Fraction(1, 20), 2
# A larger share of damaged packets is no blemish any more.
DAMAGED = Fraction(1, 10)


def main() -> None:
    """Decode the file that the request names, and say on standard output how it ended."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints must not get between the messages
    request = json.loads(sys.argv[1])
    try:
        end: dict[str, Any] = {"end": True}
        try:
            confine(request["limits"]["memory"])
            decode(request, Writer(out, request["limits"]))
        except RefusedError as error:
            end = {"refused": str(error)}
        except LimitError as error:
            end = {"limit": error.args[0], "found": error.args[1]}
        except MemoryError:
            end = {"limit": "memory", "found": "it needs more"}
        except BrokenPipeError:
            raise
        except Exception as error:  # whatever a stranger's file brings about is one line about that file
            end = {"refused": f"cannot be decoded: {type(error).__name__}: {error}"}
        out.write(json.dumps(end).encode() + b"\n")
    except BrokenPipeError:  # nobody reads on
        pass
    os._exit(0)  # at once: a decoder's threads may still run


def confine(memory: int) -> None:
    """Give up what decoding does not need: memory beyond the limit, dumps, writing files, the network."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY or value < hard:
            resource.setrlimit(kind, (value, value))
    try:
        import ctypes

        unshare = ctypes.CDLL(None).unshare
    except (ImportError, OSError, AttributeError):  # not Linux
        return
    new_user, new_network = 0x10000000, 0x40000000
    # An ordinary user may do it in a user namespace only, and on some systems not at all.
    if unshare(new_network) != 0:
        unshare(new_user | new_network)


class Writer:
    """Writes messages, and grants processor time until the next: a parent that is gone can stop nobody."""

    def __init__(self, out: Any, limits: dict[str, Any]) -> None:
        self.out, self.seconds = out, math.ceil(limits["seconds"] * limits["threads"]) + 1
        self._grant()

    def _grant(self) -> None:
        try:
            import resource
        except ImportError:  # Windows
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + self.seconds
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))

    def write(self, header: dict[str, Any], *payload: bytes | bytearray) -> None:
        """Write a line of JSON and the bytes that it announces."""
        for part in (json.dumps(header).encode() + b"\n", *payload):
            rest = memoryview(part)
            while rest:
                rest = rest[self.out.write(rest) :]
        self._grant()


def decode(request: dict[str, Any], writer: Writer) -> None:
    """Write every second of the file; raises `RefusedError` or `LimitError` where there is less to have."""
    limits = request["limits"]
    source = Pipe(os.fdopen(0, "rb", buffering=0)) if request["path"] == "-" else request["path"]
    container, declared = open_file(source)
    if declared is not None and declared > limits["duration"]:
        raise LimitError("duration", f"it is {clock(declared)} long")
    streams = {kind: stream for kind in NOUNS if (stream := best(container, kind)) is not None}
    file = File(source, limits, declared, [stream.index for stream in streams.values()])
    tracks = []
    for kind, stream in streams.items():
        make = (Pictures if kind == "video" else Sound) if request[kind] else Track
        track = make(file, stream.index, request[kind])
        if track.next is not None:
            tracks.append(track)
    wanted = [track for track in tracks if isinstance(track, Pictures | Sound)]
    if not wanted:
        asked = " and no ".join(noun for kind, noun in NOUNS.items() if request[kind])
        raise RefusedError(f"has no {asked}" + "".join(f"; it has {track.noun}" for track in tracks))
    if isinstance(source, Pipe):
        source.keep([track.reader for track in tracks if track.reader is not None])
    zero = min(track.begin for track in tracks)
    for track in tracks:
        track.zero, track.started = zero, True
    second = 0
    while second == 0 or any(track.reaches(second + HALF) for track in tracks):
        if second >= limits["duration"]:
            raise LimitError("duration", f"it goes on after {clock(second)}")
        header: dict[str, Any] = {}
        payload = []
        for track in wanted:
            announced, data = track.second(second)
            header |= announced
            payload.append(data)
        header["damaged"] = sum(track.damaged for track in wanted)
        writer.write(header, *payload)
        second += 1
    check(wanted, max(track.due if track in wanted else track.end for track in tracks), declared)


def check(tracks: list[Pictures | Sound], end: Fraction, declared: Fraction | None) -> None:
    """Refuse what is damaged beyond a blemish, and a part that would pass for the whole."""
    zero = tracks[0].zero
    for track in tracks:
        if track.damaged > DAMAGED * track.packets:
            raise RefusedError(
                f"is damaged: {track.damaged:,} of its {track.packets:,} packets of {track.noun} cannot be "
                "decoded"
            )
    # Some containers count their length from time stamp 0, others from where they begin.
    lengths = [(max(end, end - zero), declared, "its header says")]
    for track in tracks:
        lengths.append((max(track.due, track.due - track.begin), track.declared, "its header says"))
        lengths.append((track.due - zero, track.end - zero, f"but there are packets of {track.noun} for"))
    for found, expected, says in lengths:
        if expected is not None and expected - found > max(Fraction(MISSING_SECONDS), MISSING * expected):
            raise RefusedError(
                f"is cut or damaged: it ends after {float(found):.1f} s, {says} {float(expected):.1f} s; if "
                "this is all there is, 'ffmpeg -i FILE -c copy NEW' writes a header that is true"
            )
    broken = [track.broken for track in tracks if track.broken]
    if broken and declared is None:
        raise RefusedError(f"is damaged: it cannot be read after {float(end - zero):.1f} s ({broken[0]})")
