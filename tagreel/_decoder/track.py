"""A track of a file: when it begins, how far it goes, and its frames in order.

Each is read by a demuxer of its own. However a file interleaves its tracks, and wherever one of them ends, a
few frames of each are held and no more. Times are exact fractions of a second.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from tagreel._decoder.container import declared_length, open_file
from tagreel._decoder.pipe import Pipe
from tagreel._decoder.refusal import LimitError, RefusedError, clock
from tagreel._decoder.stamps import Splices, Stamps

if TYPE_CHECKING:
    from av.packet import Packet

# AVFMT_TS_DISCONT: such a file may be cut together from parts with a clock each.
SPLICED = 0x200
NOUNS = {"video": "pictures", "audio": "sound"}
HALF = Fraction(1, 2)
# A file that goes on for more than this times its declared length and a minute has a broken clock.
TOO_LONG = 2


class File(NamedTuple):
    """What all tracks of a file share: its limits, the length its header claims, the tracks' indices."""

    source: str | Pipe
    limits: dict[str, Any]
    declared: Fraction | None
    indices: list[int]


class Span(NamedTuple):
    """A frame, None where it is not decoded, and when it begins by the file's own time stamps."""

    begin: Fraction
    frame: Any


class Track:
    """When a track begins and how far it goes.

    Its first frame is decoded: what comes before a first key frame is not shown. After that its packets tell.
    """

    decodes = False

    def __init__(self, file: File, index: int, request: dict[str, Any] | None) -> None:
        from av.stream import Discard

        self.file, self.limits = file, file.limits
        self.container, _ = open_file(file.source)
        self.reader = file.source.readers[-1] if isinstance(file.source, Pipe) else None
        self.stream: Any = self.container.streams[index]
        self.noun = NOUNS[self.stream.type]
        # In a spliced file each track learns from the other one's time stamps; else it reads alone.
        spliced = bool(self.container.format.flags & SPLICED)
        self.reads = [self.container.streams[i] for i in file.indices] if spliced else [self.stream]
        self.splices = Splices() if spliced else None
        for stream in self.container.streams:
            if stream not in self.reads:
                stream.discard = Discard.all
        self.stamps = Stamps()
        # The last of the packets in the order in which they are shown, and when the last frame ends.
        self.last: tuple[int, Packet[Any]] | None = None
        self.due = Fraction(0)
        self.longest = 0
        # The file's own time stamp of its second 0, once it is known.
        self.zero, self.started = Fraction(0), False
        self.packets = self.damaged = 0
        self.broken: str | None = None
        self.declared = declared_length(self.stream, file.declared)
        self._spans = self._read() if self._prepare() else iter(())
        self.next = next(self._spans, None)
        if self.decodes and self.next is None and self.packets:
            raise RefusedError(
                f"is damaged: none of its {self.packets:,} packets of {self.noun} can be decoded"
            )
        self.begin = self.next.begin if self.next else Fraction(0)

    def _prepare(self) -> bool:
        """Make the decoder ready; whether there is one."""
        context = self.stream.codec_context
        if context is None:
            if self.decodes:
                raise RefusedError(f"has {self.noun} in a codec that this build of FFmpeg cannot decode")
            return False
        context.thread_type = "AUTO"
        # One more than there are cores, as FFmpeg does by itself: one waits while another one begins.
        context.thread_count = min(self.limits["threads"], (os.cpu_count() or 1) + 1)
        if self.stream.type == "video":
            if self.decodes and context.width * context.height > self.limits["pixels"]:
                raise LimitError("pixels", f"its pictures are {context.width} × {context.height}")
            context.options = {"max_pixels": str(self.limits["pixels"])}
        return True

    def reaches(self, moment: Fraction) -> bool:
        """Read on to a moment of the clock; whether the track goes so far."""
        moment += self.zero
        while self.next is not None and self.next.begin <= moment:
            self.step()
        return self.next is not None or self.end >= moment

    def step(self) -> None:
        """Take the next frame."""
        assert self.next is not None
        self.take(self.next)
        self.next = next(self._spans, None)

    def take(self, span: Span) -> None:
        """Use a frame; here nobody does."""

    def _read(self) -> Iterator[Span]:
        unit = self.stream.time_base
        first = last = None
        for packet in chain(self._demux(), [None]):
            if packet is not None and first is not None and not self.decodes:
                if packet.pts is not None:
                    yield Span(packet.pts * unit, None)
                continue
            for frame in self._decode(packet):
                stamp = self.stamps.of(frame)
                begin = stamp * unit if stamp is not None else self.due
                if last is not None and begin < last:
                    self.damaged += 1  # too late: a player drops it
                    continue
                first, last = begin if first is None else first, begin
                self._check_time(begin - first)
                self.due = begin + (frame.duration * unit if frame.duration else self._usual_length())
                yield Span(begin, frame)

    def _check_time(self, time: Fraction) -> None:
        """Before hours are filled with one picture."""
        if time > self.limits["duration"]:
            raise LimitError("duration", f"its time stamps go to {clock(time)}")
        declared = self.file.declared
        if declared is not None and time > TOO_LONG * (declared + 60):
            raise RefusedError(
                f"is damaged: its time stamps go to {clock(time)}, its header says {clock(declared)}"
            )

    def _demux(self) -> Iterator[Packet[Any]]:
        """The packets of this track, all of one clock."""
        from av.error import FFmpegError

        try:
            for packet in self.container.demux(self.reads):
                if self.splices is not None:
                    self.splices.mend(packet)
                if packet.stream is not self.stream or not packet.size:
                    continue
                stamp = packet.dts if packet.pts is None else packet.pts
                if stamp is not None and not packet.is_discard and (not self.last or stamp >= self.last[0]):
                    self.last = stamp, packet
                    self.longest = max(self.longest, packet.duration or 0)
                yield packet
        except MemoryError:
            raise
        except FFmpegError as error:
            self.broken = error.strerror
            self.damaged += 1

    def _decode(self, packet: Packet[Any] | None) -> list[Any]:
        """The frames that a packet completes; with None those that the decoder still holds."""
        from av.error import FFmpegError

        self.packets += packet is not None
        frames: list[Any] = []
        damaged = packet is not None and packet.is_corrupt
        try:
            frames = self.stream.decode(packet)
        except MemoryError:
            raise
        except FFmpegError:
            damaged = packet is not None
        # What is left of a group of pictures whose beginning was cut off is no damage.
        if self.stamps.seen:
            self.damaged += damaged or any(frame.is_corrupt for frame in frames)
        return frames

    @property
    def end(self) -> Fraction:
        """When the track ends, as far as it is read, by the file's own time stamps.

        The packets tell, whether they are decoded or not: so it is the same whatever is asked for.
        """
        if self.last is None:
            return self.due
        (stamp, packet), unit = self.last, self.stream.time_base
        length = packet.duration * unit if packet.duration else self._usual_length()
        if self.stream.type == "audio" and packet.has_sidedata("skip_samples"):
            # What the encoder added to fill the packet is not heard; some lengths leave it out already.
            _, added = struct.unpack_from("<II", bytes(packet.get_sidedata("skip_samples")))
            length = min(length, self.longest * unit - Fraction(added, self.stream.codec_context.sample_rate))
        return Fraction(stamp * unit + length)

    def _usual_length(self) -> Fraction:
        """How long a frame is that does not say so itself."""
        if self.stream.type == "audio":
            context = self.stream.codec_context
            return Fraction(context.frame_size or 0, context.sample_rate or 1)
        rate = self.stream.average_rate or self.stream.guessed_rate
        return 1 / rate if rate else Fraction(0)
