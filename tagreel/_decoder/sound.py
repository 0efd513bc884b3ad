"""The sound of a track, a window a second."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tagreel._decoder.track import File, Span, Track

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler
    from av.filter import Graph

# Sound goes on where it ended unless its time stamp is further off: containers round to milliseconds.
JITTER = Fraction(1, 50)


class Sound(Track):
    """Windows of mono sound, resampled; zeros where there is none.

    A time stamp places the first of a run of frames that follow each other; from there samples are counted.
    """

    decodes = True

    def __init__(self, file: File, index: int, request: dict[str, Any]) -> None:
        self.rate, self.count = request["rate"], request["samples"]
        # The samples from number `first` on, 4 bytes each.
        self.samples, self.first = bytearray(), self._window(0)
        self.run: AudioResampler | None = None
        self.mixer: Graph | None = None
        self.run_format: tuple[str, str, int] | None = None
        self.run_due, self.at = Fraction(0), 0
        super().__init__(file, index, request)

    def second(self, second: int) -> tuple[dict[str, Any], bytearray]:
        """The window around the middle of a second."""
        begin = self._window(second)
        if begin > self.first:
            del self.samples[: 4 * (begin - self.first)]
            self.first = begin
        end = begin + self.count
        while self.next is not None and self._reach() < end:
            if self._breaks(self.next):
                self._finish()
                if (self.next.begin - self.zero) * self.rate >= end:
                    break
            self.step()
        if self.next is None:
            self._finish()
        window = self.samples[: 4 * self.count]
        return {"sound": True}, window + bytes(4 * self.count - len(window))

    def take(self, span: Span) -> None:
        """Resample a frame to its place."""
        from av.audio.resampler import AudioResampler

        frame = span.frame
        if self.run is None or self._breaks(span):
            self._finish()
            # Integers: mixed down to floats, two equal channels would come out 3 dB louder than one.
            self.run = AudioResampler(format="s32", layout="mono", rate=self.rate)
            self.mixer = mixer(frame)
            self.run_format, self.run_due = _format(frame), span.begin
            self.at = round((span.begin - self.zero) * self.rate)
        self.run_due += Fraction(frame.samples, frame.sample_rate)
        if self.mixer is not None:
            self.mixer.push(frame)
            frame = self.mixer.pull()
        self._put(self.run.resample(frame))

    def _breaks(self, span: Span) -> bool:
        """Whether a frame does not go on where the last one ended, in its place or in its format."""
        return abs(span.begin - self.run_due) > JITTER or _format(span.frame) != self.run_format

    def _finish(self) -> None:
        """Have out what the resampler holds."""
        if self.run is not None:
            self._put(self.run.resample(None))
            self.run = None

    def _put(self, frames: list[Any]) -> None:
        for frame in frames:
            if frame is None:  # what a resampler with nothing to do gives at its end
                continue
            # Behind a gap, zeros; of what comes twice, the first.
            missing = self.at - self._reach()
            self.samples += bytes(4 * max(missing, 0))
            self.samples += memoryview(frame.planes[0])[4 * max(-missing, 0) : 4 * frame.samples]
            self.at += frame.samples

    def _window(self, second: int) -> int:
        """The number of the first sample of a second's window."""
        begin: int = (2 * second + 1) * self.rate // 2 - self.count // 2
        return begin

    def _reach(self) -> int:
        return self.first + len(self.samples) // 4


def mixer(frame: AudioFrame) -> Graph | None:
    """The mean of channels that nobody gave a place, for which FFmpeg knows no mix; None for others."""
    channels = frame.layout.nb_channels
    if frame.layout.name != f"{channels} channels" or channels <= 2:
        return None
    from av.filter import Graph

    graph = Graph()
    mean = "+".join(f"{1 / channels}*c{channel}" for channel in range(channels))
    source = graph.add(
        "abuffer",
        sample_rate=str(frame.sample_rate),
        sample_fmt=frame.format.name,
        channel_layout=frame.layout.name,
    )
    graph.link_nodes(source, graph.add("pan", f"mono|c0={mean}"), graph.add("abuffersink")).configure()
    return graph


def _format(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate
