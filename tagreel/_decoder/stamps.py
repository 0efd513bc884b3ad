"""Time stamps that cannot be taken as they are."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.packet import Packet

# Outside of these bounds a time stamp is of another clock: FFmpeg's own, for formats that are spliced.
BACK, AHEAD = Fraction(1, 10), 10


class Stamps:
    """Which of a frame's two time stamps to believe, as libavcodec's `best_effort_timestamp`.

    PyAV does not pass that on. The one that went back less often is right; None where there is neither.
    """

    def __init__(self) -> None:
        self.seen = self.faulty_pts = self.faulty_dts = 0
        self.last_pts = self.last_dts = -math.inf

    def of(self, frame: Any) -> int | None:
        """The time stamp of the next frame, in its track's unit."""
        pts, dts = frame.pts, frame.dts
        self.seen += 1
        if dts is not None:
            self.faulty_dts += dts <= self.last_dts
            self.last_dts = dts
        elif pts is not None:
            self.last_dts = pts
        if pts is not None:
            self.faulty_pts += pts <= self.last_pts
            self.last_pts = pts
        elif dts is not None:
            self.last_pts = dts
        believed: int | None = pts
        if pts is None or (dts is not None and self.faulty_pts > self.faulty_dts):
            believed = dts
        return believed


class Splices:
    """Puts the parts of a spliced file one after the other, on the clock of the first.

    A track goes on where it ended; the other one then takes the same shift, so that they stay together.
    """

    def __init__(self) -> None:
        self.shift = Fraction(0)
        self.shifts: dict[int, Fraction] = {}
        self.due: dict[int, Fraction] = {}
        self.stamps: dict[int, Fraction] = {}

    def mend(self, packet: Packet[Any]) -> None:
        """Shift a packet's time stamps where a splice went before it."""
        if packet.dts is None:
            return
        unit, track = packet.time_base, packet.stream_index
        stamp = packet.dts * unit
        shift, due = self.shifts.get(track, Fraction(0)), self.due.get(track, stamp)
        if not -BACK <= stamp + shift - due <= AHEAD:
            if abs(stamp + self.shift - due) > 1:
                self.shift = due - stamp
            shift = self.shifts[track] = self.shift
        # Some packets do not say how long they are; they are as long as the one before.
        length = packet.duration * unit if packet.duration else stamp - self.stamps.get(track, stamp)
        self.due[track], self.stamps[track] = stamp + shift + length, stamp
        if shift:
            packet.dts += round(shift / unit)
            if packet.pts is not None:
                packet.pts += round(shift / unit)
