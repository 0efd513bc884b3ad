"""The program of the child process in which `tagreel.decoding` decodes one file: PyAV, nothing of tagreel.

    python -P _decoder.py REQUEST

REQUEST is the JSON that `decoding.decode` makes. On standard output come, for every second in turn, a line of
JSON and the bytes that it announces: a picture (height × width × 3, before it is turned and cropped) and a
window of sound (32-bit integers). The last line says how it ended.

Each track is read by a demuxer of its own. However a file interleaves its tracks, and wherever one of them
ends, a few frames of each are held and no more. Times are exact fractions of a second.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler
    from av.container import InputContainer
    from av.filter import Graph
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame

# Containers of film and sound, and raw streams of one codec. Left out: what names other files or addresses
# (playlists, manifests, concat, image sequences), devices, and formats of text and of still pictures.
FORMATS = (
    "3dostr,3g2,3gp,4xm,aa,aac,aax,ac3,ac4,aea,aiff,amr,amrnb,amrwb,apc,ape,apng,aptx,asf,au,av1,avi,avr,avs,"
    "avs2,avs3,bfi,bink,binka,caf,cavsvideo,cdxl,daud,dfa,dirac,dnxhd,dsf,dss,dts,dtshd,dv,ea,eac3,evc,"
    "film_cpk,flac,flic,flv,gif,gsm,gxf,h261,h263,h264,hevc,iff,ilbc,ircam,ivf,jv,kux,live_flv,loas,lvf,lxf,"
    "m4a,m4v,matroska,mj2,mjpeg,mlp,mm,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,mpegvideo,mpjpeg,mtv,mv,mxf,mxg,nsv,"
    "nut,nuv,obu,ogg,oma,osq,paf,pva,pvf,qcp,qoa,r3d,rl2,rm,roq,rpl,sbc,shn,smjpeg,smk,sol,sox,spdif,swf,tak,"
    "tiertexseq,tmv,truehd,tta,ty,vc1,vc1test,vivo,vmd,voc,vqf,vvc,w64,wav,wc3movie,webm,webp_anim,wsaud,"
    "wsvqa,wtv,wv,xa,xmv,xwma,yop,yuv4mpegpipe"
)
# Their demuxers measure the length on the packets that are there, so it says nothing of missing ones.
MEASURED = {"mpeg", "mpegts", "wtv"}
# AVFMT_TS_DISCONT: such a file may be cut together from parts with a clock each.
SPLICED = 0x200
# AVFMT_FLAG_GENPTS, which PyAV sets: its guess at missing time stamps is wrong for H.264 in AVI.
GENERATE_TIMES = 0x1
NOUNS = {"video": "pictures", "audio": "sound"}

HALF = Fraction(1, 2)
# Sound goes on where it ended unless its time stamp is further off: containers round to milliseconds.
JITTER = Fraction(1, 50)
# Outside of these bounds a time stamp is of another clock: FFmpeg's own, for formats that are spliced.
BACK, AHEAD = Fraction(1, 10), 10
# A file that lacks more than both is cut: headers round, and tracks end apart.
MISSING, MISSING_SECONDS = Fraction(1, 20), 2
# A file that goes on for more than this times its declared length and a minute has a broken clock.
TOO_LONG = 2
# Packets that are read ahead at most, where their time stamps do not say what is to be seen.
HELD = 1000
# A larger share of damaged packets is no blemish any more.
DAMAGED = Fraction(1, 10)


class RefusedError(Exception):
    """The file cannot be decoded, for a reason in words."""


class LimitError(Exception):
    """The file needs more than a limit allows: its name, and what was found."""


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


def clock(seconds: Fraction | float) -> str:
    """12 as 0:00:12."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class Pipe:
    """Bytes that come once, for several demuxers that each read them from the beginning.

    Once all have begun, and those that read on are known (`keep`), what all of these have read is forgotten.
    """

    def __init__(self, raw: Any) -> None:
        self.raw, self.held, self.first = raw, bytearray(), 0
        self.readers: list[Reader] = []
        self.is_kept = False

    def open(self) -> Reader:
        """What another demuxer reads."""
        self.readers.append(Reader(self))
        return self.readers[-1]

    def keep(self, readers: list[Reader]) -> None:
        """From now on only these read."""
        self.readers, self.is_kept = readers, True

    def read(self, start: int, size: int) -> bytes:
        """Some bytes from `start` on; none at the end."""
        if start == self.first + len(self.held):
            self.held += self.raw.read(size)
        found = bytes(self.held[start - self.first : start - self.first + size])
        if self.is_kept:
            least = min(reader.at for reader in self.readers)
            del self.held[: least - self.first]
            self.first = least
        return found


class Reader:
    """A file of which one cannot seek, as a demuxer reads it."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe, self.at = pipe, 0

    def read(self, size: int) -> bytes:
        """The next bytes."""
        found = self.pipe.read(self.at, size)
        self.at += len(found)
        return found


def open_file(source: str | Pipe) -> tuple[InputContainer, Fraction | None]:
    """A demuxer of the file, and how long its header says that it is; None where that is a guess."""
    import av

    av.logging.set_level(av.logging.WARNING)
    with av.logging.Capture() as said:
        try:
            container = av.open(
                f"file:{source}" if isinstance(source, str) else source.open(),
                "r",
                container_options={"protocol_whitelist": "file", "format_whitelist": FORMATS},
                metadata_errors="replace",
            )
        except MemoryError:
            raise
        except (av.error.FFmpegError, ValueError) as error:
            if any("whitelist" in line for _, _, line in said):
                reason = "is no container of film or sound; lists of files and still pictures are not read"
            elif isinstance(error, av.error.InvalidDataError):
                reason = "is no film or sound that FFmpeg knows, or its header is damaged or cut off"
            else:
                reason = f"cannot be opened: {getattr(error, 'strerror', None) or error}"
            raise RefusedError(reason) from error
    av.logging.set_level(None)
    container.flags &= ~GENERATE_TIMES
    guessed = any("Estimating duration" in line for _, _, line in said)
    if container.duration is None or guessed or container.format.name in MEASURED:
        return container, None
    return container, Fraction(container.duration, 1_000_000)


def best(container: InputContainer, kind: Any) -> Stream | None:
    """The track that FFmpeg would play; the cover of an album is no film."""
    from av.stream import Disposition

    def is_cover(stream: Stream) -> bool:
        return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))

    found = container.streams.best(kind)
    if found is None or not is_cover(found):
        return found
    return next((stream for stream in container.streams.video if not is_cover(stream)), None)


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


def declared_length(stream: Any, whole: Fraction | None) -> Fraction | None:
    """How long the header says that a track is, where it says that of the whole file."""
    if whole is None:
        return None
    if stream.container.format.name == "avi" and stream.type == "video" and stream.frames:
        return Fraction(stream.frames / stream.average_rate)  # FFmpeg shortens the rest to what is there
    return Fraction(stream.duration * stream.time_base) if stream.duration else None


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


if __name__ == "__main__":
    main()
