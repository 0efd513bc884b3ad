"""A table of videos and tags to a data set that training takes as it is.

    OUT/labels.txt                       the vocabulary, the most frequent tag first
    OUT/train, OUT/validate, OUT/test    Arrow shards, and what `tagreel.extract` writes beside them

Videos are split by a hash, so that nothing leaks: what has the same `group`, or the same bytes in its file,
stays on one side. A projection is fitted on the training videos alone.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tagreel.errors import DataError, RecipeError
from tagreel.extract import Extracted, Video, extract
from tagreel.extractor import Extractor
from tagreel.files import write_text
from tagreel.media import Listed
from tagreel.projection import Projection

SPLITS = ("train", "validate", "test")


@dataclass(frozen=True)
class Made:
    """What a data set holds: by split what was extracted, the tags, and those too rare to be among them."""

    splits: dict[str, Extracted]
    tags: list[str]
    dropped: list[str]


def make(
    listed: Sequence[Listed],
    out: Path,
    extractor: Extractor,
    *,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    min_videos: int = 2,
    pca: Mapping[str, int] | None = None,
    jobs: int = 1,
    max_bad: int | None = None,
    retry: bool = False,
    on_video: Callable[[int], None] | None = None,
) -> Made:
    """Extract the videos of a table into the folder `out`; the same call goes on where one was stopped.

    The vocabulary are the tags of at least `min_videos` training videos. `shares` says how many of the videos
    without a split of their own go where. What else is as in `extract`.
    """
    splits = split(listed, shares)
    counts = Counter(tag for item in splits["train"] for tag in item.tags)
    tags = sorted((tag for tag in counts if counts[tag] >= min_videos), key=lambda tag: (-counts[tag], tag))
    if not tags:
        raise RecipeError(
            f"no tag is on {min_videos} of the {len(splits['train']):,} training videos; give more videos, "
            "or --min-videos 1"
        )
    number = {tag: index for index, tag in enumerate(tags)}
    done = 0
    found: dict[str, Extracted] = {}
    for name, items in splits.items():
        if not items:
            continue
        videos = [
            Video(item.file.name, item.file.path, tuple(number[tag] for tag in item.tags if tag in number))
            for item in items
        ]
        extracted = extract(
            videos,
            out / name,
            extractor,
            label_names=tags,
            pca=pca if name == "train" else None,
            jobs=jobs,
            max_bad=max_bad,
            retry=retry,
            on_video=partial(_after, done, on_video),
        )
        assert extracted is not None, "all of its shards were made here"
        found[name] = extracted
        done += len(videos)
        if name == "train" and pca:
            fitted = {
                stream: Projection.load(out / "train" / f"projection-{stream}.safetensors") for stream in pca
            }
            extractor = Extractor(
                extractor.encoders, {**extractor.projections, **fitted}, limits=extractor.limits
            )
    write_text(out / "labels.txt", "".join(f"{tag}\n" for tag in tags))
    everywhere = {tag for item in listed for tag in item.tags}
    return Made(found, tags, sorted(everywhere - set(tags)))


def split(listed: Sequence[Listed], shares: tuple[float, float, float]) -> dict[str, list[Listed]]:
    """The videos of each split. Raises `DataError` where a split of the table's own tears a group apart.

    Groups are put in the order of a hash and cut where the shares say, so that each split gets its number of
    videos in a small catalogue as well.
    """
    found: dict[str, list[Listed]] = {name: [] for name in SPLITS}
    free: list[list[Listed]] = []
    for members in _inseparable(listed):
        own = {item.split for item in members if item.split}
        if unknown := own - set(SPLITS):
            raise DataError(
                f"the split is {unknown.pop()!r}; expected {', '.join(SPLITS)}, or nothing",
                path=members[0].file.path,
            )
        if len(own) > 1:
            first, second = sorted(own)
            raise DataError(
                f"is in {first} and, in the same group or as a copy, in {second}; it would leak",
                path=members[0].file.path,
            )
        if own:
            found[own.pop()] += members
        else:
            free.append(members)
    free.sort(key=lambda members: hashlib.blake2b(min(item.file.name for item in members).encode()).digest())
    total, placed = sum(map(len, free)), 0
    for members in free:
        middle = (placed + len(members) / 2) / total * sum(shares)
        name = "train" if middle < shares[0] else "validate" if middle < shares[0] + shares[1] else "test"
        found[name] += members
        placed += len(members)
    return {name: sorted(items, key=lambda item: item.file.name) for name, items in found.items()}


def _after(before: int, on_video: Callable[[int], None] | None, count: int) -> None:
    if on_video is not None:
        on_video(before + count)


def _inseparable(listed: Sequence[Listed]) -> list[list[Listed]]:
    """Videos that share a group or a file's bytes, or are linked by others that do."""
    above: dict[str, str] = {}

    def root(key: str) -> str:
        while above.setdefault(key, key) != key:
            above[key] = above[above[key]]
            key = above[key]
        return key

    contents = list(map(_content, listed))
    for item, content in zip(listed, contents, strict=True):
        if item.group:
            above[root(f"group {item.group}")] = root(content)
    found: dict[str, list[Listed]] = defaultdict(list)
    for item, content in zip(listed, contents, strict=True):
        found[root(content)].append(item)
    return list(found.values())


def _content(item: Listed) -> str:
    """A hash of the file's bytes, or its name where it cannot be read: that is told when it is extracted."""
    try:
        with open(item.file.path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError:
        return os.path.abspath(item.file.path)
