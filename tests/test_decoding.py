"""Files made here with PyAV, each second marked in brightness and in sound; real and odd ones, if there."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tagreel
from tagreel import decoding
from tagreel._decoder import pictures, program, stamps
from tagreel._decoder.pipe import Pipe
from tagreel._decoder.refusal import RefusedError
from tagreel.decoding import Limits, Pictures, Piece, Sound, decode
from tagreel.errors import DataError, RecipeError

av = pytest.importorskip("av", reason="needs PyAV: pip install 'tagreel[video]'")

CLIPS = Path(__file__).parents[2] / "shared" / "data" / "clips"
# The marks of a picture are two digits to this base, left and right, this many levels of brightness apart.
BASE, STEP, DARK = 12, 18, 24
RATE = 8000


def marked(number: int, height: int = 32, width: int = 64) -> NDArray[np.uint8]:
    """A picture of which `marks` reads the number."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:, : width // 2] = DARK + STEP * (number % BASE)
    picture[:, width // 2 :] = DARK + STEP * (number // BASE % BASE)
    return picture


def marks(pictures: NDArray[np.uint8]) -> list[int]:
    width = pictures.shape[2]
    left, right = pictures[:, :, : width // 4].mean((1, 2, 3)), pictures[:, :, -width // 4 :].mean((1, 2, 3))
    low, high = np.rint((left - DARK) / STEP), np.rint((right - DARK) / STEP)
    return [int(number) for number in low + BASE * high]


def counting(seconds: float, rate: int = RATE) -> NDArray[np.int16]:
    """Sound in which no two neighbourhoods are alike."""
    return np.random.default_rng(0).integers(-20000, 20000, round(seconds * rate)).astype(np.int16)


def write(
    path: Path,
    *,
    pictures: Iterable[tuple[float, NDArray[np.uint8]]] | None = None,
    fps: float = 5,
    sound: Sequence[tuple[float, NDArray[np.int16]]] | None = None,
    rate: int = RATE,
    layout: str = "mono",
    codecs: tuple[str, str] = ("libx264", "pcm_s16le"),
    pixels: str = "yuv420p",
    container: dict[str, str] | None = None,
    format: str | None = None,  # noqa: A002
    prepare: Any = None,
    **options: str,
) -> Path:
    """A file of pictures and of pieces of sound, each with the time from which it is shown or heard.

    A picture is shown for 1 / `fps`, or until the next one.
    """
    # MPEG-2 and MPEG-4 know steady rates only.
    unit = Fraction(1, round(fps)) if codecs[0].startswith("mpeg") else Fraction(1, 90_000)
    with av.open(str(path), "w", format=format, container_options=container or {}) as out:
        streams: list[tuple[Any, list[Any]]] = []
        if pictures is not None:
            pictures = list(pictures)
            video: Any = out.add_stream(codecs[0], rate=round(fps), options=options)
            video.height, video.width = pictures[0][1].shape[:2]
            video.pix_fmt = pixels
            video.codec_context.time_base = unit
            if prepare is not None:
                prepare(video)
            frames = []
            for index, (begin, picture) in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels)
                end = pictures[index + 1][0] if index + 1 < len(pictures) else begin + 1 / fps
                frame.pts, frame.time_base = round(begin / unit), unit
                frame.duration = round(end / unit) - frame.pts
                frames.append(frame)
            streams.append((video, frames))
        if sound is not None:
            audio: Any = out.add_stream(codecs[1], rate=rate, layout=layout)
            size = (audio.codec_context.frame_size or 400) * len(audio.layout.channels)
            frames = []
            for begin, samples in sound:
                for at in range(0, len(samples), size):
                    part = samples[at : at + size]
                    frame = av.AudioFrame.from_ndarray(part.reshape(1, -1), format="s16", layout=layout)
                    frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                    frame.pts = round(begin * rate) + at // len(audio.layout.channels)
                    frames.append(frame)
            streams.append((audio, frames))
        packets = []
        for stream, frames in streams:
            packets += [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        packets.sort(key=lambda packet: (packet.dts if packet.dts is not None else 0) * packet.time_base)
        for packet in packets:
            out.mux(packet)
    return path


def film(seconds: float, fps: float = 5, start: float = 0.0) -> list[tuple[float, NDArray[np.uint8]]]:
    """Pictures at a steady rate, each marked with the second that it lies in."""
    times = [index / fps for index in range(round(seconds * fps))]
    return [(start + at, marked(int(at))) for at in times]


def joined(pieces: Iterable[Piece]) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float32]]:
    found = list(pieces)
    assert [piece.first for piece in found] == list(range(0, 16 * len(found), 16))
    assert all(len(piece) == 16 for piece in found[:-1])

    def join(name: str) -> Any:
        parts = [getattr(piece, name) for piece in found]
        return None if parts[0] is None else np.concatenate(parts)

    return join("pictures"), join("times"), join("sound")


def read(path: Path, **options: Any) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float32]]:
    options = {"pictures": Pictures((32, 64)), "sound": Sound(RATE), **options}
    return joined(decode(path, **options))


def scaled(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    return samples.astype(np.float32) / 32768


@pytest.mark.parametrize(
    ("name", "codecs"),
    [
        ("clip.mp4", ("libx264", "aac")),
        ("clip.mov", ("libx264", "pcm_s16le")),
        ("clip.mkv", ("libx264", "flac")),
        ("clip.avi", ("libx264", "pcm_s16le")),
        ("clip.ts", ("libx264", "mp2")),
        ("clip.mpg", ("mpeg2video", "mp2")),
        ("clip.flv", ("libx264", "aac")),
        ("clip.webm", ("libvpx", "libopus")),
        ("clip.nut", ("mpeg4", "pcm_s16le")),
        ("clip.gif", ("gif", "")),
    ],
)
def test_every_second_has_its_picture_and_its_sound(tmp_path, name, codecs):
    rate = 48_000
    # A tone for each second, with silence around: codecs that lose some and start late are within it.
    ticks = np.arange(rate) / rate
    tones = [np.sin(2 * np.pi * (300 + 100 * k) * ticks) * ((ticks > 0.2) & (ticks < 0.8)) for k in range(20)]
    samples = (np.concatenate(tones) * 20000).astype(np.int16)
    sound = None if name.endswith("gif") else [(0.0, samples)]
    fps = 25 if codecs[0] == "mpeg2video" else 10
    pixels = "gray" if name.endswith("gif") else "yuv420p"
    options = {"bf": "2"} if codecs[0] in ("libx264", "mpeg4") else {}
    path = write(
        tmp_path / name,
        pictures=film(20, fps),
        fps=fps,
        sound=sound,
        rate=rate,
        codecs=codecs,
        pixels=pixels,
        **options,
    )
    pictures, times, heard = read(path, sound=sound and Sound(16_000))
    assert marks(pictures) == list(range(20))
    np.testing.assert_allclose(times, np.arange(20) + 0.5, atol=0.11)
    if sound:
        peaks = np.abs(np.fft.rfft(heard, axis=1)).argmax(1)
        assert peaks.tolist() == [300 + 100 * k for k in range(20)]
        edges = np.abs(heard) > 0.1
        np.testing.assert_allclose(edges.argmax(1) / 16_000, 0.2, atol=0.05)


def shown(pictures: Sequence[tuple[float, Any]], moment: float) -> float:
    """When the picture on screen at a moment came there."""
    return max([begin for begin, _ in pictures if begin <= moment], default=pictures[0][0])


@pytest.mark.parametrize("seed", range(4))
def test_a_variable_frame_rate_shows_the_picture_that_is_on_screen(tmp_path, seed):
    rng = random.Random(seed)
    begins, at = [], 0.0
    while at < 40:
        begins.append(at)
        at += rng.choice([0.04, 0.1, 0.333, 1.7, 5.0])
    begins += [at, at + 0.1, at + 0.2]  # how long the last one is shown is soon said
    film = [(begin, marked(index)) for index, begin in enumerate(begins)]
    path = write(tmp_path / "clip.mp4", pictures=film, fps=10, bf="2", g="20")
    pictures, times, _ = read(path)
    expected = [shown(film, second + 0.5) for second in range(len(pictures))]
    np.testing.assert_allclose(times, expected, atol=1e-4)
    assert marks(pictures) == [begins.index(begin) for begin in expected]
    assert len(pictures) == pytest.approx(begins[-1] + 0.1, abs=0.7)


@pytest.mark.parametrize("start", [0.0, 0.6, 3.0])
@pytest.mark.parametrize("name", ["clip.mkv", "clip.ts", "clip.mp4"])
def test_the_clock_starts_with_the_first_picture_or_sound(tmp_path, name, start):
    codecs = ("libx264", "mp2" if name.endswith("ts") else "flac")
    samples = np.repeat(np.arange(1, 7, dtype=np.int16) * 4000, 48_000)
    path = write(
        tmp_path / name, pictures=film(4, start=7 + start), sound=[(7.0, samples)], rate=48_000, codecs=codecs
    )
    pictures, times, heard = read(path, sound=Sound(48_000, 0.5))
    # The picture track starts later, and shows its first picture until then.
    wanted = [max(0, int(second + 0.5 - start)) for second in range(len(pictures))]
    assert marks(pictures) == [min(number, 3) for number in wanted]
    assert len(pictures) == max(6, int(start + 4 + 0.5))
    assert times[0] == pytest.approx(max(start, 0.4), abs=0.025)
    np.testing.assert_allclose(heard[:6].mean(1), np.arange(1, 7) * 4000 / 32768, atol=0.01)
    assert not heard[6:].any()


@pytest.mark.parametrize(
    ("pictures", "sound", "name", "codecs"),
    [
        (9, 4, "clip.mkv", ("libx264", "pcm_s16le")),
        (4, 9, "clip.mkv", ("libx264", "pcm_s16le")),
        (4.4, 4.45, "clip.mkv", ("libx264", "pcm_s16le")),
        (2.2, 4.5, "clip.mkv", ("libx264", "pcm_s16le")),
        (0.2, 0.1, "clip.mkv", ("libx264", "pcm_s16le")),
        (21, 3, "clip.mp4", ("libx264", "aac")),
        # What an encoder adds to fill its last packet would make another second of it.
        (2.2, 2.45, "clip.mp4", ("libx264", "aac")),
        (2.2, 2.495, "clip.webm", ("libvpx", "libopus")),
        (9, 2, "clip.avi", ("libx264", "pcm_s16le")),
        (2, 9, "clip.avi", ("libx264", "pcm_s16le")),
    ],
)
def test_the_longer_track_counts_even_where_only_the_other_is_asked_for(
    tmp_path, pictures, sound, name, codecs
):
    path = write(tmp_path / name, pictures=film(pictures), sound=[(0.0, counting(sound))], codecs=codecs)
    length = max(1, int(max(pictures, sound) + 0.5))
    both = read(path)
    assert [len(part) for part in both] == [length] * 3
    assert marks(both[0]) == [min(second, int(pictures - 0.01)) for second in range(length)]
    frames, times, nothing = joined(decode(path, pictures=Pictures((32, 64))))
    assert nothing is None
    np.testing.assert_array_equal(frames, both[0])
    np.testing.assert_array_equal(times, both[1])
    nothing, _, heard = joined(decode(path, sound=Sound(RATE)))
    assert nothing is None
    np.testing.assert_array_equal(heard, both[2])


@pytest.mark.parametrize("seconds", [2.495, 2.505])
@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp3", "libmp3lame"), ("a.ogg", "libopus"), ("a.mka", "libopus")]
)
def test_what_an_encoder_adds_at_the_end_does_not_count(tmp_path, name, codec, seconds):
    path = write(tmp_path / name, sound=[(0.0, counting(seconds))], codecs=("", codec))
    assert sum(map(len, decode(path, sound=Sound(RATE)))) == int(seconds + 0.5)


def windows(samples: NDArray[np.int16], count: int, length: int, rate: int = RATE) -> NDArray[np.float32]:
    """The windows around each second's middle, sample by sample."""
    found = np.zeros((count, length), np.float32)
    for second in range(count):
        begin = int((second + 0.5) * rate) - length // 2
        for at in range(length):
            if 0 <= begin + at < len(samples):
                found[second, at] = samples[begin + at] / 32768
    return found


@pytest.mark.parametrize("seconds", [0.25, 1.0, 3.3])
@pytest.mark.parametrize("rate", [8000, 11_025])
def test_sound_is_right_to_a_sample(tmp_path, seconds, rate):
    samples = counting(5.3, rate)
    path = write(tmp_path / "clip.mkv", sound=[(0.0, samples)], rate=rate)
    sound = Sound(rate, seconds)
    pictures, times, heard = joined(decode(path, sound=sound))
    assert pictures is None
    assert times is None
    np.testing.assert_array_equal(heard, windows(samples, 5, sound.samples, rate))


@pytest.mark.parametrize(("first", "second"), [(48_000, 16_000), (16_000, 44_100), (44_100, 16_000)])
def test_resampled_sound_stays_in_its_place(tmp_path, first, second):
    samples = np.zeros(first * 30, np.int16)
    clicks = [round(first * (0.3 + 1.01 * k)) for k in range(29)]
    for click in clicks:
        samples[click : click + first // 200] = 20_000
    path = write(tmp_path / "clip.mkv", sound=[(0.0, samples)], rate=first, codecs=("libx264", "flac"))
    heard = joined(decode(path, sound=Sound(second)))[2].ravel()
    assert len(heard) == 30 * second
    middles = [(click + first / 400 - 0.5) / first * second for click in clicks]
    for middle in middles:
        near = np.arange(int(middle) - 200, int(middle) + 200)
        found = (heard[near] * near).sum() / heard[near].sum()
        assert found == pytest.approx(middle, abs=0.6)


@pytest.mark.parametrize(("first", "second"), [(48_000, 16_000), (16_000, 44_100)])
def test_resampled_sound_lasts_to_its_end(tmp_path, first, second):
    path = write(tmp_path / "clip.mkv", sound=[(0.0, np.full(4 * first, 10_000, np.int16))], rate=first)
    heard = joined(decode(path, sound=Sound(second)))[2].ravel()
    np.testing.assert_allclose(heard[40:-40], 10_000 / 32768, atol=1e-3)
    assert abs(heard[-4:]).min() > 0.1


def test_gaps_are_silent_and_of_an_overlap_the_first_counts(tmp_path):
    samples = counting(12)
    pieces = [(0.0, samples[:16_000]), (5.0, samples[40_000:56_000]), (6.96, samples[:16_000])]
    path = write(tmp_path / "clip.mkv", sound=pieces)
    expected = np.zeros(9 * RATE, np.int16)
    expected[55_680:71_680] = samples[:16_000]
    expected[:16_000] = samples[:16_000]
    expected[40_000:56_000] = samples[40_000:56_000]
    heard = joined(decode(path, sound=Sound(RATE)))[2]
    np.testing.assert_array_equal(heard, windows(expected, 9, RATE))


def test_time_stamps_rounded_to_milliseconds_do_not_drift(tmp_path):
    # 1,024 samples at 44,100 are 23.2 ms: no packet begins on a millisecond.
    samples = counting(60, 44_100)
    path = write(tmp_path / "clip.mkv", sound=[(0.0, samples)], rate=44_100, codecs=("libx264", "flac"))
    heard = joined(decode(path, sound=Sound(44_100)))[2]
    np.testing.assert_array_equal(heard.ravel(), scaled(samples))


@pytest.mark.parametrize("codec", ["pcm_s16le", "flac", "aac"])
@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_the_same_sound_in_every_channel_is_that_sound(tmp_path, layout, codec):
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
    if codec == "aac":
        pytest.skip("is not the same in every channel after AAC") if layout == "5.1" else None
    wave = (np.sin(2 * np.pi * 440 * np.arange(16_000) / 8000) * 12_000).astype(np.int16)
    path = write(
        tmp_path / "clip.mkv", sound=[(0.0, np.repeat(wave, channels))], codecs=("", codec), layout=layout
    )
    heard = joined(decode(path, sound=Sound(8000, 0.5)))[2]
    assert np.abs(heard).max() == pytest.approx(12_000 / 32768, abs=0.03)


def test_nine_channels_without_a_name_are_mixed_too(tmp_path):
    samples = counting(2)
    path = tmp_path / "clip.wav"
    data = np.repeat(samples, 9).tobytes()
    header = b"RIFF" + (36 + len(data)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    numbers = ((1, 2), (9, 2), (RATE, 4), (RATE * 18, 4), (18, 2), (16, 2))
    header += b"".join(value.to_bytes(size, "little") for value, size in numbers)
    path.write_bytes(header + b"data" + len(data).to_bytes(4, "little") + data)
    heard = joined(decode(path, sound=Sound(RATE)))[2]
    np.testing.assert_allclose(heard.ravel(), scaled(samples), atol=1e-4)


def corners(height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    picture = np.full((height, width, 3), 40, np.uint8)
    picture[: height // 2, : width // 2] = 220
    picture[: height // 2, width // 2 :] = 130
    return picture


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_pictures_are_turned_and_mirrored_as_a_player_does(tmp_path, degrees, mirrored):
    picture = corners()
    path = write(
        tmp_path / "clip.mp4",
        pictures=[(0.0, picture), (0.5, picture)],
        prepare=lambda stream: stream.set_display_rotation(degrees, mirrored, False),
    )
    # FFmpeg turns counter-clockwise, and mirrors what is turned.
    expected = np.rot90(picture, degrees // 90)
    expected = expected[:, ::-1] if mirrored else expected
    (piece,) = decode(path, pictures=Pictures(32))
    assert piece.pictures.shape[1:] == expected.shape
    np.testing.assert_allclose(
        piece.pictures[0, 2:-2:4, 2:-2:4].astype(int), expected[2:-2:4, 2:-2:4], atol=12
    )


def test_pictures_are_resized_and_cropped_as_they_are_displayed(tmp_path):
    path = write(
        tmp_path / "clip.mkv",
        pictures=[(0.0, corners(32, 48)), (0.5, corners(32, 48))],
        prepare=lambda stream: setattr(stream, "sample_aspect_ratio", Fraction(2)),
    )

    def shape(**options: Any) -> tuple[int, ...]:
        (piece,) = decode(path, pictures=Pictures(**options))
        return piece.pictures.shape[1:3]

    assert shape(resize=32) == (32, 96)
    assert shape(resize=16) == (16, 48)
    assert shape(resize=(20, 30)) == (20, 30)
    assert shape(resize=40, crop=24) == (24, 24)
    (piece,) = decode(path, pictures=Pictures(32, crop=32))
    # The middle of 96 columns: the quarters' border lies in its middle.
    np.testing.assert_allclose(piece.pictures[0, 4, [4, 12, 20, 28], 0], [220, 220, 130, 130], atol=12)


MATRICES = {
    "bt470bg": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020nc": (0.2627, 0.0593),
    None: (0.299, 0.114),
}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pixels", ["yuv444p", "yuv420p", "yuv422p10le"])
@pytest.mark.parametrize("matrix", MATRICES)
def test_colours_follow_the_matrix_and_the_range_of_the_file(tmp_path, matrix, full, pixels):
    color = np.array([200.0, 90.0, 40.0])
    red, blue = MATRICES[matrix]
    light = color @ [red, 1 - red - blue, blue]
    planes = [light, (color[2] - light) / (2 - 2 * blue), (color[0] - light) / (2 - 2 * red)]
    planes = [planes[0], planes[1] + 128, planes[2] + 128]
    if not full:
        planes = [
            planes[0] * 219 / 255 + 16,
            (planes[1] - 128) * 224 / 255 + 128,
            (planes[2] - 128) * 224 / 255 + 128,
        ]
    deep = "10" in pixels
    # Reading the tags is FFV1's part too: it stores what it is given.
    frame = av.VideoFrame(64, 48, pixels)
    for plane, value in zip(frame.planes, planes, strict=True):
        data = np.full(plane.buffer_size // (2 if deep else 1), round(value * (4 if deep else 1)))
        plane.update(data.astype(np.uint16 if deep else np.uint8).tobytes())
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("ffv1", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.codec_context.color_range = 2 if full else 1
        if matrix is not None:
            stream.codec_context.colorspace = {"bt470bg": 5, "bt709": 1, "bt2020nc": 9}[matrix]
        frame.pts, frame.time_base = 0, Fraction(1)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    (piece,) = decode(path, pictures=Pictures((48, 64)))
    np.testing.assert_allclose(
        piece.pictures[0].reshape(-1, 3).astype(float), np.tile(color, (48 * 64, 1)), atol=3
    )


def test_one_picture_of_one_pixel_is_enough(tmp_path):
    path = write(
        tmp_path / "clip.mkv",
        pictures=[(0.0, np.full((1, 1, 3), 200, np.uint8))],
        codecs=("ffv1", ""),
        pixels="yuv444p",
    )
    (piece,) = decode(path, pictures=Pictures(24))
    assert piece.pictures.shape == (1, 24, 24, 3)
    np.testing.assert_allclose(piece.pictures, 200, atol=2)


def test_the_default_track_is_taken_and_a_cover_is_no_picture_track(tmp_path):
    path = tmp_path / "clip.m4a"
    with av.open(str(path), "w", format="mp4") as out:
        audio: Any = out.add_stream("aac", rate=RATE, layout="mono")
        cover: Any = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 32, "yuvj420p"
        cover.disposition = 1 << 10
        frame = av.VideoFrame.from_ndarray(marked(3), "rgb24").reformat(format="yuvj420p")
        frame.pts, frame.time_base = 0, Fraction(1)
        packets = [*cover.encode(frame), *cover.encode(None)]
        sound = av.AudioFrame.from_ndarray(counting(3).reshape(1, -1), "s16", "mono")
        sound.sample_rate, sound.pts = RATE, 0
        for packet in [*packets, *audio.encode(sound), *audio.encode(None)]:
            out.mux(packet)
    (piece,) = decode(path, pictures=Pictures(32), sound=Sound(RATE))
    assert piece.pictures is None
    assert piece.times is None
    assert piece.sound.shape == (3, RATE)
    with pytest.raises(DataError, match="has no pictures; it has sound"):
        list(decode(path, pictures=Pictures(32)))


def test_a_file_may_say_nothing_of_its_length(tmp_path):
    live = {"live": "1"}
    path = write(tmp_path / "clip.mkv", pictures=film(20), sound=[(0.0, counting(20))], container=live)
    with av.open(str(path)) as container:
        assert container.duration is None
    pictures, _, heard = read(path)
    assert marks(pictures) == list(range(20))
    np.testing.assert_array_equal(heard.ravel(), scaled(counting(20)))


@pytest.mark.parametrize("seconds", [12, 11.52])
def test_raw_streams_without_time_stamps_are_counted(tmp_path, seconds):
    path = write(tmp_path / "clip.h264", pictures=film(seconds, 25), fps=25, bf="2")
    pictures, _, _ = read(path)
    assert marks(pictures) == list(range(12))


def test_spliced_streams_go_on_where_they_were_spliced(tmp_path):
    part = write(
        tmp_path / "part.ts",
        pictures=film(4, 10),
        fps=10,
        sound=[(0.0, counting(4, 48_000))],
        rate=48_000,
        codecs=("libx264", "mp2"),
        bf="2",
    )
    path = tmp_path / "clip.ts"
    path.write_bytes(part.read_bytes() * 12)
    pictures, times, _ = read(path, sound=Sound(48_000))
    assert len(pictures) == 48
    assert marks(pictures) == list(range(4)) * 12
    assert np.abs(times - np.arange(48)).max() < 0.6


def test_the_tracks_of_spliced_parts_stay_together():
    """Sound that lasts 80 ms longer than the pictures, 500 times; each part has a clock of its own."""
    splices = stamps.Splices()
    for part in range(500):
        start = 90_000 * 1000 * (part % 2)
        begins = {}
        for tick in range(40):
            for track, length in ((0, 9000), (1, 9180)):
                at = start + tick * length
                packet = SimpleNamespace(
                    time_base=Fraction(1, 90_000), stream_index=track, duration=length, pts=at, dts=at
                )
                splices.mend(packet)
                begins.setdefault(track, packet.pts)
        assert begins[0] == begins[1] == part * 360_000


def test_what_comes_before_the_first_key_frame_is_no_damage(tmp_path):
    sound = [(0.0, counting(24))]
    path = write(
        tmp_path / "a.mkv", pictures=film(24, 10), fps=10, sound=sound, codecs=("libvpx", "flac"), g="20"
    )
    cut = remuxed(
        path, tmp_path / "b.mkv", lambda packet: packet.stream.type == "video" and packet.pts < 7900
    )
    pictures, times, _ = read(cut)
    assert times[:8].tolist() == [8.0] * 8
    assert marks(pictures) == [8] * 8 + list(range(8, 24))


def a_track(**changes: Any) -> SimpleNamespace:
    """A track of 100 seconds as `check` sees it."""
    lengths = {
        name: Fraction(value) for name, value in {"begin": 5, "zero": 5, "due": 105, "end": 105}.items()
    }
    counts = {"packets": 1000, "damaged": 0, "broken": None, "noun": "pictures", "declared": Fraction(100)}
    return SimpleNamespace(**{**lengths, **counts, **changes})


@pytest.mark.parametrize(
    ("changes", "end", "declared", "words"),
    [
        ({}, 105, 100, None),
        ({}, 105, None, None),
        ({"damaged": 100}, 105, 100, None),
        ({"damaged": 101}, 105, 100, "101 of its 1,000 packets of pictures cannot be decoded"),
        ({"due": 100, "end": 100}, 100, 104, None),
        ({}, 105, 111, r"ends after 105.0 s, its header says 111.0 s"),
        (
            {"declared": None, "due": 90},
            105,
            None,
            r"after 85.0 s, but there are packets of pictures for 100.0",
        ),
        ({"declared": Fraction(120)}, 105, 100, r"ends after 105.0 s, its header says 120.0 s"),
        ({"broken": "no more"}, 105, 100, None),
        ({"broken": "no more"}, 105, None, r"cannot be read after 100.0 s \(no more\)"),
    ],
)
def test_what_counts_as_the_whole(changes, end, declared, words):
    given = ([a_track(), a_track(**changes)], Fraction(end), None if declared is None else Fraction(declared))
    if words is None:
        program.check(*given)
    else:
        with pytest.raises(RefusedError, match=words):
            program.check(*given)


def test_the_child_loads_nothing_else_of_tagreel(tmp_path):
    request = {"path": str(tmp_path / "none"), "video": None, "audio": None}
    request["limits"] = {"memory": 1 << 30, "seconds": 9, "threads": 1}
    command = [sys.executable, "-P", "-X", "importtime", str(decoding._CHILD), json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env={})
    assert "No such file" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    ours = {name for name in loaded if name.split(".")[0] == "tagreel"}
    modules = {path.stem for path in decoding._CHILD.parent.glob("[!_]*.py")}
    assert ours == {"tagreel._decoder"} | {f"tagreel._decoder.{name}" for name in modules}
    assert not loaded & {"torch", "numpy"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_the_child_has_no_network():
    code = "import os, socket, sys; from tagreel._decoder.program import confine; confine(1 << 30)\n"
    code += "print(os.readlink('/proc/self/ns/net'))\n"
    code += "try: socket.create_connection(('127.0.0.1', int(sys.argv[1])), 2); print('open')\n"
    code += "except OSError: print('closed')"
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", code, str(server.getsockname()[1])]
        environment = {**os.environ, "PYTHONPATH": str(Path(tagreel.__file__).parents[1])}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    namespace, reached = done.stdout.split()
    if namespace == os.readlink("/proc/self/ns/net"):
        pytest.skip("this system lets no process leave its network")
    assert reached == "closed"


def test_hours_are_read_without_drift_and_in_constant_memory(tmp_path):
    path = tmp_path / "clip.mkv"
    hours = 2 * 3600 if os.environ.get("TAGREEL_LONG") else 900
    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("mpeg4", rate=1)
        video.width, video.height, video.pix_fmt = 64, 32, "yuv420p"
        audio: Any = out.add_stream("pcm_s16le", rate=RATE, layout="mono")
        expected = {}
        for second in range(hours):
            frame = av.VideoFrame.from_ndarray(marked(second % BASE**2), "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = second, Fraction(1)
            samples = rng.integers(-9000, 9000, (1, RATE)).astype(np.int16)
            if second % 100 == 0:
                expected[second] = samples
            sound = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            sound.sample_rate, sound.pts = RATE, second * RATE
            for packet in [*video.encode(frame), *audio.encode(sound)]:
                out.mux(packet)
        for packet in [*video.encode(None), *audio.encode(None)]:
            out.mux(packet)
    memory = []
    found = decode(path, pictures=Pictures((32, 64)), sound=Sound(RATE))
    for piece in found:
        assert marks(piece.pictures) == [(piece.first + at) % BASE**2 for at in range(len(piece))]
        for second in range(piece.first, piece.first + len(piece)):
            if second in expected:
                np.testing.assert_array_equal(piece.sound[second - piece.first], scaled(expected[second][0]))
        if found._process is not None:
            memory.append(resident(found._process.pid))
    assert piece.first + len(piece) == hours
    assert max(memory) - memory[2] < 8 << 20


def resident(process: int) -> int:
    """Bytes of memory that a process occupies."""
    if not sys.platform.startswith("linux"):
        return 0
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty seconds of pictures and sound. Nobody writes into it."""
    path = tmp_path_factory.mktemp("clip") / "clip.mkv"
    return write(path, pictures=film(20), sound=[(0.0, counting(20))])


def children() -> set[int]:
    """The processes that this one has started and not yet seen end, zombies counted."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(path.parent.name))
    return found


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Neither a process nor an open file may be left by a test."""
    processes, descriptors = children(), len(os.listdir("/proc/self/fd"))
    yield
    assert children() == processes
    assert len(os.listdir("/proc/self/fd")) == descriptors


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


@needs_proc
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("how", ["close", "with", "forget", "exception", "end"])
def test_letting_go_early_ends_the_child(clip, how):
    pieces = decode(clip, pictures=Pictures(512))
    child = pieces._process.pid
    assert child in children()
    if how == "with":
        with pieces:
            next(pieces)
    elif how == "exception":
        with pytest.raises(KeyError), pieces:
            raise KeyError
    elif how == "close":
        pieces.close()
        pieces.close()
        assert list(pieces) == []
    elif how == "end":
        assert len(list(pieces)) == 2
        assert list(pieces) == []
    else:
        del pieces
    assert child not in children()


def impostor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Another program in the child's place."""
    path = tmp_path / "impostor.py"
    path.write_text(f"import json, os, signal, sys, time\n{program}\n")
    monkeypatch.setattr(decoding, "_CHILD", path)


ONE_SECOND = (
    'sys.stdout.write(json.dumps({"sound": True, "damaged": 0}) + "\\n" + "0" * 32000); sys.stdout.flush()'
)


@needs_proc
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "0:00:00.*SIGKILL.*limits.memory"),
        (f"{ONE_SECOND}; os.abort()", "0:00:01.*SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "limits.seconds=0.5: it takes more processor time"),
        ("sys.exit(3)", r"\(exit code 3\)"),
        ("raise OSError('no more')", r"exit code 1, OSError: no more\)"),
        ("os.close(1); time.sleep(100)", "broke its decoder after 0:00:00"),
        ("", "exit code 0"),
        ("time.sleep(100)", "limits.seconds=0.5: nothing comes after 0:00:00; raise the limit"),
        (f"{ONE_SECOND}; time.sleep(100)", "nothing comes after 0:00:01"),
        ("print('nonsense')", "says what makes no sense"),
        ("print('[]')", "says what makes no sense"),
        ("print('{\"sound\": true}')", "exit code 0"),
        ('print(\'{"sound": true}\' + "0" * 40000)', "says what makes no sense"),
        ('print(\'{"picture": [100000, 100000], "turn": [0, 0, 0]}\')', "limits.memory"),
        ('print(\'{"picture": [-1, 5], "turn": [0, 0, 0]}\')', "limits.memory"),
    ],
)
def test_whatever_becomes_of_the_child_is_one_error(tmp_path, monkeypatch, clip, program, words):
    impostor(tmp_path, monkeypatch, program)
    pieces = decode(clip, sound=Sound(RATE), pictures=Pictures(8), limits=Limits(seconds=0.5))
    with pytest.raises(DataError, match=words) as caught:
        list(pieces)
    assert str(caught.value).startswith(f"{clip}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(pixels=2000), "limits.pixels=2,000: its pictures are 64 × 32"),
        (Limits(duration=19), "limits.duration=19: it is 0:00:20 long"),
        (Limits(seconds=0.001), "limits.seconds=0.001"),
    ],
)
def test_a_limit_says_its_name_and_how_to_raise_it(clip, limits, words):
    with pytest.raises(DataError, match=words):
        list(decode(clip, pictures=Pictures(32), limits=limits))


def test_memory_is_limited(tmp_path):
    picture = np.zeros((6000, 6000, 3), np.uint8)
    path = write(tmp_path / "clip.mkv", pictures=[(0.0, picture)], codecs=("ffv1", ""), pixels="yuv444p")
    assert len(list(decode(path, pictures=Pictures(32)))) == 1
    with pytest.raises(DataError, match=r"limits\.memory=300,000,000"):
        list(decode(path, pictures=Pictures(32), limits=Limits(memory=300_000_000)))


def test_a_file_that_goes_on_for_ever_is_stopped(tmp_path):
    path = write(tmp_path / "clip.mkv", pictures=film(20), container={"live": "1"})
    with pytest.raises(
        DataError, match=r"limits.duration=15.*goes on after 0:00:15|its time stamps go to 0:00:15"
    ):
        list(decode(path, pictures=Pictures(32), limits=Limits(duration=15)))


def test_a_narrow_picture_is_not_blown_up_without_bounds(tmp_path):
    picture = np.zeros((2, 2000, 3), np.uint8)
    path = write(tmp_path / "clip.mkv", pictures=[(0.0, picture)], codecs=("ffv1", ""), pixels="yuv444p")
    with pytest.raises(DataError, match=r"limits\.pixels.*would be 256000 × 256"):
        list(decode(path, pictures=Pictures(256), limits=Limits(pixels=1 << 20)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.mkdir(), "is no ordinary file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("to be or not to be\n" * 100), "is no film or sound"),
        (lambda path: path.write_bytes(random.Random(0).randbytes(100_000)), "."),
        (lambda path: path.write_text("ffconcat version 1.0\nfile other.mp4\n"), "lists of files"),
        (
            lambda path: path.write_text(
                "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1/a.ts\n#EXT-X-ENDLIST\n"
            ),
            ".",
        ),
        (lambda path: path.write_bytes(bytes.fromhex("89504e470d0a1a0a0000000d49484452") + bytes(99)), "."),
        (lambda path: os.mkfifo(path), "is no ordinary file"),
    ],
)
def test_what_is_no_film_and_no_sound_is_refused(tmp_path, make, words):
    path = tmp_path / "a: b.mp4"
    make(path)
    with pytest.raises(DataError, match=words) as caught:
        list(decode(path, pictures=Pictures(32), sound=Sound()))
    assert "\n" not in str(caught.value)


def test_names_may_hold_anything(tmp_path, clip):
    for name in ("http:x.mkv", "%d.mkv", "é\udcff.mkv", "-i.mkv", "concat:a|b.mkv", "new\nline.mkv"):
        path = tmp_path / name
        path.write_bytes(clip.read_bytes())
        assert len(read(path)[0]) == 20


def test_settings_that_make_no_sense_are_refused(clip):
    for make in (
        lambda: Pictures(0),
        lambda: Pictures((32, 0)),
        lambda: Pictures(32, crop=33),
        lambda: Pictures((64, 32), crop=40),
        lambda: Sound(0),
        lambda: Sound(16_000, 0),
        lambda: Sound(16_000, 100),
        lambda: Limits(pixels=0),
        lambda: decode(clip),
    ):
        with pytest.raises(RecipeError, match="expected"):
            make()


def test_without_pyav_the_error_names_the_extra(clip, monkeypatch):
    monkeypatch.setattr(decoding.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'tagreel\[video\]'"):
        decode(clip, sound=Sound())


def test_a_broken_clock_does_not_fill_hours_with_one_picture(tmp_path):
    path = write(tmp_path / "clip.mkv", pictures=[*film(8), (90_000.0 / 2, marked(9))])
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3  # its duration, in milliseconds
    path.write_bytes(data[:at] + np.array(8000, ">f8").tobytes() + data[at + 8 :])
    with pytest.raises(DataError, match="time stamps go to 12:30:00, its header says 0:00:08"):
        list(decode(path, pictures=Pictures(16)))


def outcome(path: Path) -> list[Piece] | DataError:
    limits = Limits(seconds=60)
    try:
        return list(decode(path, pictures=Pictures((16, 32)), sound=Sound(RATE), limits=limits))
    except DataError as error:
        return error


KINDS = [
    ("clip.mp4", ("libx264", "aac"), {"movflags": "faststart"}),
    ("clip.mkv", ("libx264", "flac"), {}),
    ("clip.avi", ("mpeg4", "pcm_s16le"), {}),
    ("clip.flv", ("flv", "aac"), {}),
]


@pytest.mark.parametrize(("name", "codecs", "container"), KINDS)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_file_that_was_cut_off_does_not_pass_for_the_whole(tmp_path, name, codecs, container, kept):
    rng = np.random.default_rng(3)
    pictures = [(at, rng.integers(0, 255, (32, 64, 3), np.uint8)) for at, _ in film(60)]
    sound = [(0.0, counting(60, 44_100))]
    path = write(
        tmp_path / name, pictures=pictures, sound=sound, rate=44_100, codecs=codecs, container=container
    )
    assert not isinstance(outcome(path), DataError)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert "is cut or damaged: it ends after" in str(outcome(path))


def test_a_blemish_is_passed_over_and_counted(tmp_path):
    path = write(tmp_path / "clip.mkv", pictures=film(20, 25), fps=25, codecs=("mpeg4", ""), g="12")
    data = bytearray(path.read_bytes())
    spoil = data.index(b"\x00\x00\x01\xb6", len(data) // 2)  # a picture's start code
    data[spoil : spoil + 40] = bytes(40)
    path.write_bytes(data)
    pieces = outcome(path)
    assert not isinstance(pieces, DataError)
    assert 1 <= pieces[-1].damaged <= 12
    assert sum(map(len, pieces)) == 20


def remuxed(path: Path, target: Path, spoil: Callable[[Any], bool]) -> Path:
    """A copy in which some packets are zeros."""
    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        streams = [out.add_stream_from_template(stream) for stream in source.streams]
        for packet in source.demux():
            if packet.size:
                copy = packet
                if spoil(packet):
                    copy = av.Packet(bytes(packet.size))
                    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.stream = streams[packet.stream_index]
                out.mux(copy)
    return target


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx", "aac", "flac"])
@pytest.mark.parametrize(("first", "last"), [(5, 14), (13, 20)])
def test_more_than_a_blemish_is_an_error(tmp_path, codec, first, last):
    if codec == "mpeg4" and first == 5:
        pytest.skip("its decoder passes over such packets without a word")
    kind = "audio" if codec in ("aac", "flac") else "video"
    tracks: dict[str, Any] = {"sound": [(0.0, counting(20))]}
    if kind == "video":
        tracks |= {"pictures": film(20, 10), "fps": 10}
    path = write(tmp_path / "whole.mkv", codecs=(codec, "flac" if kind == "video" else codec), **tracks)
    broken = remuxed(
        path,
        tmp_path / "broken.mkv",
        lambda packet: packet.stream.type == kind and first < packet.pts * packet.time_base < last,
    )
    with pytest.raises(DataError, match=r"is damaged: .* cannot be decoded|but there are packets of"):
        list(decode(broken, pictures=Pictures(16), sound=Sound(RATE)))


def test_pictures_that_grow_beyond_the_limit_are_not_decoded(tmp_path):
    small = write(tmp_path / "small.h264", pictures=film(4, 25), fps=25)
    large = [(at, marked(0, 480, 640)) for at, _ in film(4, 25)]
    path = tmp_path / "clip.h264"
    path.write_bytes(small.read_bytes() + write(tmp_path / "large.h264", pictures=large, fps=25).read_bytes())
    assert sum(map(len, decode(path, pictures=Pictures(16)))) == 8
    with pytest.raises(DataError, match=r"is damaged: .* packets of pictures cannot be decoded"):
        list(decode(path, pictures=Pictures(16), limits=Limits(pixels=100_000)))


CONTAINERS = [*KINDS, ("clip.ts", ("libx264", "mp2"), {}), ("clip.webm", ("libvpx", "libopus"), {})]


@pytest.mark.parametrize(("name", "codecs", "container"), CONTAINERS)
@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_never_do_more_than_one_error(tmp_path, name, codecs, container, seed):
    path = tmp_path / name
    write(
        path,
        pictures=film(8),
        sound=[(0.0, counting(8, 48_000))],
        rate=48_000,
        codecs=codecs,
        container=container,
    )
    assert_damage_is_survived(path, tmp_path, seed)


def assert_damage_is_survived(path: Path, folder: Path, seed: int) -> None:
    data = path.read_bytes()
    rng = random.Random(f"{path.name} {seed}")
    copy = folder / f"damaged-{path.name}"
    for flips in (1, 30, 1000):
        spoiled = bytearray(data)
        for _ in range(flips):
            spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
        copy.write_bytes(spoiled)
        outcome(copy)
    for kept in (rng.random(), 0.99):
        copy.write_bytes(data[: max(1, int(kept * len(data)))])
        outcome(copy)


needs_clips = pytest.mark.skipif(not CLIPS.exists(), reason=f"needs the clips in {CLIPS}")
ALL_CLIPS = sorted(path.name for path in CLIPS.glob("*") if path.suffix != ".json") if CLIPS.exists() else []


def every_frame(path: Path) -> dict[str, list[tuple[float, float, Any]]]:
    """Begin, end and frame of all that PyAV decodes of the two tracks, with the file's own time stamps."""
    found = {}
    for kind in ("video", "audio"):
        with av.open(str(path)) as container:
            stream = container.streams.best(kind)
            if stream is not None:
                frames = list(container.decode(stream))
                ends = [
                    frame.time
                    + (
                        float(frame.duration * frame.time_base)
                        if kind == "video"
                        else frame.samples / frame.rate
                    )
                    for frame in frames
                ]
                found[kind] = [(frame.time, end, frame) for frame, end in zip(frames, ends, strict=True)]
    return found


@needs_clips
@pytest.mark.parametrize("name", ALL_CLIPS)
def test_of_each_clip_come_the_pictures_on_screen_and_as_many_seconds(name):
    path = CLIPS / name
    frames = every_frame(path)
    zero = min(track[0][0] for track in frames.values())
    length = max(track[-1][1] for track in frames.values()) - zero
    pictures, times, sound = joined(decode(path, pictures=Pictures((48, 64)), sound=Sound(16_000)))
    count = max(1, int(length + 0.5))
    assert [len(part) for part in (pictures, sound) if part is not None] == [count] * len(frames)
    assert (pictures is None, sound is None) == ("video" not in frames, "audio" not in frames)
    if sound is not None:
        assert np.abs(sound).max() <= 1
    if pictures is not None:
        before = [
            max(
                (frame for frame in frames["video"] if frame[0] - zero <= second + 0.5),
                key=lambda frame: frame[0],
            )
            for second in range(count)
        ]
        np.testing.assert_allclose(times, [begin - zero for begin, _, _ in before], atol=1e-6)
        for picture, (_, _, frame) in zip(pictures, before, strict=True):
            if not frame.rotation:
                expected = frame.reformat(64, 48, "rgb24", interpolation="BICUBIC").to_ndarray()
                np.testing.assert_array_equal(picture, expected)


@needs_clips
@pytest.mark.parametrize(
    ("name", "track"), [("nasa_13013.mp4", 3), ("nasa_13013_rotated.mp4", 0), ("test_non_zero_start.mp4", 0)]
)
def test_the_times_of_the_chosen_pictures_are_those_of_the_reference(name, track):
    frames = json.loads((CLIPS / f"{name}.stream{track}.all_frames_info.json").read_text())
    begins = np.array([float(frame["pts_time"]) for frame in frames])
    begins -= begins[0]
    _, times, _ = joined(decode(CLIPS / name, pictures=Pictures(16)))
    expected = [begins[begins <= second + 0.5].max() for second in range(len(times))]
    np.testing.assert_allclose(times, expected, atol=2e-6)
    assert len(times) == max(1, int(begins[-1] + float(frames[-1]["duration_time"]) + 0.5))


@needs_clips
def test_the_sound_of_a_clip_lasts_as_long_as_the_reference_says():
    frames = json.loads((CLIPS / "nasa_13013.mp4.stream4.all_frames_info.json").read_text())
    end = float(frames[-1]["pts_time"]) + float(frames[-1]["duration_time"])
    # Windows so long that the last one holds the end of the track.
    (piece,) = decode(CLIPS / "nasa_13013.mp4", sound=Sound(16_000, 4.0))
    last = piece.sound[-1]
    heard = (len(piece.sound) - 0.5 - 2) + (np.flatnonzero(last)[-1] + 1) / 16_000
    assert heard == pytest.approx(end, abs=0.064)


@needs_clips
def test_a_turned_clip_stands_upright():
    (piece,) = decode(CLIPS / "nasa_13013_rotated.mp4", pictures=Pictures(90))
    assert piece.pictures.shape == (1, 160, 90, 3)


@needs_clips
@pytest.mark.parametrize("name", ALL_CLIPS)
def test_no_damage_to_a_clip_does_more_than_one_error(tmp_path, name):
    for seed in range(10 if os.environ.get("TAGREEL_LONG") else 1):
        path = tmp_path / name
        path.write_bytes((CLIPS / name).read_bytes())
        assert_damage_is_survived(path, tmp_path, seed)


class WithUnnamedSideData:
    """A frame with side data that PyAV has no name for, turned by so many degrees."""

    def __init__(self, rotation: int) -> None:
        self.rotation = rotation

    @property
    def side_data(self) -> None:
        raise ValueError


@pytest.mark.parametrize("degrees", [0, 90, 180, -180, -90])
def test_a_turn_is_known_beside_side_data_without_a_name(degrees):
    transposed, upside_down, mirrored = pictures.orientation(WithUnnamedSideData(degrees))
    picture = corners()
    found = picture.transpose(1, 0, 2) if transposed else picture
    found = found[::-1] if upside_down else found
    found = found[:, ::-1] if mirrored else found
    np.testing.assert_array_equal(found, np.rot90(picture, degrees // 90))


@pytest.mark.parametrize("asked", ["pictures", "sound"])
def test_a_track_that_nobody_asked_for_may_be_broken(tmp_path, asked):
    path = write(
        tmp_path / "clip.mkv", pictures=film(6), sound=[(0.0, counting(6))], codecs=("libx264", "flac")
    )
    spoilt = "audio" if asked == "pictures" else "video"
    broken = remuxed(path, tmp_path / "broken.mkv", lambda packet: packet.stream.type == spoilt)
    wanted = {"pictures": Pictures(16)} if asked == "pictures" else {"sound": Sound(RATE)}
    assert sum(len(piece) for piece in decode(broken, **wanted)) == 6
    with pytest.raises(DataError, match=r"none of its .* packets of (pictures|sound) can be decoded"):
        list(decode(broken, pictures=Pictures(16), sound=Sound(RATE)))


def test_standard_input_gives_what_the_file_gives(tmp_path):
    path = write(
        tmp_path / "a.mkv", pictures=film(40), sound=[(0.0, counting(40))], codecs=("mpeg4", "pcm_s16le")
    )
    script = (
        "import hashlib, json, sys\n"
        "from tagreel.decoding import Pictures, Sound, decode\n"
        "pieces = list(decode(sys.argv[1], pictures=Pictures((32, 64)), sound=Sound(8000), at_once=5))\n"
        "content = b''.join(piece.pictures.tobytes() + piece.sound.tobytes() for piece in pieces)\n"
        "print([len(piece) for piece in pieces], hashlib.sha256(content).hexdigest())\n"
    )
    of_file = subprocess.check_output([sys.executable, "-c", script, str(path)])
    of_pipe = subprocess.check_output([sys.executable, "-c", script, "-"], input=path.read_bytes())
    assert of_pipe == of_file
    assert of_file.startswith(b"[5, 5, 5, 5, 5, 5, 5, 5]")


def test_what_all_demuxers_have_read_of_a_pipe_is_forgotten():
    pipe = Pipe(io.BytesIO(bytes(range(250)) * 100))
    probe, first, second = pipe.open(), pipe.open(), pipe.open()
    assert probe.read(400) == first.read(400) == (bytes(range(250)) * 2)[:400]
    pipe.keep([first, second])
    for _ in range(300):
        assert first.read(50) or first.at == 25_000
        assert len(pipe.held) <= first.at
        assert second.read(50)[:1] in (b"", bytes([(second.at - 50) % 250]))
        assert second.at < 400 or len(pipe.held) <= 450
    assert (first.at, second.at) == (15_400, 15_000)
