"""AudioSet: VGGish embeddings, 128 bytes a second for up to ten seconds, and 527 classes.

Gemmeke et al., *Audio Set: An ontology and human-labeled dataset for audio events*, ICASSP 2017; the records
are SequenceExamples with `video_id`, `start_time_seconds`, `end_time_seconds`, `labels` and the frame list
`audio_embedding`, quantised like YouTube-8M's frames (research.google.com/audioset/download.html).
"""

from __future__ import annotations

from pathlib import Path

from tagreel.batch import Example
from tagreel.readers._tfexample import MalformedError, first_record, parse
from tagreel.readers._tfrecord import RecordFile


class AudioSet:
    """A shard of AudioSet embeddings, plain or gzip; the stream is `audio_embedding`.

    `whole_videos` is for data sets with rated segments, which AudioSet is not: it changes nothing.
    """

    format = "audioset"

    def __init__(self, path: str | Path, *, check_crc: bool = True, whole_videos: bool = False) -> None:
        self._file = RecordFile(path, check_crc=check_crc)
        self.path = self._file.path

    @classmethod
    def recognises(cls, path: str | Path) -> bool:
        """Whether the first readable record of the file has AudioSet's frame list."""
        record = first_record(path)
        return record is not None and "audio_embedding" in record.lists

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, index: int) -> Example:
        payload = self._file.payload(index)
        try:
            record = parse(payload)
            return Example(
                id=record.id("video_id", "id"),
                labels=record.labels(),
                streams=record.streams(renamed={}, aside=("start_time_seconds", "end_time_seconds")),
            )
        except MalformedError as error:
            raise self._file.error(index, str(error)) from None
