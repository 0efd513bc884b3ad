"""The pictures of a track, one a second."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, Any

from tagreel._decoder.refusal import LimitError, RefusedError
from tagreel._decoder.track import HALF, File, Span, Track

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

# Packets that are read ahead at most, where their time stamps do not say what is to be seen.
HELD = 1000


class Pictures(Track):
    """The picture on screen at a moment, scaled; the first one before it, the last one after it."""

    decodes = True

    def __init__(self, file: File, index: int, request: dict[str, Any]) -> None:
        from av.video.reformatter import VideoReformatter

        self.shown: Span | None = None
        self.scaled: tuple[Span, dict[str, Any], bytes] | None = None
        self.reformatter = VideoReformatter()
        self.resize, self.crop = request["resize"], request["crop"]
        self.shape: list[int] | None = None
        super().__init__(file, index, request)

    def take(self, span: Span) -> None:
        """Hold the frame that is shown."""
        self.shown = span

    def _demux(self) -> Iterator[Packet[Any]]:
        """The packets; of those that nobody will see the decoder need not decode what nothing refers to.

        Seen is the last packet up to the middle of a second. Which one that is shows when a packet is to be
        decoded after that moment. H.264 marks its pictures so that all others stay the same to the bit.
        """
        context = self.stream.codec_context
        if context.name != "h264":
            yield from super()._demux()
            return
        ahead: deque[tuple[int | None, Packet[Any]]] = deque()
        last: dict[int, int] = {}
        for packet in chain(super()._demux(), [None]):
            decoded = None
            if packet is not None:
                second, decoded = self._second(packet.pts), self._second(packet.dts)
                ahead.append((second, packet))
                if second is not None and packet.pts is not None and not packet.is_discard:
                    last[second] = max(last.get(second, packet.pts), packet.pts)
                    if len(last) > HELD:
                        del last[next(iter(last))]
            while ahead:
                second, first = ahead[0]
                seen = second is None or first.pts == last.get(second, first.pts) or self.stamps.faulty_pts
                if second is not None and packet is not None and (decoded is None or decoded <= second):
                    if len(ahead) < HELD:
                        break
                    seen = True
                ahead.popleft()
                context.skip_frame = "DEFAULT" if seen else "NONREF"
                yield first

    def _second(self, stamp: int | None) -> int | None:
        """The second in whose middle a time stamp is past or just on; None where that is not known."""
        if stamp is None or not self.started:
            return None
        # ceil(stamp · unit - middle), in integers: this is asked twice a packet.
        unit, middle = self.stream.time_base, self.zero + HALF
        over = stamp * unit.numerator * middle.denominator - middle.numerator * unit.denominator
        second: int = -(-over // (unit.denominator * middle.denominator))
        return second

    def second(self, second: int) -> tuple[dict[str, Any], bytes]:
        """The picture in the middle of a second: what announces it, and its bytes."""
        self.reaches(second + HALF)
        span = self.shown or self.next
        assert span is not None
        if self.scaled is None or self.scaled[0] is not span:
            header, data = self._scale(span.frame)
            self.scaled = (span, {"time": float(span.begin - self.zero), **header}, data)
        return self.scaled[1:]

    def _scale(self, frame: VideoFrame) -> tuple[dict[str, Any], bytes]:
        from av.video.reformatter import Interpolation

        turn = orientation(frame)
        height, width = self._size(frame, transposed=turn[0])
        if turn[0]:
            height, width = width, height
        if height * width > self.limits["pixels"]:
            raise LimitError("pixels", f"its pictures would be {width} × {height}")
        try:
            scaled = self.reformatter.reformat(
                frame, width, height, "rgb24", interpolation=Interpolation.BICUBIC, threads=1
            )
        except (ValueError, NotImplementedError) as error:
            raise RefusedError(f"has pictures that cannot be converted from {frame.format.name}") from error
        plane = scaled.planes[0]
        rows, row = memoryview(plane), plane.line_size
        data = b"".join(rows[at : at + 3 * width] for at in range(0, height * row, row))
        return {"picture": [height, width], "turn": turn}, data

    def _size(self, frame: VideoFrame, *, transposed: bool) -> list[int]:
        """Height and width of the picture as it is displayed, scaled."""
        if not isinstance(self.resize, int):
            return list(self.resize)
        if self.shape is not None and not self.crop:
            return self.shape  # of the first picture, so that all have one shape
        height, width = Fraction(frame.height), frame.width * (self.stream.sample_aspect_ratio or Fraction(1))
        if transposed:
            height, width = width, height
        scale = self.resize / min(height, width)
        self.shape = [round(height * scale), round(width * scale)]
        return self.shape


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """How a picture is displayed: transposed, then turned upside down, then mirrored."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # side data that PyAV has no name for stand beside it
        quarters = round(frame.rotation / 90) % 4
        return quarters % 2 == 1, quarters in (1, 2), quarters in (2, 3)
    if matrix is None:
        return False, False, False
    # x' = a·x + c·y and y' = b·x + d·y, y downwards.
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0
