"""Against a local server that behaves as badly as the internet does."""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tagreel import download as module
from tagreel import official, web
from tagreel import unpack as unpacking
from tagreel.download import STATE, Downloaded, File, Progress, download, estimate
from tagreel.errors import DataError, RecipeError
from tagreel.official import ARCHIVE, audioset, parse_shard, youtube8m
from tagreel.unpack import unpack
from tests.conftest import REPOSITORY

Behaviour = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; what `server.next[path]` lists comes first, a behaviour a request."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.close_connection = True
        asked = self.headers.get("Range")
        self.server.requests.append((self.command, self.path, asked))
        content = self.server.files.get(self.path)
        waiting = self.server.next.get(self.path, []) if self.command == "GET" else []
        if content is None:
            self.send_error(404)
        elif waiting:
            waiting.pop(0)(self, content)
        else:
            serve()(self, content)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.next: dict[str, list[Behaviour]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.sent: list[int] = []
        self.slow = 0.0
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *where: object) -> None:
        pass  # a client that went away

    def gets(self, path: str) -> list[str | None]:
        return [asked for method, name, asked in self.requests if (method, name) == ("GET", path)]


def etag(content: bytes) -> str:
    return f'"{hashlib.sha1(content).hexdigest()}"'


def serve(
    *,
    stop_at: int | None = None,
    ranges: bool = True,
    heed_if_range: bool = True,
    tag: str = "{}",
    length: int | None = None,
    spoilt: bool = False,
    stall_at: int | None = None,
    chunked: bool = False,
) -> Behaviour:
    """A file, or the range of it that was asked for; `stop_at` and `stall_at` count from there."""

    def behave(handler: Handler, content: bytes) -> None:
        start, status = 0, 200
        asked = handler.headers.get("Range")
        condition = handler.headers.get("If-Range")
        if asked and ranges and (not heed_if_range or condition in (None, etag(content))):
            start, status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
            if start >= len(content):
                status = 416
        handler.send_response(status)
        if tag:
            handler.send_header("ETag", tag.format(etag(content)))
        if status == 416:
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body = content[start:]
        if spoilt:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        end = next((at for at in (stop_at, stall_at) if at is not None), len(body))
        for at in range(0, end, 1 << 14):
            piece = body[at : min(at + (1 << 14), end)]
            handler.server.sent.append(len(piece))
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            time.sleep(handler.server.slow)
        if stall_at is not None:
            handler.server.released.wait(20)
        elif chunked and stop_at is None:
            handler.wfile.write(b"0\r\n\r\n")

    return behave


def answer(status: int, **headers: str) -> Behaviour:
    def behave(handler: Handler, content: bytes) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return behave


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.released.set()
        found.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PAUSE", 0.002)
    monkeypatch.setattr(web, "TIMEOUT", 0.3)


def noise(name: str, size: int = 200_000) -> bytes:
    return random.Random(name).randbytes(size)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def put(server: Server, name: str, *, known: bool = True, size: int = 200_000) -> File:
    """A file on the server, with its checksum unless it is not `known`."""
    content = server.files[f"/{name}"] = noise(name, size)
    return File(f"{server.url}/{name}", name, f"md5:{md5(content)}" if known else "")


def put_partition(server: Server, partition: str, names: list[str], size: int = 50_000) -> None:
    version, level, split = partition.split("/")
    for name in names:
        server.files[f"/{partition}/{name}"] = noise(f"{partition}/{name}", size)
    plan = {"files": {name: md5(server.files[f"/{partition}/{name}"]) for name in names}}
    server.files[f"/{version}/download_plans/{level}_{split}.json"] = json.dumps(plan).encode()


def found(out: Path) -> dict[str, bytes]:
    """What a reader of the folder sees."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and STATE not in path.parts
    }


def only(server: Server, file: File, out: Path, **options) -> Downloaded:
    """Download one file and see that it is right."""
    done = download([file], out, **options)
    assert (done.failed, found(out)) == ({}, {file.path: server.files[f"/{file.path}"]})
    return done


NAMES = [f"train{''.join(pair)}.tfrecord" for pair in itertools.product("aZ09", repeat=2)]


def test_a_plan_becomes_files_with_the_names_that_the_official_script_gives_them(server):
    put_partition(server, "2/frame/train", NAMES)
    vocabulary, *files = youtube8m(splits=["train"], base=server.url)
    assert vocabulary == File(f"{server.url}/vocabulary.csv", "vocabulary.csv")
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    number = {"".join(pair): n for n, pair in enumerate(itertools.product(letters, repeat=2))}
    assert files == [
        File(
            f"{server.url}/2/frame/train/{name}",
            f"2/frame/train/train{number[name[5:7]]:04}.tfrecord",
            f"md5:{md5(server.files[f'/2/frame/train/{name}'])}",
        )
        for name in NAMES
    ]
    assert {file.path[-13:] for file in files} >= {"0000.tfrecord", "3843.tfrecord"}


def test_a_shard_is_the_files_that_the_official_script_takes(server):
    put_partition(server, "2/video/validate", [name.replace("train", "validate") for name in NAMES])
    parts = [
        {
            file.url[-19:]
            for file in youtube8m(level="video", splits=["validate"], shard=(i, 5), base=server.url)[1:]
        }
        for i in range(1, 6)
    ]
    assert parts[1] == {
        f"{name}"
        for name in (name.replace("train", "validate") for name in NAMES)
        if int(hashlib.md5(name.encode()).hexdigest(), 16) % 5 == 1
    }
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(NAMES)
    assert all(parts)


def test_segments_are_of_2019_and_bring_their_classes(server):
    put_partition(server, "3/frame/validate", ["validateaa.tfrecord"])
    put_partition(server, "3/frame/test", ["testaa.tfrecord"])
    files = youtube8m(splits=["segments", "segments-test", "segments"], base=f"{server.url}/")
    assert [file.path for file in files] == [
        "vocabulary.csv",
        "segment_label_ids.csv",
        "3/frame/validate/validate0000.tfrecord",
        "3/frame/test/test0000.tfrecord",
    ]


def test_official_addresses(monkeypatch, server):
    asked = []
    monkeypatch.setattr(
        official, "_read_plan", lambda url, *_: asked.append(url) or {"trainab.tfrecord": "0" * 32}
    )
    files = youtube8m(splits=["train"], mirror="asia")
    assert asked == ["https://storage.googleapis.com/data.yt8m.org/2/download_plans/frame_train.json"]
    assert files[1].url == "https://storage.googleapis.com/asia.data.yt8m.org/2/frame/train/trainab.tfrecord"
    assert files[0].url == "https://research.google.com/youtube8m/csv/2/vocabulary.csv"
    archive = audioset(mirror="eu")[-1]
    home = "https://storage.googleapis.com/eu_audioset/youtube_corpus/v1"
    assert (archive.url, len(archive.checksum)) == (f"{home}/features/features.tar.gz", len("sha256:") + 64)


@pytest.mark.parametrize(
    "options",
    [{"level": "frames"}, {"splits": ["valid"]}, {"mirror": "uk"}, {"level": "video", "splits": ["segments"]}]
    + [{"base": base} for base in ("ftp://x", "nonsense", "file:///etc", "http://a b/", "http://[x", "")],
)
def test_options_there_are_none_of(options):
    with pytest.raises(RecipeError, match=r"expected|leave out"):
        youtube8m(**options)


@pytest.mark.parametrize("text", ["0,100", "101,100", "1", "1,", "a,b", "1,0", "-1,2", "1,2,3", ""])
def test_shards_that_are_none(text):
    assert parse_shard("100,100") == (100, 100)
    with pytest.raises(RecipeError, match="expected I,N with I from 1 to N"):
        parse_shard(text)


@pytest.mark.parametrize(
    "name",
    [
        "../trainaa.tfrecord",
        "/etc/trainaa.tfrecord",
        "train/../../x.tfrecord",
        "C:\\trainaa.tfrecord",
        "trainaa.tfrecord\n",
        "trainaa.tfrecord.py",
        "testaa.tfrecord",
        "train..tfrecord",
        "trainäa.tfrecord",
        "",
    ],
)
def test_hostile_names_in_a_plan_are_refused(server, name):
    plan = {"files": {"trainaa.tfrecord": "0" * 32, name: "0" * 32}}
    server.files["/2/download_plans/frame_train.json"] = json.dumps(plan).encode()
    with pytest.raises(DataError, match=r"frame_train\.json: names the file .*expected names like trainaZ"):
        youtube8m(splits=["train"], base=server.url)


@pytest.mark.parametrize(
    "plan", [b"<html>", b"[]", b'{"files": []}', b'{"files": {"trainaa.tfrecord": 1}}', b"\xff"]
)
def test_what_is_no_plan_is_told(server, plan):
    server.files["/2/download_plans/frame_train.json"] = plan
    with pytest.raises(DataError, match=r"frame_train\.json: .*expected"):
        youtube8m(splits=["train"], base=server.url)


def test_a_plan_is_asked_for_again_and_one_that_is_missing_is_told(server):
    put_partition(server, "2/frame/train", NAMES)
    path = "/2/download_plans/frame_train.json"
    server.next[path] = [answer(503), serve(stop_at=100), serve(stall_at=10)]
    assert len(youtube8m(splits=["train"], base=server.url)) == 1 + len(NAMES)
    assert len(server.gets(path)) == 4
    with pytest.raises(DataError, match=r"frame_test\.json: the server says 404"):
        youtube8m(splits=["test"], base=server.url)


def test_files_come_whole_and_are_not_asked_for_again(server, tmp_path):
    files = [put(server, f"a/{n}") for n in range(9)] + [put(server, "names.csv", known=False)]
    seen: list[Progress] = []
    done = download(files, tmp_path / "new" / "out", jobs=3, on_progress=seen.append)
    assert (done.fetched, done.kept, done.received, done.failed) == (10, 0, 2_000_000, {})
    assert found(tmp_path / "new" / "out") == {file.path: server.files[f"/{file.path}"] for file in files}
    last = seen[-1]
    assert (last.files, last.whole, last.bytes, last.total, last.received) == (10, 10, *[2_000_000] * 3)
    server.requests.clear()
    again = download(files, tmp_path / "new" / "out")
    assert (again.fetched, again.kept, again.received, server.requests) == (0, 10, 0, [])


def test_a_connection_that_drops_at_random_is_taken_up_where_it_was(server, tmp_path):
    rng = random.Random(3)
    for number in range(8):
        file = put(server, f"f{number}", known=number % 2 == 0)
        drops = [rng.randrange(1, 60_000) for _ in range(6)]
        server.next[f"/f{number}"] = [serve(stop_at=at) for at in drops]
        server.sent.clear()
        only(server, file, tmp_path / str(number))
        assert sum(server.sent) == 200_000, "a byte was sent twice"
        starts = [0, *itertools.accumulate(drops)]
        expected = [None, *(f"bytes={start}-" for start in starts[1:])]
        gets = server.gets(f"/f{number}")
        assert gets == expected[: len(gets)]


def test_it_has_more_patience_than_tries_while_there_is_progress(server, tmp_path):
    file = put(server, "f")
    server.next["/f"] = [serve(stop_at=5_000) for _ in range(3 * web.TRIES)]
    only(server, file, tmp_path)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "bad",
    [
        {"stop_at": 50_000, "tag": ""},
        {"stop_at": 50_000, "tag": "W/{}"},
        {"stop_at": 50_000, "chunked": True},
        {"stall_at": 50_000},
        {"stop_at": 0},
        {"length": 250_000},
    ],
    ids=str,
)
def test_transfers_that_break_off(server, tmp_path, bad, known):
    file = put(server, "f", known=known)
    server.next["/f"] = [serve(**bad), serve(**bad)]
    began = time.monotonic()
    only(server, file, tmp_path)
    assert time.monotonic() - began < 15, "a silent server is not waited for"


@pytest.mark.parametrize("tag", ["", "W/{}"])
def test_what_a_server_does_not_vouch_for_is_not_built_upon(server, tmp_path, tag):
    file = put(server, "f", known=False)
    server.next["/f"] = [serve(stop_at=50_000, tag=tag)]
    only(server, file, tmp_path)
    assert server.gets("/f") == [None, None]


def test_a_server_that_knows_no_ranges(server, tmp_path):
    file = put(server, "f", known=False)
    server.next["/f"] = [serve(stop_at=70_000), serve(ranges=False, stop_at=30_000), serve(ranges=False)]
    only(server, file, tmp_path)


@pytest.mark.parametrize("heeds", [True, False], ids=["heeds If-Range", "does not"])
@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_changes_between_two_tries_is_not_glued_together(server, tmp_path, heeds, known):
    file = put(server, "f", known=known)

    def old(handler: Handler, content: bytes) -> None:
        serve(stop_at=90_000)(handler, noise("old", 180_000))

    server.next["/f"] = [old, serve(heed_if_range=heeds)]
    only(server, file, tmp_path)
    assert server.gets("/f") == [None, "bytes=90000-", *([] if heeds else [None])]


def test_a_range_other_than_the_one_asked_for_is_not_used(server, tmp_path):
    file = put(server, "f", known=False)

    def part(start: int, *, tag: bool = True) -> Behaviour:
        def behave(handler: Handler, content: bytes) -> None:
            handler.send_response(206)
            if tag:
                handler.send_header("ETag", etag(content))
            handler.send_header("Content-Range", f"bytes {start}-199999/200000")
            handler.send_header("Content-Length", str(200_000 - start))
            handler.end_headers()
            handler.wfile.write(content[start:])

        return behave

    server.next["/f"] = [part(7), serve(stop_at=10), part(7)]
    only(server, file, tmp_path)
    left = tmp_path / "again" / STATE / "f.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"left over")
    server.next["/f"] = [part(0, tag=False)]
    only(server, file, tmp_path / "again")


def test_a_file_cut_at_its_last_byte_is_not_fetched_again(server, tmp_path):
    """Killed after the last byte and before it had its name: the server has nothing more to give."""
    file = put(server, "f", known=False)
    partial = tmp_path / STATE / "f.partial"
    partial.parent.mkdir()
    partial.write_bytes(server.files["/f"])
    partial.with_name("f.partial.tag").write_text(etag(server.files["/f"]))
    assert only(server, file, tmp_path).received == 0
    assert server.gets("/f") == ["bytes=200000-"]


def test_bytes_of_unknown_origin_are_not_built_upon(server, tmp_path):
    file = put(server, "f", known=False)
    partial = tmp_path / STATE / "f.partial"
    partial.parent.mkdir()
    partial.write_bytes(b"x" * 300_000)
    only(server, file, tmp_path)
    assert server.gets("/f") == [None]


def test_wrong_bytes_are_fetched_again_once(server, tmp_path):
    files = [put(server, name) for name in ("a", "b", "c")]
    server.next["/a"] = [serve(spoilt=True)]
    server.next["/b"] = [serve(spoilt=True), serve(length=1000)]
    done = download(files, tmp_path)
    assert (done.fetched, list(done.failed)) == (2, ["b"])
    assert found(tmp_path) == {name: server.files[f"/{name}"] for name in "ac"}
    assert str(done.failed["b"]).startswith(f"{server.url}/b: its checksum is md5:")
    assert f"expected {files[1].checksum}, twice" in str(done.failed["b"])
    assert only(server, files[1], tmp_path / "later").fetched == 1


def test_a_server_that_says_later_is_asked_later(server, tmp_path):
    file = put(server, "f")
    server.next["/f"] = [answer(503, Retry_After="1"), answer(429), answer(500), answer(408)]
    began, told = time.monotonic(), []
    only(server, file, tmp_path, say=told.append)
    assert time.monotonic() - began >= 1
    assert told[0].startswith(f"{server.url}/f: the server says 429 Too Many Requests; again in")
    assert len(told) == 3, "the first is not worth a line"


def test_what_cannot_be_had_is_told_and_the_rest_fetched(server, tmp_path):
    files = [put(server, name) for name in "abcd"]
    del server.files["/a"]
    server.next["/b"] = [answer(403)]
    server.next["/c"] = [answer(503)] * 99
    done = download(files, tmp_path, jobs=1)
    assert found(tmp_path) == {"d": server.files["/d"]}
    assert {path: str(error).removeprefix(server.url) for path, error in done.failed.items()} == {
        "a": "/a: the server says 404 Not Found",
        "b": "/b: the server says 403 Forbidden",
        "c": f"/c: gave up after {web.TRIES} tries: the server says 503 Service Unavailable",
    }
    assert [len(server.gets(f"/{name}")) for name in "abc"] == [1, 1, web.TRIES]


def test_a_server_that_never_gets_on_is_given_up(server, tmp_path):
    file = put(server, "f")
    server.next["/f"] = [serve(ranges=False, stop_at=1000)] * 99
    done = download([file], tmp_path)
    assert "gave up after 8 tries: the connection ended after 1,000 of 200,000 bytes" in str(done.failed["f"])


def test_a_server_that_is_not_there(tmp_path, server):
    file = File("http://127.0.0.1:1/f", "f")
    done = download([file], tmp_path)
    assert "gave up after 8 tries: Connection refused" in str(done.failed["f"])


def test_redirects_are_followed_with_their_range(server, tmp_path):
    file = put(server, "f")
    server.files["/elsewhere"] = server.files["/f"]
    server.next["/f"] = [answer(302, Location="/elsewhere"), answer(307, Location="/elsewhere")]
    server.next["/elsewhere"] = [serve(stop_at=1234)]
    only(server, file, tmp_path)
    assert server.gets("/elsewhere") == [None, "bytes=1234-"]
    server.next["/g"] = [answer(302, Location="/g")] * 99
    server.files["/g"] = b""
    assert "302" in str(download([File(f"{server.url}/g", "g")], tmp_path).failed["g"])


def test_files_are_taken_by_size_and_with_verify_by_checksum(server, tmp_path):
    files = [put(server, "a"), put(server, "b", known=False), put(server, "c")]
    download(files, tmp_path)
    for name in "ab":
        (tmp_path / name).write_bytes(b"x" + server.files[f"/{name}"][1:])
    (tmp_path / "c").write_bytes(b"cut off")
    assert (download(files, tmp_path).kept, (tmp_path / "a").read_bytes()[:1]) == (2, b"x")
    told: list[str] = []
    done = download(files, tmp_path, verify=True, say=told.append)
    assert (done.kept, done.fetched, len(told)) == (1, 2, 2)
    assert found(tmp_path) == {file.path: server.files[f"/{file.path}"] for file in files}


@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_was_found_wrong_is_not_taken_by_its_size_again(server, tmp_path, known):
    file = put(server, "f", known=known)
    download([file], tmp_path)
    (tmp_path / "f").write_bytes(b"x" * 200_000)
    server.next["/f"] = [answer(404)] * 2
    for verify in (True, False):
        assert list(download([file], tmp_path, verify=verify).failed) == ["f"]
    only(server, file, tmp_path)


def test_files_from_elsewhere_are_taken_if_they_are_right(server, tmp_path):
    files = [put(server, "a"), put(server, "b")]
    (tmp_path / "a").write_bytes(server.files["/a"])
    (tmp_path / "b").write_bytes(b"x" * 200_000)
    done = download(files, tmp_path)
    assert (done.kept, done.fetched, server.gets("/a")) == (1, 1, [])
    assert found(tmp_path) == {"a": server.files["/a"], "b": server.files["/b"]}


def test_a_record_that_was_cut_off_is_made_again(server, tmp_path, monkeypatch):
    files = [put(server, "a"), put(server, "b")]
    download(files, tmp_path)
    record = tmp_path / STATE / "whole.jsonl"
    record.write_bytes(record.read_bytes()[:-20])
    assert download(files, tmp_path).kept == 2
    monkeypatch.setattr(module, "_digest", None)
    again = download(files, tmp_path)
    assert (again.kept, len(server.gets("/a")), len(server.gets("/b"))) == (2, 1, 1)


def test_nothing_but_whole_files_is_seen(server, tmp_path):
    file = put(server, "f")
    server.next["/f"] = [serve(stop_at=1000), answer(404)]
    download([file], tmp_path)
    assert found(tmp_path) == {}
    assert (tmp_path / STATE / "f.partial").stat().st_size == 1000


def test_a_full_disk_ends_it_with_one_line_and_loses_nothing(server, tmp_path, monkeypatch):
    files = [put(server, name) for name in "abcdef"]

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DataError, match="cannot be written: No space left on device; the same command"):
            download(files, tmp_path, jobs=1)
    assert (found(tmp_path), sum(server.sent)) == ({}, 200_000)
    assert download(files, tmp_path).fetched == 6
    assert sum(server.sent) == 1_200_000


def test_a_full_disk_ends_the_other_threads_as_well(server, tmp_path, monkeypatch):
    files = [put(server, "small", size=20_000), put(server, "large", size=5_000_000), put(server, "later")]
    server.next["/later"] = [answer(503)]
    server.slow = 0.1

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(web, "PAUSE", 60)
    began = time.monotonic()
    with pytest.raises(DataError, match="No space left on device"):
        download(files, tmp_path)
    assert time.monotonic() - began < 15


def test_as_many_files_at_once_as_was_said(server, tmp_path):
    running, seen = [], []

    def counted(handler: Handler, content: bytes) -> None:
        running.append(1)
        seen.append(len(running))
        time.sleep(0.05)
        running.pop()
        serve()(handler, content)

    files = [put(server, f"f{n}") for n in range(9)]
    server.next = {f"/{file.path}": [counted] for file in files}
    download(files, tmp_path, jobs=3)
    assert max(seen) == 3


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        download([put(server, "f")], tmp_path / "file" / "out")


def test_two_downloads_into_one_folder_are_refused(server, tmp_path):
    (tmp_path / STATE).mkdir()
    with open(tmp_path / STATE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RecipeError, match="another download into it is running"):
            download([put(server, "f")], tmp_path)
    only(server, put(server, "f"), tmp_path)


def test_sizes_are_estimated_from_a_few(server):
    files = [put(server, f"f{n}", size=1000 + n % 2) for n in range(100)]
    assert estimate(files[:7]) == 7003
    assert estimate(files) in range(100_000, 100_101)
    assert len(server.requests) == 7 + module.SAMPLE
    assert {method for method, _, _ in server.requests} == {"HEAD"}
    assert estimate([File(f"{server.url}/none", "none")]) is None
    assert estimate([]) == 0


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def member(name: str, *, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


CLIPS = {f"audioset_v1_embeddings/{split}/{n:02}.tfrecord": noise(f"{split}{n}", 20_000 + n) for split in
         ("bal_train", "eval") for n in range(4)}  # fmt: skip


def archive_of_clips() -> bytes:
    folder = (member("audioset_v1_embeddings/", kind=tarfile.DIRTYPE), b"")
    return tar_of(folder, *((member(name), content) for name, content in CLIPS.items()))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "out" / ARCHIVE
    path.parent.mkdir()
    path.write_bytes(archive_of_clips())
    return path


def clips(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in found(out).items() if name != ARCHIVE}


def test_an_archive_is_unpacked_once(archive, monkeypatch):
    out, read = archive.parent, []
    assert unpack(archive, out, on_bytes=read.append) == 8
    assert clips(out) == CLIPS
    assert read == sorted(read)
    assert read[-1] <= archive.stat().st_size
    spoilt, lost = list(CLIPS)[2:4]
    (out / spoilt).write_bytes(b"x" * len(CLIPS[spoilt]))
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.tfrecord") if path != out / spoilt}
    with monkeypatch.context() as patched:
        patched.setattr(unpacking, "_unpack", None)
        assert unpack(archive, out) == 8, "by the sizes"
    assert unpack(archive, out, verify=True) == 8
    assert clips(out) == CLIPS
    assert {path: path.stat().st_mtime_ns for path in times} == times, "what is right is left alone"
    (out / lost).unlink()
    assert unpack(archive, out) == 8
    (out / spoilt).write_bytes(CLIPS[spoilt][:-1])
    assert unpack(archive, out) == 8
    assert clips(out) == CLIPS


def test_unpacking_goes_on_after_a_break(archive, monkeypatch):
    out, left = archive.parent, 3

    def killed(done: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(archive, out, on_bytes=killed)
    assert clips(out).items() < CLIPS.items()
    unpack(archive, out)
    assert clips(out) == CLIPS


@pytest.mark.parametrize(
    "hostile",
    [
        member("../escaped"),
        member("audioset_v1_embeddings/../../escaped"),
        member("/tmp/escaped-tagreel"),
        member(f"{STATE}/whole.jsonl"),
        member("link", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("link", kind=tarfile.SYMTYPE, linkname="ok"),
        member("link", kind=tarfile.LNKTYPE, linkname="ok"),
        member("pipe", kind=tarfile.FIFOTYPE),
        member("device", kind=tarfile.CHRTYPE),
    ],
    ids=lambda info: f"{info.name} {info.type!r}",
)
def test_hostile_members_are_refused(archive, hostile):
    archive.write_bytes(tar_of((member("ok"), b"1"), (hostile, b""), (member("behind"), b"2")))
    with pytest.raises(DataError, match=r"features\.tar\.gz: holds .* no plain file below the folder"):
        unpack(archive, archive.parent)
    assert clips(archive.parent) == {"ok": b"1"}
    assert list(archive.parent.parent.iterdir()) == [archive.parent]
    assert not Path("/tmp/escaped-tagreel").exists()


def test_a_link_on_the_disk_does_not_lead_out(archive, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (archive.parent / "audioset_v1_embeddings").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="no plain file below the folder"):
        unpack(archive, archive.parent)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-30_000],
        lambda whole: whole[:-8] + bytes(4) + whole[-4:],  # gzip's checksum
        lambda whole: b"<html>sign in here</html>",
        lambda whole: b"",
        lambda whole: gzip.compress(b"not a tar file" * 100),
    ],
    ids=["cut off", "checksum", "a web page", "empty", "no tar"],
)
def test_a_damaged_archive_is_removed(archive, damage):
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(
        DataError, match=r"is damaged \(.+\) and was removed; the same command fetches it again"
    ):
        unpack(archive, archive.parent)
    assert not archive.exists()
    archive.write_bytes(archive_of_clips())
    unpack(archive, archive.parent)
    assert clips(archive.parent) == CLIPS


@pytest.fixture
def yt8m(server: Server) -> Server:
    put_partition(server, "2/frame/train", NAMES)
    put_partition(server, "2/frame/validate", ["validateaa.tfrecord", "validatezz.tfrecord"])
    server.files["/vocabulary.csv"] = b"Index,Name\n0,Game\n"
    return server


def test_the_command_lists_without_fetching(yt8m, tmp_path, cli):
    out = tmp_path / "out"
    code, text, _ = cli("download", "yt8m", "--out", out, "--base", yt8m.url, "--list")
    assert (code, out.exists()) == (0, False)
    assert f"16 files   from {yt8m.url}/2/frame/train   to {out}/2/frame/train" in text
    assert "19 files, 0 of them there already; to fetch: about" in text
    assert not any(path.endswith(".tfrecord") for method, path, _ in yt8m.requests if method == "GET")
    code, text, _ = cli("download", "yt8m", "--out", out, "--base", yt8m.url, "--list", "--json")
    listed = json.loads(text)
    assert (len(listed["files"]), listed["missing"]) == (19, 19)
    assert abs(listed["bytes"] - 18 * 50_000) < 60_000


def test_the_command_fetches_a_part_and_says_what_comes_next(yt8m, tmp_path, cli):
    out = tmp_path / "out"
    command = ("download", "yt8m", "--out", out, "--base", yt8m.url, "--shard", "2,3")
    code, text, error = cli(*command)
    chosen = youtube8m(shard=(2, 3), base=yt8m.url)
    assert (code, error, 1 < len(chosen) < 12) == (0, "", True)
    contents = {file.path: yt8m.files[file.url.removeprefix(yt8m.url)] for file in chosen}
    assert found(out) == contents
    assert f"next: tagreel check {out}/2/frame/train" in text
    assert f"--validate {out}/2/frame/validate --labels {out}/vocabulary.csv --out RUN" in text
    spoilt = out / next(path for path in contents if path.endswith(".tfrecord"))
    spoilt.write_bytes(b"x" * 50_000)
    for options, fetched in (((), 0), (("--verify",), 1)):
        code, text, _ = cli(*command, "--json", *options)
        assert json.loads(text) == {
            "out": str(out),
            "fetched": fetched,
            "kept": len(chosen) - fetched,
            "bytes": fetched * 50_000,
            "failed": [],
        }
    assert found(out) == contents


def test_the_command_tells_what_failed_and_fetches_the_rest(yt8m, tmp_path, cli):
    del yt8m.files["/2/frame/train/trainaa.tfrecord"]
    code, text, error = cli("download", "yt8m", "--out", tmp_path, "--base", yt8m.url, "--split", "train")
    assert code == 2
    assert error == f"tagreel: {yt8m.url}/2/frame/train/trainaa.tfrecord: the server says 404 Not Found\n"
    assert "1 file is missing; the same command tries again" in text
    assert len(found(tmp_path)) == len(NAMES)
    assert "next:" not in text


def test_the_command_refuses_a_disk_that_is_too_small(yt8m, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 0, 500_000))
    out = tmp_path / "out"
    code, _, error = cli("download", "yt8m", "--out", out, "--base", yt8m.url)
    assert (code, out.exists()) == (2, False)
    assert error.startswith(f"tagreel: {out}: needs about ")
    assert "500.0 kB are free; take another disk, or of YouTube-8M a part: --shard 1,100" in error


def test_the_command_fetches_and_unpacks_audioset(server, tmp_path, cli):
    server.files |= {
        "/csv/class_labels_indices.csv": b"index,mid,display_name\n",
        "/ontology.json": b"[]",
        "/features/features.tar.gz": archive_of_clips(),
    }
    server.next["/features/features.tar.gz"] = [serve(stop_at=40_000)]
    code, text, error = cli("download", "audioset", "--out", tmp_path, "--base", server.url)
    assert (code, error) == (0, "")
    assert {name: content for name, content in found(tmp_path).items() if name in CLIPS} == CLIPS
    assert "8 files, unpacked" in text
    assert f"next: tagreel check {tmp_path}/audioset_v1_embeddings/bal_train" in text
    server.files["/features/features.tar.gz"] = b"nonsense"
    (tmp_path / ARCHIVE).unlink()
    code, _, error = cli("download", "audioset", "--out", tmp_path, "--base", server.url)
    assert code == 2
    assert "features.tar.gz: is damaged" in error
    assert error.count("\n") == 1
    server.files["/features/features.tar.gz"] = archive_of_clips()
    assert cli("download", "audioset", "--out", tmp_path, "--base", server.url)[0] == 0


def begin(server: Server, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tagreel", "download", "yt8m", "--out", out, "--base", server.url]
    return subprocess.Popen(
        [*command, "--jobs", "3"], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def until(condition: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not condition() and time.monotonic() - began < 20:
        time.sleep(0.002)


def test_killed_at_any_moment_it_ends_with_the_same_bytes(yt8m, tmp_path):
    rng, killed = random.Random(0), 0
    names = [name for name in yt8m.files if name.endswith(".tfrecord")]
    total = sum(len(yt8m.files[name]) for name in names)
    yt8m.slow = 0.01
    for _ in range(3):
        goal = sum(yt8m.sent) + rng.randrange(100_000, 250_000)
        with begin(yt8m, tmp_path) as process:
            until(lambda: sum(yt8m.sent) > goal)  # noqa: B023
            process.kill()
            killed += process.wait() == -signal.SIGKILL
    assert killed == 3
    half = found(tmp_path)
    yt8m.slow = 0
    with begin(yt8m, tmp_path) as process:
        text, _ = process.communicate()
    assert process.returncode == 0, text
    expected = {file.path: yt8m.files[file.url.removeprefix(yt8m.url)] for file in youtube8m(base=yt8m.url)}
    assert found(tmp_path) == expected
    assert 0 < len(half) < len(expected)
    assert half.items() <= expected.items()
    assert sum(yt8m.sent) < 1.5 * total, "it began again where it could go on"


def test_interrupted_it_ends_at_once_however_silent_the_server(yt8m, tmp_path):
    for name in NAMES:
        yt8m.next[f"/2/frame/train/{name}"] = [serve(stall_at=20_000)]
    # Jobs in the background of a shell are born deaf to it, and so are their children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = begin(yt8m, tmp_path)
    signal.signal(signal.SIGINT, before)
    with process:
        until(lambda: sum(yt8m.sent) >= 60_000)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        text, error = process.communicate()
    assert (process.returncode, error) == (130, "")
    assert time.monotonic() - began < 5
    assert "stopped; the same command goes on from here" in text
