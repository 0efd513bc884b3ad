"""Walks every example of a source and says what is in it and what is damaged; never trains, never skips."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tagreel.batch import Example
from tagreel.errors import DataError
from tagreel.source import Source, Unreadable

_FEW = 5
_SCREEN = 20


@dataclass(slots=True)
class FileReport:
    """What one file holds: `records` counts all its examples, `examples` those that could be read."""

    path: str
    format: str | None
    records: int
    examples: int = 0
    damaged: int = 0


@dataclass(slots=True)
class StreamReport:
    """One stream: how many examples have it, in which widths and types, and how many frames long."""

    examples: int
    widths: list[int]
    dtypes: list[str]
    shortest: int
    median: float
    longest: int
    without_frames: int


@dataclass(slots=True)
class CheckReport:
    """All that `check` found; `damage` has a line for each record that could not be read, or a whole file."""

    files: list[FileReport] = field(default_factory=list)
    streams: dict[str, StreamReport] = field(default_factory=dict)
    segments: int = 0
    labels_fewest: int = 0
    labels_mean: float = 0.0
    labels_most: int = 0
    unlabelled: int = 0
    classes_seen: int = 0
    largest_label: int | None = None
    duplicate_ids: int = 0
    duplicates: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def examples(self) -> int:
        """How many examples could be read."""
        return sum(file.examples for file in self.files)

    @property
    def damaged(self) -> int:
        """How many examples could not be read."""
        return sum(file.damaged for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {"examples": self.examples, "damaged": self.damaged, **asdict(self)}

    def text(self) -> str:
        """The report as aligned lines that fit on a screen."""
        return "\n".join(line.rstrip() for line in _lines(self))


def check(source: Source, *, progress: Callable[[int, int], None] | None = None) -> CheckReport:
    """Read every example of a source; `progress` is called with how many are done, and of how many."""
    report, tally, done, total = CheckReport(ignored=list(source.ignored)), _Tally(), 0, len(source)
    with source.fetching() as read:
        for number, path in enumerate(source.paths):
            file = FileReport(path, source.formats[number], source.counts[number])
            shard = source.open(number)
            if isinstance(shard, Unreadable):
                report.damage.append(str(shard.error))
            for index in range(file.records):
                try:
                    tally.add(shard[index], number, index)
                except DataError as error:
                    file.damaged += 1
                    if not isinstance(shard, Unreadable):
                        report.damage.append(str(error))
                else:
                    file.examples += 1
                done += 1
                if progress is not None and (done % 256 == 0 or done == total):
                    progress(done, total)
            report.files.append(file)
            read(number)
    tally.finish(report, source)
    return report


class _Tally:
    """Running counts; the memory for a video is its id's hash and where it stands."""

    def __init__(self) -> None:
        self.lengths: dict[str, Counter[int]] = {}
        self.widths: dict[str, set[int]] = {}
        self.dtypes: dict[str, set[str]] = {}
        self.labels: Counter[int] = Counter()
        self.label_counts: Counter[int] = Counter()
        self.segments = 0
        self.hashes, self.files, self.indices = array("q"), array("l"), array("l")

    def add(self, example: Example, file: int, index: int) -> None:
        for name, frames in example.streams.items():
            self.lengths.setdefault(name, Counter())[len(frames)] += 1
            self.dtypes.setdefault(name, set()).add(str(frames.dtype))
            widths = self.widths.setdefault(name, set())
            if len(frames):
                widths.add(frames.shape[1])
        self.labels.update(example.labels.tolist())
        self.label_counts[len(example.labels)] += 1
        self.segments += example.rated is not None and len(example.rated) > 0
        self.hashes.append(hash(example.id))
        self.files.append(file)
        self.indices.append(index)

    def finish(self, report: CheckReport, source: Source) -> None:
        for name, lengths in sorted(self.lengths.items()):
            report.streams[name] = StreamReport(
                examples=lengths.total(),
                widths=sorted(self.widths[name]),
                dtypes=sorted(self.dtypes[name]),
                shortest=min(lengths),
                median=_median(lengths),
                longest=max(lengths),
                without_frames=lengths[0],
            )
        report.segments = self.segments
        if counts := self.label_counts:
            report.labels_fewest, report.labels_most = min(counts), max(counts)
            report.labels_mean = sum(n * videos for n, videos in counts.items()) / counts.total()
            report.unlabelled = counts[0]
        report.classes_seen, report.largest_label = len(self.labels), max(self.labels, default=None)
        self._find_duplicates(report, source)

    def _find_duplicates(self, report: CheckReport, source: Source) -> None:
        hashes = np.asarray(self.hashes)
        order = np.argsort(hashes, kind="stable")
        again = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        report.duplicate_ids = len(again)
        for place in again[np.argsort(order[again + 1])][:_FEW].tolist():
            first, second = (
                (self.files[at], self.indices[at]) for at in (int(order[place]), int(order[place + 1]))
            )
            name = source.open(second[0])[second[1]].id
            places = (f"{source.paths[file]}, example {index:,}" for file, index in (second, first))
            report.duplicates.append(f"{name!r}: {' and '.join(places)}")


def _median(counts: Counter[int]) -> float:
    """The median of numbers of which `counts` says how often each occurs."""
    values = np.array(sorted(counts))
    ends = np.cumsum([counts[value] for value in values.tolist()])
    middle = [(ends[-1] - 1) // 2, ends[-1] // 2]
    return float(values[np.searchsorted(ends, middle, side="right")].mean())


def _lines(report: CheckReport) -> Iterable[str]:
    width = max((len(file.path) for file in report.files), default=4)
    yield f"{'file':<{width}}  {'format':<8}  {'records':>9}  {'readable':>9}  {'damaged':>7}"
    # Damaged files first: on a full data set the sound ones do not fit on a screen.
    shown = sorted(report.files, key=lambda file: -file.damaged)[:_SCREEN]
    for file in shown:
        yield (
            f"{file.path:<{width}}  {file.format or '?':<8}  {file.records:>9,}  {file.examples:>9,}  "
            f"{file.damaged:>7,}"
        )
    if len(report.files) > len(shown):
        yield f"... and {len(report.files) - len(shown):,} more files"
    yield (
        f"{len(report.files):,} files, {report.examples:,} examples"
        + (f", {report.segments:,} of them rated segments" if report.segments else "")
        + f", {report.damaged:,} damaged"
    )
    yield ""
    name_width = max([6, *map(len, report.streams)])
    yield f"{'stream':<{name_width}}  {'width':>11}  {'type':<7}  {'examples':>9}  frames min/median/max"
    for name, stream in report.streams.items():
        widths = ", ".join(f"{width:,}" for width in stream.widths) or "?"
        lengths = f"{stream.shortest:,} / {stream.median:,.6g} / {stream.longest:,}"
        empty = f"  ({stream.without_frames:,} without frames)" if stream.without_frames else ""
        yield (
            f"{name:<{name_width}}  {widths:>11}  {', '.join(stream.dtypes):<7}  "
            f"{stream.examples:>9,}  {lengths}{empty}"
        )
    yield ""
    yield (
        f"labels       {report.labels_fewest} / {report.labels_mean:.2f} / {report.labels_most} per example "
        f"(min/mean/max), {report.unlabelled:,} examples without"
    )
    largest = "" if report.largest_label is None else f", the largest id is {report.largest_label:,}"
    yield f"classes      {report.classes_seen:,} seen{largest}"
    yield f"duplicates   {report.duplicate_ids:,} ids seen before"
    yield from (f"  {line}" for line in report.duplicates)
    if report.ignored:
        few = ", ".join(report.ignored[:_FEW]) + (", ..." if len(report.ignored) > _FEW else "")
        yield f"ignored      {len(report.ignored):,} files of no known format: {few}"
    yield f"damage       {report.damaged:,}" if report.damage else "damage       none"
    yield from (f"  {line}" for line in report.damage[:_SCREEN])
    if len(report.damage) > _SCREEN:
        yield f"  ... and {len(report.damage) - _SCREEN:,} more"
