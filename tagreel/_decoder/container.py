"""A file opened: which formats are, how long the header says that it is, which of its tracks are played."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tagreel._decoder.pipe import Pipe
from tagreel._decoder.refusal import RefusedError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream

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
# AVFMT_FLAG_GENPTS, which PyAV sets: its guess at missing time stamps is wrong for H.264 in AVI.
GENERATE_TIMES = 0x1


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


def declared_length(stream: Any, whole: Fraction | None) -> Fraction | None:
    """How long the header says that a track is, where it says that of the whole file."""
    if whole is None:
        return None
    if stream.container.format.name == "avi" and stream.type == "video" and stream.frames:
        return Fraction(stream.frames / stream.average_rate)  # FFmpeg shortens the rest to what is there
    return Fraction(stream.duration * stream.time_base) if stream.duration else None
