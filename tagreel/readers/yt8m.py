"""YouTube-8M: video-level and frame-level records of 2016 to 2018, and the rated segments of 2019.

Abu-El-Haija et al., *YouTube-8M: A Large-Scale Video Classification Benchmark*, arXiv:1609.08675. The records
and their keys are those of the starter code (github.com/google/youtube-8m, `readers.py`): Examples with
`mean_rgb` and `mean_audio`, or SequenceExamples with the frame lists `rgb` and `audio`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tagreel.batch import Example
from tagreel.errors import DataError
from tagreel.readers._tfexample import ID_KEYS, MalformedError, Record, first_record, named_tfrecord, parse
from tagreel.readers._tfrecord import RecordFile

SEGMENT_SECONDS = 5
_RENAMED = {"inc3": "rgb", "mean_inc3": "mean_rgb"}  # the names of 2016
_NO_FEATURES = ("segment_scores", "start_time_seconds", "end_time_seconds")
_LOOK_AHEAD = 16


class YT8M:
    """A shard of YouTube-8M, of any year and level, plain or gzip.

    Streams are named as in the records: `rgb` and `audio`, or `mean_rgb` and `mean_audio`. Where one of the
    first records has rated segments (2019), each segment is an example: id `video:start`, the frames of its
    five seconds, the classes rated true as `labels`, all rated ones as `rated`; a record without segments
    gives no example. `whole_videos` reads such a file as plain videos with the labels of the video.
    """

    format = "yt8m"

    def __init__(self, path: str | Path, *, check_crc: bool = True, whole_videos: bool = False) -> None:
        self._file = RecordFile(path, check_crc=check_crc)
        self.path = self._file.path
        self._whole_videos = whole_videos
        self._segments = None if whole_videos or not self._has_segments() else self._list_segments()

    @classmethod
    def recognises(cls, path: str | Path) -> bool:
        """Whether the first readable record is a video with an id; where none is readable, by the name."""
        record = first_record(path)
        if record is None:
            return named_tfrecord(path)
        return not ID_KEYS.isdisjoint(record.context) and "audio_embedding" not in record.lists

    def __len__(self) -> int:
        return len(self._file) if self._segments is None else len(self._segments)

    def __getitem__(self, index: int) -> Example:
        number, start = (index, 0) if self._segments is None else self._segments[index]
        payload = self._file.payload(number)
        try:
            record = parse(payload)
            streams = record.streams(renamed=_RENAMED, aside=_NO_FEATURES)
            if self._segments is not None:
                return _segment(record, streams, start)
            if not self._whole_videos and "segment_start_times" in record.context:
                raise MalformedError(
                    f"it has rated segments, but the first {_LOOK_AHEAD} records of the file have none; "
                    "put these videos into separate files, or read whole videos"
                )
            return Example(id=record.id("id", "video_id"), labels=record.labels(), streams=streams)
        except MalformedError as error:
            raise self._file.error(number, str(error)) from None

    def _has_segments(self) -> bool:
        for index in range(min(len(self._file), _LOOK_AHEAD)):
            try:
                if "segment_start_times" in parse(self._file.payload(index), lists=False).context:
                    return True
            except (DataError, MalformedError):
                continue
        return False

    def _list_segments(self) -> list[tuple[int, int]]:
        """The record and the start of every segment; a damaged record is one entry, with no such start."""
        segments: list[tuple[int, int]] = []
        for index in range(len(self._file)):
            try:
                starts = parse(self._file.payload(index), lists=False).integers("segment_start_times")
            except (DataError, MalformedError):
                segments.append((index, -1))
            else:
                segments.extend((index, start) for start in sorted(set(starts.tolist())))
        return segments


def _segment(record: Record, streams: dict[str, NDArray[Any]], start: int) -> Example:
    starts, classes = record.integers("segment_start_times"), record.integers("segment_labels")
    scores = record.floats("segment_scores")
    if not len(starts) == len(classes) == len(scores) and (len(classes) or len(scores)):
        raise MalformedError(
            f"its segments have {len(starts)} start times, {len(classes)} labels and {len(scores)} scores; "
            "there should be as many of each"
        )
    if len(classes) and classes.min() < 0:
        raise MalformedError(f"segment label {classes.min()} is negative")
    for name in record.lists:
        length = len(streams[_RENAMED.get(name, name)])
        if not 0 <= start < length:
            raise MalformedError(f"a segment starts at {start} s, but {name!r} has {length} frames")
    judged = starts == start
    return Example(
        id=f"{record.id('id', 'video_id')}:{start}",
        labels=np.unique(classes[judged & (scores > 0)]) if len(scores) else np.empty(0, np.int64),
        streams={
            name: frames[start : start + SEGMENT_SECONDS] if len(frames) > 1 else frames
            for name, frames in streams.items()
        },
        rated=np.unique(classes[judged]) if len(classes) else np.empty(0, np.int64),
    )
