"""Against stores in memory, a real S3 server on this machine, and a proxy that drops connections to it."""

from __future__ import annotations

import builtins
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

import tagreel
from tagreel import remote, shards
from tagreel.errors import DataError, RecipeError, RemoteError
from tagreel.loader import Loader
from tagreel.provenance import Provenance
from tagreel.remote import Ahead, Cache, Facts, find
from tagreel.source import Source
from tests.conftest import REPOSITORY, payload_damaged, write_shard

WIDTHS = {"rgb": 12, "audio": 6}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAGREEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TAGREEL_CACHE_SIZE", raising=False)
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """An empty store in this process, memory://."""
    store = MemoryFileSystem()
    store.store.clear()
    yield store
    store.store.clear()


def upload(fs: Any, folder: Path, to: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            fs.pipe_file(f"{to}/{path.relative_to(folder)}", path.read_bytes())


def epoch(source: Source, **options: Any) -> list[Any]:
    """Two shuffled epochs, all that is in the batches."""
    loader = Loader(
        source, features=WIDTHS, classes=120, batch_size=8, **{"shuffle": True, "window": 2} | options
    )
    return [
        (
            number,
            batch.ids,
            batch.label_ids.tolist(),
            {k: v.numpy().tobytes() for k, v in batch.streams.items()},
        )
        for epoch in (0, 1)
        for number, batch in loader.epoch(epoch)
    ]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are fetched."""
    names: list[str] = []
    real = remote._fetch

    def noting(stored: remote.Stored, target: Path) -> None:
        names.append(stored.path.rpartition("/")[2])
        real(stored, target)

    monkeypatch.setattr(remote, "_fetch", noting)
    return names


def copies(cache: Path) -> dict[str, int]:
    """Which files have a copy, and its size."""
    return {path.name.partition("-")[2]: path.stat().st_size for path in (cache / "copies").iterdir()}


# ---------------------------------------------------------------------- a store as any other folder


def test_a_store_is_read_as_the_folder_that_was_uploaded(memory, shards, fetched):
    upload(memory, shards, "/bucket/data")
    (local, there) = Source(shards), Source("memory://bucket/data")
    assert [Path(path).name for path in there.paths] == [Path(path).name for path in local.paths]
    assert there.paths[0] == "memory://bucket/data/test0.tfrecord"
    assert (there.counts, there.formats) == (local.counts, local.formats)
    assert there.sizes() == local.sizes() == [os.path.getsize(path) for path in local.paths]
    assert there.ignored == ["memory://bucket/data/labels.txt"]
    assert there.fingerprint() == local.fingerprint()
    assert len(epoch(local)) == 38
    assert epoch(there) == epoch(local)
    assert sorted(fetched) == ["labels.txt", "test0.tfrecord", *(f"train{n}.tfrecord" for n in range(3))]


def test_folders_globs_and_files_come_in_the_order_of_a_local_disk(memory, tmp_path, planted):
    (tmp_path / "data" / "a" / "deep").mkdir(parents=True)
    (tmp_path / "data" / ".git").mkdir()
    for number, name in enumerate(
        ("z", "b", ".hidden", "a/z", "a/deep/a", "a/b", "a.b", ".git/x", "a/deep/.h")
    ):
        write_shard(tmp_path / "data" / f"{name}.tfrecord", planted.examples(number, 1))
    upload(memory, tmp_path / "data", "/data")
    patterns = ("", "/*", "/*.tfrecord", "/**/*.tfrecord", "/?.tfrecord", "/[ab]*", "/a", "/b.tfrecord")
    for pattern in patterns:
        local, there = Source(f"{tmp_path}/data{pattern}"), Source(f"memory://data{pattern}")
        assert [path.removeprefix("memory:/") for path in there.paths] == [
            path.removeprefix(str(tmp_path)) for path in local.paths
        ], pattern
        assert sorted(path.removeprefix("memory:/") for path in there.ignored) == sorted(
            path.removeprefix(str(tmp_path)) for path in local.ignored
        ), pattern
    named = ["data/z.tfrecord", "data/*", "data/z.tfrecord"]
    both = [Source([f"{root}{name}" for name in named]).paths for root in ("memory://", f"{tmp_path}/")]
    assert [Path(path).name for path in both[0]] == [Path(path).name for path in both[1]]


def test_a_file_url_is_a_local_path(shards, cache):
    source = Source(f"file://{shards}/train*")
    assert source.paths == Source(f"{shards}/train*").paths
    assert not cache.exists()


@pytest.mark.parametrize("ending", ["tfrecord.gz", "npz", "arrow"])
def test_every_format_is_read(ending, memory, tmp_path, planted):
    path = tmp_path / "data" / f"x.{ending}"
    path.parent.mkdir()
    examples = list(planted.examples(0, 30))
    if ending == "arrow":
        shards.write(path, examples)
    elif ending == "npz":
        lengths = [len(example.streams["rgb"]) for example in examples]
        np.savez(
            path,
            id=np.array([example.id for example in examples]),
            labels=np.concatenate([example.labels for example in examples]),
            label_offsets=np.cumsum([0, *(len(example.labels) for example in examples)]),
            frame_offsets=np.cumsum([0, *lengths]),
            **{name: np.concatenate([example.streams[name] for example in examples]) for name in WIDTHS},
        )
    else:
        write_shard(path, examples)
    upload(memory, tmp_path / "data", "/data")
    assert epoch(Source("memory://data")) == epoch(Source(tmp_path / "data"))


def test_a_damaged_record_is_told_under_the_url(memory, shards, tmp_path):
    path = tmp_path / "train0.tfrecord"
    path.write_bytes((shards / path.name).read_bytes())
    with payload_damaged(path, 3):
        memory.pipe_file("/data/train0.tfrecord", path.read_bytes())
    memory.pipe_file("/data/train1.tfrecord", b"")
    source = Source("memory://data")
    assert source.counts == [40, 1]
    with pytest.raises(DataError, match=r"^memory://data/train0\.tfrecord, record 3: the checksum of its"):
        source.open(0)[3]
    with pytest.raises(DataError, match=r"^memory://data/train1\.tfrecord, record 0: the file is empty"):
        source.open(1)[0]
    loader = Loader(source, features=WIDTHS, classes=120, batch_size=8, skip_damaged=2)
    assert sum(len(batch) for _, batch in loader.epoch()) == 39
    assert [(error.path, error.record) for error in loader.damaged.values()] == [
        ("memory://data/train0.tfrecord", 3),
        ("memory://data/train1.tfrecord", 0),
    ]


def test_what_no_reader_knows_and_what_is_empty_are_errors_that_name_the_url(memory):
    memory.pipe_file("/data/notes.txt", b"words")
    with pytest.raises(DataError, match=r"^memory://data/notes\.txt: no reader recognises it"):
        Source("memory://data/notes.txt")
    with pytest.raises(DataError, match=r"^memory://data: nothing to read here.*memory://data/notes\.txt$"):
        Source("memory://data")


def test_rated_segments_alone_say_how_to_read_them(memory, tmp_path):
    from tagreel.readers._tfexample import encode_sequence_example
    from tagreel.readers._tfrecord import write

    context = {"id": "a", "labels": [1], "segment_start_times": np.array([], np.int64)}
    write(tmp_path / "a.tfrecord", [encode_sequence_example(context, {"rgb": np.ones((6, 4), np.uint8)})])
    memory.pipe_file("/a.tfrecord", (tmp_path / "a.tfrecord").read_bytes())
    for _ in range(2):  # once found out, once noted
        with pytest.raises(DataError, match=r"^memory://a\.tfrecord: holds no rated segments; .*--whole"):
            Source("memory://a.tfrecord")
        assert len(Source("memory://a.tfrecord", whole_videos=True)) == 1


@pytest.mark.parametrize(
    ("url", "kind", "reason"),
    [
        ("memory://data/nowhere", DataError, "^memory://data/nowhere: no such file or folder$"),
        ("memory://data/no*", DataError, r"^memory://data/no\*: no file matches this pattern$"),
        ("s3x://bucket", RecipeError, r"^s3x://bucket: Protocol not known: s3x; expected s3://, gs://"),
    ],
)
def test_a_bad_url_is_one_line(url, kind, reason, memory):
    with pytest.raises(kind, match=reason):
        Source(url)


def test_a_missing_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "s3fs":
            raise ModuleNotFoundError("No module named 's3fs'", name="s3fs")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(
        RecipeError, match=r"^s3://b/x: reading it needs s3fs; pip install 'tagreel\[remote\]'$"
    ):
        Source("s3://b/x")


def test_a_source_travels_to_another_process(memory, shards):
    upload(memory, shards, "/data")
    source = Source("memory://data/train*")
    source.open(0)
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert again.open(1)[0].id == source.open(1)[0].id
    assert epoch(again) == epoch(source)


# ---------------------------------------------------------------------- what is known of shards


def test_what_is_known_needs_no_second_look(memory, shards, fetched, monkeypatch):
    upload(memory, shards, "/data")
    first = Source("memory://data")
    fetched.clear()
    for path in Cache.usual()._copies.iterdir():
        path.unlink()
    monkeypatch.setattr(MemoryFileSystem, "cat_file", None)
    monkeypatch.setattr(MemoryFileSystem, "open", None)
    again = Source("memory://data")
    assert (again.counts, again.formats, again.ignored) == (first.counts, first.formats, first.ignored)
    assert fetched == []


def test_a_shard_with_other_content_is_looked_at_again(memory, shards, fetched):
    upload(memory, shards, "/data")
    Source("memory://data/train0.tfrecord")
    memory.pipe_file("/data/train0.tfrecord", (shards / "train1.tfrecord").read_bytes())
    source = Source("memory://data/train0.tfrecord")
    assert source.counts == [30]
    assert fetched == ["train0.tfrecord", "train0.tfrecord"]


def test_the_end_of_an_arrow_shard_tells_all_that_is_needed_at_first(
    memory, tmp_path, planted, fetched, monkeypatch
):
    made = Provenance({"rgb": {"kind": "onnx", "projection": "abc"}}, {"abc": bytes(range(256))})
    names = [f"tag {n} ä" for n in range(120)]
    (tmp_path / "data").mkdir()
    for number in range(3):
        path = tmp_path / "data" / f"{number}.arrow"
        shards.write(path, planted.examples(500 * number, 500), label_names=names, provenance=made)
    upload(memory, tmp_path / "data", "/data")
    monkeypatch.setattr(remote, "_END", 1 << 12)
    local = Source(tmp_path / "data")
    for _ in range(2):  # found out, and noted
        there = Source("memory://data")
        assert (there.counts, there.label_names) == ([500] * 3, names)
        assert there.provenance == local.provenance == made
    assert fetched == []
    assert epoch(there, window=3) == epoch(local, window=3)
    assert sorted(fetched) == ["0.arrow", "1.arrow", "2.arrow"]


def test_an_arrow_file_of_others_or_a_damaged_one_is_fetched_to_be_counted(
    memory, tmp_path, planted, fetched
):
    width = pa.list_(pa.list_(pa.uint8(), 4))
    table = pa.table({"id": ["a", "b"], "rgb": pa.array([[[1, 2, 3, 4]]] * 2, width)})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    content = (tmp_path / "x.arrow").read_bytes()
    memory.pipe_file("/data/a.arrow", content)
    memory.pipe_file("/data/b.arrow", content[:-1])
    source = Source("memory://data")
    assert source.counts == [2, 1]
    assert sorted(fetched) == ["a.arrow", "b.arrow"]
    with pytest.raises(DataError, match=r"^memory://data/b\.arrow: it is damaged"):
        source.open(1)[0]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": "yt8m"}', b'{"about": "gone", "count": 1}']
)
def test_a_note_that_cannot_be_read_is_none(content, memory):
    memory.pipe_file("/x", b"1")
    (stored,), _ = find("memory://x", [])
    noted = Cache.usual()
    for facts in (Facts("yt8m", 3), Facts("npz", 2, ["a"]), Facts(None)):
        noted.note(stored, facts, whole_videos=False)
        assert noted.facts(stored, whole_videos=False) == facts
        assert noted.facts(stored, whole_videos=True) is None
    noted._note(stored, False).write_bytes(content)
    assert noted.facts(stored, whole_videos=False) is None


# ---------------------------------------------------------------------- the cache


def content(held: remote.Held | None) -> bytes:
    assert held is not None
    return held.path.read_bytes()


def files(memory: MemoryFileSystem, *sizes: int) -> list[remote.Stored]:
    for number, size in enumerate(sizes):
        memory.pipe_file(f"/files/{number}", bytes([number]) * size)
    return find("memory://files", [])[0]


def test_the_longest_unused_copies_go_and_those_in_use_stay(memory, tmp_path):
    stored = files(memory, 30, 30, 30, 40, 60)
    cache = Cache(tmp_path / "here", 100)
    kept = cache.hold(stored[0])
    for number in (1, 2):
        assert cache.hold(stored[number], force=False) is not None
    for number, age in ((0, 9), (1, 2), (2, 5)):
        os.utime(cache._copies / stored[number].key, (time.time() - age,) * 2)
    assert cache.hold(stored[3], force=False) is not None  # for which 2 has to go, the oldest that may
    assert sorted(copies(tmp_path / "here")) == ["0", "1", "3"]
    second = cache.hold(stored[4], force=False)
    assert sorted(copies(tmp_path / "here")) == ["0", "4"]
    assert cache.hold(stored[3], force=False) is None, "0 and 4 are in use"
    assert sorted(copies(tmp_path / "here")) == ["0", "4"], "nothing half made is left"
    assert cache.hold(stored[3], force=True) is not None
    assert content(kept) == bytes(30)
    assert content(second) == bytes([4]) * 60
    del kept
    assert cache.hold(stored[2], force=False) is not None
    assert "0" not in copies(tmp_path / "here")


def test_the_environment_says_where_and_how_much(monkeypatch, tmp_path):
    monkeypatch.setenv("TAGREEL_CACHE_SIZE", "0.5 GB")
    assert (Cache.usual().folder, Cache.usual().limit) == (tmp_path / "cache", 5 * 10**8)
    monkeypatch.delenv("TAGREEL_CACHE_SIZE")
    assert 0 < Cache.usual().limit <= remote.USUAL_SIZE
    for wrong in ("many", "inf", "nan"):
        monkeypatch.setenv("TAGREEL_CACHE_SIZE", wrong)
        with pytest.raises(RecipeError, match=f"^TAGREEL_CACHE_SIZE is '{wrong}'; expected a number of GB"):
            Cache.usual()
    monkeypatch.delenv("TAGREEL_CACHE_SIZE")
    monkeypatch.delenv("TAGREEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert Cache.usual().folder == tmp_path / "home" / "tagreel"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TAGREEL_CACHE", str(tmp_path / "file"))
    with pytest.raises(RecipeError, match=r"^TAGREEL_CACHE: .*file: cannot be written: "):
        Cache.usual()


def test_a_copy_that_was_cut_off_is_fetched_again(memory, tmp_path, fetched):
    (stored,) = files(memory, 30)
    cache = Cache(tmp_path / "here", 100)
    held = cache.hold(stored)
    assert held is not None
    held.path.write_bytes(b"short")
    assert content(cache.hold(stored)) == bytes(30)
    assert fetched == ["0", "0"]


def test_what_a_killed_process_left_half_made_goes(memory, tmp_path):
    stored = files(memory, 60, 60)
    cache = Cache(tmp_path / "here", 100)
    (cache._copies / f"{stored[0].key}.partial").write_bytes(bytes(60))
    assert cache.hold(stored[1], force=False) is not None
    assert list(copies(tmp_path / "here")) == ["1"]


def test_many_who_want_the_same_fetch_it_once(memory, tmp_path, fetched, monkeypatch):
    (stored,) = files(memory, 1000)
    real = remote._ranges

    def slow(*arguments: Any) -> Any:
        time.sleep(0.05)
        return real(*arguments)

    monkeypatch.setattr(remote, "_ranges", slow)
    found: list[Any] = []
    cache = Cache(tmp_path / "here", 10_000)
    threads = [threading.Thread(target=lambda: found.append(cache.hold(stored))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert fetched == ["0"]


def read_in_a_process(folder: str, url: str, path: str, out: Any) -> None:
    """Many files by way of a small cache, in another order for each process."""
    cache = Cache(Path(folder), 3 * 10_000)
    names = find(url, [])[0]
    rng = np.random.default_rng(os.getpid())
    wrong = []
    for number in rng.integers(0, len(names), 40).tolist():
        held = cache.hold(names[number])
        assert held is not None
        content = held.path.read_bytes() if number % 2 else open(held.path, "rb").read()  # noqa: SIM115
        if content != Path(path, Path(names[number].path).name).read_bytes():
            wrong.append(number)
    out.put(wrong)


def test_processes_share_a_small_cache_and_each_reads_what_is_there(tmp_path, web):
    (tmp_path / "data").mkdir()
    for number in range(8):
        (tmp_path / "data" / f"{number}").write_bytes(bytes([number]) * (9000 + number))
    url = web(tmp_path / "data")
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    arguments = (str(tmp_path / "here"), f"{url}/", str(tmp_path / "data"), out)
    processes = [context.Process(target=read_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [out.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    assert found == [[]] * 2
    assert not [name for name in copies(tmp_path / "here") if name.endswith(".partial")]


# ---------------------------------------------------------------------- fetched before it is needed


def test_a_cache_smaller_than_the_data_gives_the_same_batches(memory, tmp_path, planted, monkeypatch, cache):
    (tmp_path / "data").mkdir()
    for number in range(8):
        write_shard(tmp_path / "data" / f"{number}.tfrecord", planted.examples(20 * number, 20))
    upload(memory, tmp_path / "data", "/data")
    expected = epoch(Source(tmp_path / "data"), threads=2)
    assert len(expected) == 40
    size = max(Source("memory://data").sizes())
    for path in (cache / "copies").iterdir():
        path.unlink()
    monkeypatch.setenv("TAGREEL_CACHE_SIZE", str(4.2 * size / 1e9))
    source, most = Source("memory://data", keep_open=3), 0
    real = remote._fetch

    def watching(stored: remote.Stored, target: Path) -> None:
        nonlocal most
        most = max(most, sum(copies(cache).values()))
        real(stored, target)

    monkeypatch.setattr(remote, "_fetch", watching)
    assert epoch(source, threads=2) == expected
    assert 2 * size < most <= 4.2 * size


def test_shards_are_there_before_they_are_needed(memory, tmp_path, planted, fetched, cache):
    (tmp_path / "data").mkdir()
    names = [f"{number}.tfrecord" for number in range(6)]
    for number, name in enumerate(names):
        write_shard(tmp_path / "data" / name, planted.examples(20 * number, 20))
    upload(memory, tmp_path / "data", "/data")
    source = Source("memory://data")
    for path in (cache / "copies").iterdir():
        path.unlink()
    fetched.clear()
    batches = Loader(source, features=WIDTHS, classes=120, batch_size=20, ahead=1).epoch()
    next(batches)  # with which the loader has gone no further than the third shard
    deadline = time.monotonic() + 10
    while len(fetched) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(fetched) == names
    assert len(list(batches)) == 5
    assert len(fetched) == 6


def test_a_file_fetched_ahead_is_kept_until_its_last_step(memory, tmp_path):
    stored = files(memory, 20, 20, 20, 20)
    cache = Cache(tmp_path / "here", 100)
    ahead = Ahead(cache, [(stored[0], 1), (stored[1], 0), (stored[2], 5), (stored[3], 6)])

    def there() -> list[str]:
        return sorted(name for name in copies(tmp_path / "here") if not name.endswith(".partial"))

    def soon(names: list[str]) -> None:
        deadline = time.monotonic() + 10
        while there() != names and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert there() == names

    soon(["0", "1"])  # half of the cache
    ahead.done(0)
    soon(["0", "1", "2"])
    ahead.done(5)
    soon(["0", "1", "2", "3"])
    assert cache.hold(find("memory://files/0", [])[0][0], force=False) is not None
    memory.pipe_file("/more", bytes(80))
    assert cache.hold(find("memory://more", [])[0][0], force=False) is not None
    assert there() == ["3", "more"]
    ahead.close()


def test_a_cache_too_small_for_what_is_read_at_once_is_told_at_the_start(memory, shards, monkeypatch):
    upload(memory, shards, "/data")
    size = sum(Source("memory://data/train*").sizes())
    monkeypatch.setenv("TAGREEL_CACHE_SIZE", f"{0.9 * size / 1e9:.12f}")
    source = Source("memory://data/train*")
    with pytest.raises(
        RecipeError, match=r"^TAGREEL_CACHE_SIZE: the cache .* takes .* GB, and files of .* GB"
    ):
        epoch(source, window=3)
    assert epoch(source, window=1, shuffle=False) == epoch(Source(f"{shards}/train*"), shuffle=False)


def test_reading_without_a_plan_closes_shards_to_make_room(memory, shards, monkeypatch, cache):
    upload(memory, shards, "/data")
    sizes = Source("memory://data/train*").sizes()
    monkeypatch.setenv("TAGREEL_CACHE_SIZE", str(2 * max(sizes) / 1e9))
    for path in (cache / "copies").iterdir():
        path.unlink()
    source = Source("memory://data/train*")
    for number in (0, 1, 2, 0, 1, 2):
        assert source.open(number)[0].id
        assert sum(copies(cache).values()) <= 2 * max(sizes)


def test_an_epoch_from_the_middle_fetches_what_is_left(memory, tmp_path, planted, fetched, cache):
    (tmp_path / "data").mkdir()
    for number in range(4):
        write_shard(tmp_path / "data" / f"{number}.tfrecord", planted.examples(20 * number, 20))
    upload(memory, tmp_path / "data", "/data")
    source = Source("memory://data")
    for path in (cache / "copies").iterdir():
        path.unlink()
    fetched.clear()
    loader = Loader(source, features=WIDTHS, classes=120, batch_size=8)
    assert [number for number, _ in loader.epoch(start=6)] == [6, 7, 8, 9]
    assert sorted(fetched) == ["2.tfrecord", "3.tfrecord"]


# ---------------------------------------------------------------------- stores that fail


class Broken:
    """What a store in memory does to requests: `next` is what it answers before it answers as it should."""

    def __init__(self) -> None:
        self.next: list[Any] = []
        self.asked: list[tuple[int | None, int | None]] = []


@pytest.fixture
def broken(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> Broken:
    broken, real = Broken(), MemoryFileSystem.cat_file

    def cat_file(self: Any, path: str, start: Any = None, end: Any = None, **more: Any) -> Any:
        broken.asked.append((start, end))
        answer = broken.next.pop(0) if broken.next else None
        if isinstance(answer, Exception):
            raise answer
        content = real(self, path, start=start, end=end)
        return answer(content) if answer is not None else content

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    monkeypatch.setattr(remote, "PART", 10)
    monkeypatch.setattr(remote, "ABREAST", 3)
    memory.pipe_file("/x", CONTENT)
    return broken


CONTENT = bytes(range(75))


def fetch(tmp_path: Path) -> bytes:
    (stored,), _ = find("memory://x", [])
    held = Cache(tmp_path / "here", 10**6).hold(stored)
    assert held is not None
    return held.path.read_bytes()


def test_a_large_file_is_fetched_in_parts(broken, tmp_path):
    assert fetch(tmp_path) == CONTENT
    assert sorted(broken.asked) == [(at, min(at + 10, 75)) for at in range(0, 75, 10)]


def test_what_fails_is_asked_for_again_and_nothing_else(broken, tmp_path):
    broken.next = [None, OSError("reset"), None, TimeoutError(), lambda part: part[:4]]
    assert fetch(tmp_path) == CONTENT
    assert len(broken.asked) == 8 + 3
    assert set(broken.asked) == {(at, min(at + 10, 75)) for at in range(0, 75, 10)}


def test_a_store_that_does_not_answer_is_given_up(broken, tmp_path, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(remote, "PAUSE", 1.0)
    monkeypatch.setattr(time, "sleep", pauses.append)
    broken.next = [OSError("connection reset")] * 99
    with pytest.raises(RemoteError, match=r"^memory://x: gave up after 6 tries: connection reset; the same"):
        fetch(tmp_path)
    assert len(pauses) == 5
    assert all(2**n / 2 <= pause <= 2**n for n, pause in enumerate(pauses))
    assert copies(tmp_path / "here") == {}
    broken.next = [OSError("connection reset")] * 5  # after which it goes on
    assert fetch(tmp_path) == CONTENT


class RefusedError(Exception):
    status = 403


@pytest.mark.parametrize(
    "error",
    [PermissionError("Access Denied"), RefusedError("Access Denied"), FileNotFoundError("Access Denied")],
)
def test_a_refusal_is_not_tried_again(error, broken, tmp_path):
    broken.next = [error] * 9
    with pytest.raises(RemoteError, match=r"^memory://x: (refused:|is not there) .*Access Denied"):
        fetch(tmp_path)
    assert len(broken.asked) == 1


def test_a_server_that_knows_no_ranges_is_read_at_once(broken, tmp_path):
    broken.next = [lambda part: CONTENT]
    assert fetch(tmp_path) == CONTENT
    assert len(broken.asked) == 1


def test_content_that_changes_while_it_is_fetched_is_noticed(broken, memory, tmp_path):

    def change(part: bytes) -> bytes:
        memory.pipe_file("/x", CONTENT[::-1])
        return part

    broken.next = [None, change]
    with pytest.raises(
        RemoteError, match=r"^memory://x: it was 75 bytes \(created .*\) when .* and is now 75"
    ):
        fetch(tmp_path)
    assert copies(tmp_path / "here") == {}
    assert fetch(tmp_path) == CONTENT[::-1], "listed anew it is what it is"


def test_a_file_that_shrinks_while_it_is_fetched_is_noticed(broken, memory, tmp_path):

    def cut(part: bytes) -> bytes:
        memory.pipe_file("/x", CONTENT[:20])
        return part

    broken.next = [cut]
    with pytest.raises(RemoteError, match=r"^memory://x: it was 75 bytes .* and is now 20 bytes"):
        fetch(tmp_path)


def test_a_shard_that_changed_in_mid_run_ends_it_even_if_damage_is_skipped(memory, shards, cache):
    upload(memory, shards, "/data")
    source = Source("memory://data/train*")
    for path in (cache / "copies").iterdir():
        path.unlink()
    memory.pipe_file("/data/train1.tfrecord", (shards / "train2.tfrecord").read_bytes())
    with pytest.raises(
        RemoteError, match=r"^memory://data/train1\.tfrecord: it was .* give the command again"
    ):
        epoch(source, skip_damaged=1000)


def test_a_full_disk_is_one_line(memory, tmp_path, monkeypatch):
    (stored,) = files(memory, 30)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote, "_fetch", full)
    with pytest.raises(RemoteError, match=r"here: cannot be written: No space left on device; TAGREEL_CACHE"):
        Cache(tmp_path / "here", 100).hold(stored)
    assert copies(tmp_path / "here") == {}


# ---------------------------------------------------------------------- web servers


@pytest.fixture
def web() -> Iterator[Callable[[Path], str]]:
    """Serves folders with Python's own web server, which knows no ranges."""
    pytest.importorskip("aiohttp", reason="needs aiohttp: pip install 'tagreel[remote]'")
    servers = []

    def serve(folder: Path) -> str:
        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(folder))

            def log_message(self, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_web_server_is_read_as_the_folder_it_serves(web, shards, monkeypatch):
    url = web(shards)
    monkeypatch.setattr(remote, "PART", 1000)
    assert Source(f"{url}/train0.tfrecord").counts == [40]
    there, local = Source(f"{url}/"), Source(shards)
    assert [Path(path).name for path in there.paths] == [Path(path).name for path in local.paths]
    assert there.versions()[0].startswith("Last-Modified ")
    assert epoch(there) == epoch(local)
    with pytest.raises(DataError, match=r"/gone\.tfrecord: no such file or folder$"):
        Source(f"{url}/gone.tfrecord")


def test_a_server_that_is_not_there_is_one_line(web):
    with pytest.raises(RemoteError, match=r"^http://127\.0\.0\.1:1/x: gave up after 3 tries: .*; the same"):
        Source("http://127.0.0.1:1/x")


# ---------------------------------------------------------------------- S3


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of an S3 server in a process of its own, moto."""
    for package, extra in (("s3fs", "remote"), ("moto", "dev"), ("flask_cors", "dev")):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'tagreel[{extra}]'")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            found = next(
                filter(None, (re.search(r"Running on (http://\S+)", line) for line in process.stdout))
            )
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield found[1]
        finally:
            process.terminate()


class Proxy(ThreadingHTTPServer):
    """Before the S3 server: does to GETs of objects what `next` lists, and notes who asked for what."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Between)
        self.upstream = upstream
        self.next: list[str] = []
        self.gets: list[str] = []

    def handle_error(self, *where: object) -> None:
        pass  # a client that went away


class Between(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        is_object = self.path.partition("?")[0].count("/") > 1 and self.command == "GET"
        if is_object:
            self.server.gets.append(self.path)
        behaviour = self.server.next.pop(0) if is_object and self.server.next else ""
        if behaviour == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
        asked = urllib.request.Request(
            self.server.upstream + self.path, data=body, headers=headers, method=self.command
        )
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                status, given, content = answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, given, content = error.code, error.headers, error.read()
        self.send_response(status)
        for name, value in given.items():
            if name.lower() not in ("connection", "content-length", "date", "server", "transfer-encoding"):
                self.send_header(name, value)
        length = given.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        if behaviour == "drop":
            content = content[: len(content) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def proxy(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with Proxy(s3_server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "one",
            "AWS_SECRET_ACCESS_KEY": "two",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()


@pytest.fixture(scope="module")
def uploaded(s3_server: str, shards: Path) -> str:
    """A bucket with the planted shards; nobody writes into it."""
    import s3fs

    fs = s3fs.S3FileSystem(endpoint_url=s3_server, key="one", secret="two")
    fs.mkdir("planted")
    upload(fs, shards, "planted/data")
    return "planted"


@pytest.fixture
def bucket(uploaded: str, proxy: Proxy) -> str:
    return uploaded


def test_s3_gives_the_same_batches_in_the_same_order(bucket, shards, proxy):
    there, local = Source(f"s3://{bucket}/data/train*"), Source(f"{shards}/train*")
    assert there.paths == [f"s3://{bucket}/data/train{number}.tfrecord" for number in range(3)]
    assert all(version.startswith("ETag ") for version in there.versions())
    assert there.fingerprint() == local.fingerprint()
    assert epoch(there) == epoch(local)
    assert Source(f"s3://{bucket}/data/").paths == Source(f"s3://{bucket}/data").paths
    assert len(proxy.gets) == 5 + 5, "a look at the end, and one fetch, of each file once"


def test_dropped_connections_and_busy_servers_are_tried_again(bucket, shards, proxy, fetched):
    expected = epoch(Source(f"{shards}/train*"))
    proxy.next = ["", "", "", *["drop", "503", "503", "drop", "503"] * 2]
    assert epoch(Source(f"s3://{bucket}/data/train*")) == expected
    assert proxy.next == []
    assert sorted(fetched) == ["train0.tfrecord", "train1.tfrecord", "train2.tfrecord"]


def test_an_s3_server_that_stays_busy_is_given_up_in_one_line(bucket, proxy, monkeypatch, cli):
    monkeypatch.setattr(remote, "TRIES", 3)
    proxy.next = ["503"] * 10_000
    code, _, err = cli("check", f"s3://{bucket}/data/train0.tfrecord")
    assert code == 2
    assert re.fullmatch(
        rf"tagreel: s3://{bucket}/data/train0\.tfrecord: gave up after 3 tries: .*Service Unavailable; the "
        r"same command goes on .*AWS_ENDPOINT_URL\n",
        err,
    )


@pytest.mark.parametrize("name", ["no-such-bucket/data", "no-such-bucket/*", "{}/nowhere", "{}/no*.npz"])
def test_a_missing_bucket_or_key_says_where_s3fs_looks(name, bucket, cli):
    code, _, err = cli("check", f"s3://{name.format(bucket)}")
    assert code == 2
    assert re.fullmatch(
        r"tagreel: s3://\S+: no (such file or folder|file matches this pattern); s3fs takes keys from "
        r"AWS_ACCESS_KEY_ID .*, and the server from AWS_ENDPOINT_URL\n",
        err,
    )


def test_missing_credentials_say_which_variables_count(bucket, cli, monkeypatch, tmp_path):
    import s3fs

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    code, _, err = cli("check", f"s3://{bucket}/data")
    assert code == 2
    assert err.startswith(
        f"tagreel: s3://{bucket}/data: refused: Unable to locate credentials; s3fs takes keys"
    )
    assert err.count("\n") == 1


def test_a_shard_replaced_on_s3_is_noticed_by_its_etag(proxy, shards, cache):
    import s3fs

    fs = s3fs.S3FileSystem(endpoint_url=proxy.upstream)
    fs.mkdir("replaced")
    upload(fs, shards, "replaced")
    source = Source("s3://replaced/train*")
    for path in (cache / "copies").iterdir():
        path.unlink()
    content = (shards / "train0.tfrecord").read_bytes()
    fs.pipe_file("replaced/train0.tfrecord", content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RemoteError, match=r"train0\.tfrecord: it was .* \(ETag \w+\) .* \(ETag \w+\); give"):
        epoch(source)


def test_commands_take_urls(bucket, shards, run, cli, tmp_path):
    url = f"s3://{bucket}/data"
    code, out, err = cli("check", f"{url}/test*", "--json")
    assert (code, json.loads(out.splitlines()[-1])["examples"]) == (0, 50), err

    code, out, err = cli("convert", f"{url}/train*", "--out", tmp_path / "there", "--shard-size", "20kB")
    assert code == 0, err
    cli("convert", f"{shards}/train*", "--out", tmp_path / "here", "--shard-size", "20kB")
    made = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert len(made) > 3
    for name in made:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    code, out, err = cli("convert", f"{url}/train*", "--out", tmp_path / "there", "--shard-size", "20kB")
    assert (code, f"{len(made)} of them there already" in out) == (0, True), err

    written = set()
    for _ in range(2):
        code, out, err = cli("segments", f"{url}/test*", "--out", tmp_path / "segments")
        assert code == 0, err
        written |= {(path.name, path.stat().st_ino) for path in (tmp_path / "segments").iterdir()}
    assert len(written) == 1, "the second time it was there"

    scores = []
    for data in (url, shards):
        code, out, err = cli("evaluate", run, "--data", f"{data}/test*", "--report", tmp_path / "r", "--json")
        assert code == 0, err
        scores.append({k: v for k, v in json.loads(out.splitlines()[-1]).items() if k != "report"})
        code, _, err = cli(
            "predict", run, "--data", f"{data}/test*", "--out", tmp_path / f"{len(scores)}.parquet"
        )
        assert code == 0, err
    assert scores[0] == scores[1]
    assert pq.read_table(tmp_path / "1.parquet").equals(pq.read_table(tmp_path / "2.parquet"))


def test_output_to_a_store_is_refused(shards, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("convert", f"{shards}/train*", "--out", "s3://bucket/there")
    assert code == 2
    assert err.startswith("tagreel: --out s3:/bucket/there: expected a local folder")
    assert list(tmp_path.iterdir()) == []


def test_a_training_begun_on_disk_goes_on_from_s3_to_the_same_weights(
    bucket, tiny, shards, tmp_path, planted
):
    from tagreel.train import train

    class StopError(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["event"] == "checkpoint":
            raise StopError

    weights = []
    local, there = f"{shards}/train*", f"s3://{bucket}/data/train*"
    for out, data in ((tmp_path / "a", local), (tmp_path / "b", there), (tmp_path / "c", there)):
        options = {"label_names": planted.label_names, "out": out, "device": "cpu", "save_minutes": 0.0}
        if out.name == "c":
            with pytest.raises(StopError):
                train(tiny, data=Source(local), on_event=stop, **options)
        train(tiny, data=Source(data), resume=out.name == "c", **options)
        weights.append(tagreel.load(out, checkpoint="last").state_dict())
    for others in weights[1:]:
        assert weights[0].keys() == others.keys()
        assert all(torch.equal(weights[0][name], others[name]) for name in others)


def test_a_prediction_from_s3_that_was_killed_goes_on(bucket, run, tmp_path, cli, proxy, monkeypatch):
    code = (
        "import sys, time, tagreel.predict, tagreel.cli, tagreel.loader;"
        "tagreel.predict.PART_VIDEOS = 8; real = tagreel.loader.collate;"
        "tagreel.loader.collate = lambda *a, **k: (time.sleep(0.05), real(*a, **k))[1];"
        "sys.exit(tagreel.cli.run(sys.argv[1:]))"
    )
    arguments = [
        "predict",
        run,
        "--data",
        f"s3://{bucket}/data/train*",
        "--batch-size",
        "4",
        "--device",
        "cpu",
    ]
    out = tmp_path / "tags.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments), "--out", str(out)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("tags.jsonl.parts/*.parquet"))) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not out.exists()
    monkeypatch.setattr("tagreel.predict.PART_VIDEOS", 8)
    assert cli(*arguments, "--out", tmp_path / "whole.jsonl")[0] == 0
    status, printed, err = cli(*arguments, "--out", out)
    assert status == 0, err
    assert "an earlier run had left" in printed
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
