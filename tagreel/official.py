"""The official files of YouTube-8M and AudioSet: where they are, and what each is called here.

YouTube-8M is fetched as its own script does (data.yt8m.org/download.py, of which there are public copies):

- each partition has a plan, `{"files": {name: md5}}`, at VERSION/download_plans/LEVEL_SPLIT.json;
- a file lies on each of three mirrors at VERSION/LEVEL/SPLIT/NAME;
- part I,N of a partition is the files for which the MD5 of the name is I - 1 modulo N;
- on disk a number stands for the two letters of a name: `trainaA` and `trainaa` are one file on some disks.

Version 2 is the data of 2018, 3 the rated segments of 2019; those of 2016 and 2017 were to be deleted in July
2018 (research.google.com/youtube8m/download2017.html). The folders are those of the starter code's README
(github.com/google/youtube-8m), which also holds segment_label_ids.csv. AudioSet is one archive
(research.google.com/audioset/download.html) without an official checksum; the one here is what two public
programs that fetch it expect, from two mirrors. All of it lies in Google Cloud Storage, which is asked by its
own https address (cloud.google.com/storage/docs/request-endpoints) where the script uses http and the name
data.yt8m.org.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import string
from collections.abc import Callable, Mapping, Sequence

from tagreel.download import File
from tagreel.errors import DataError, RecipeError
from tagreel.web import Later, Patience, ask, network

MIRRORS = ("us", "eu", "asia")
LEVELS = ("frame", "video")
SPLITS = {
    "train": "2/{level}/train",
    "validate": "2/{level}/validate",
    "test": "2/{level}/test",
    "segments": "3/{level}/validate",
    "segments-test": "3/{level}/test",
}
"""The partitions of YouTube-8M under our names for them."""
ARCHIVE = "features.tar.gz"
_GOOGLE = "https://storage.googleapis.com"
_ARCHIVE_SHA256 = "cd95d500ab2422d4233cb822e25cf73033633e2068eab64d39024e85125cb760"
_LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits


def parse_shard(text: str) -> tuple[int, int]:
    """`1,100` as (1, 100): the first of a hundred parts."""
    found = re.fullmatch(r"([1-9]\d*),([1-9]\d*)", text)
    if not found or int(found[1]) > int(found[2]):
        raise RecipeError(f"--shard {text}: expected I,N with I from 1 to N, such as 1,100 for one hundredth")
    return int(found[1]), int(found[2])


def youtube8m(
    *,
    level: str = "frame",
    splits: Sequence[str] = ("train", "validate"),
    shard: tuple[int, int] = (1, 1),
    mirror: str = "us",
    base: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[File]:
    """The files of these splits, and the vocabularies; their plans are fetched for it.

    `base` is a server of one's own with the same paths. Raises `RecipeError` for a split, level or mirror
    there is none of, `DataError` when a plan cannot be had or is none.
    """
    _one_of("--level", level, LEVELS)
    _one_of("--mirror", mirror, MIRRORS)
    home = None if base is None else _server(base)
    plans, shards, vocabulary, ids = (
        (
            f"{_GOOGLE}/data.yt8m.org",
            f"{_GOOGLE}/{mirror}.data.yt8m.org",
            "https://research.google.com/youtube8m/csv/2/vocabulary.csv",
            "https://raw.githubusercontent.com/google/youtube-8m/master/segment_label_ids.csv",
        )
        if home is None
        else (home, home, f"{home}/vocabulary.csv", f"{home}/segment_label_ids.csv")
    )
    files = [File(vocabulary, "vocabulary.csv")]
    for split in splits:
        _one_of("--split", split, SPLITS)
        if split.startswith("segments"):
            if level != "frame":
                reason = f"rated segments are frame level; leave out --level {level}"
                raise RecipeError(f"--split {split}: {reason}")
            files.append(File(ids, "segment_label_ids.csv"))
    for split in splits:
        partition = SPLITS[split].format(level=level)
        version, _, kind = partition.split("/")
        plan = f"{plans}/{version}/download_plans/{level}_{kind}.json"
        for name, md5 in _read_plan(plan, kind, say).items():
            if _part(name, of=shard[1]) == shard[0]:
                path = f"{partition}/{_numbered(name)}"
                files.append(File(f"{shards}/{partition}/{name}", path, f"md5:{md5}"))
    return list(dict.fromkeys(files))


def audioset(*, mirror: str = "us", base: str | None = None) -> list[File]:
    """AudioSet's archive of features, the names of its classes and their ontology.

    `base` is a server of one's own with the same paths, whose archive may be another.
    """
    _one_of("--mirror", mirror, MIRRORS)
    home = f"{_GOOGLE}/{mirror}_audioset/youtube_corpus/v1" if base is None else _server(base)
    ontology = "https://raw.githubusercontent.com/audioset/ontology/master" if base is None else home
    return [
        File(f"{home}/csv/class_labels_indices.csv", "class_labels_indices.csv"),
        File(f"{ontology}/ontology.json", "ontology.json"),
        File(f"{home}/features/{ARCHIVE}", ARCHIVE, f"sha256:{_ARCHIVE_SHA256}" if base is None else ""),
    ]


def _read_plan(url: str, split: str, say: Callable[[str], None]) -> dict[str, str]:
    """The names and MD5s of a partition; a name that is none of the official ones is refused."""
    patience = Patience(url, say)
    while True:
        try:
            with ask(url) as response:
                content = response.read()
            break
        except (OSError, http.client.HTTPException) as error:
            patience.pause(Later(network(error)))
        except Later as problem:
            patience.pause(problem)
    try:
        files = json.loads(content)["files"]
        items = list(files.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError('is no download plan; expected {"files": {name: md5}}', path=url) from error
    for name, md5 in items:
        if not re.fullmatch(rf"{split}[a-zA-Z0-9]{{2}}\.tfrecord", name):
            raise DataError(f"names the file {name!r}; expected names like {split}aZ.tfrecord", path=url)
        if not isinstance(md5, str) or not re.fullmatch(r"[0-9a-f]{32}", md5):
            raise DataError(f"{name}: its md5 is {md5!r}; expected 32 hexadecimal digits", path=url)
    return dict(items)


def _part(name: str, *, of: int) -> int:
    """Which of so many parts a file belongs to, counted from 1."""
    return int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16) % of + 1


def _numbered(name: str) -> str:
    """`trainaZ.tfrecord` as the official script writes it to disk: train0051.tfrecord."""
    stem, _, ending = name.partition(".")
    first, second = map(_LETTERS.index, stem[-2:])
    return f"{stem[:-2]}{first * len(_LETTERS) + second:04}.{ending}"


def _one_of(option: str, value: str, known: Sequence[str] | Mapping[str, str]) -> None:
    if value not in known:
        raise RecipeError(f"{option} {value}: expected one of {', '.join(known)}")


def _server(base: str) -> str:
    if not re.fullmatch(r"https?://[\w.-]+(:\d+)?(/[^\s?#]*)?", base, re.ASCII):
        raise RecipeError(f"--base {base}: expected the address of a server, http://... or https://...")
    return base.rstrip("/")
