from __future__ import annotations

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tagreel.errors import DataError
from tagreel.readers._tfexample import encode_sequence_example
from tagreel.readers._tfrecord import write
from tagreel.source import Source

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not in {DATA}")
FRAMES = np.arange(24, dtype=np.uint8).reshape(6, 4)


def yt8m(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, [encode_sequence_example({"id": name, "labels": [1]}, {"rgb": FRAMES}) for name in names])


def audioset(path: Path, *names: str) -> None:
    write(path, [encode_sequence_example({"video_id": name}, {"audio_embedding": FRAMES}) for name in names])


def npz(path: Path, *names: str, **more) -> None:
    np.savez(path, id=np.array(names), rgb=FRAMES[: len(names)], **more)


@pytest.fixture
def folder(tmp_path):
    yt8m(tmp_path / "b.tfrecord", "b0", "b1", "b2")
    yt8m(tmp_path / "deep" / "er" / "a.tfrecord.gz", "a0")
    audioset(tmp_path / "c", "c0", "c1")
    npz(tmp_path / "d.npz", "d0", "d1")
    yt8m(tmp_path / ".hidden.tfrecord", "h0")
    (tmp_path / "notes.txt").write_text("words")
    return tmp_path


def ids(source: Source) -> list[str]:
    shards = map(source.open, range(len(source.paths)))
    return [shard[index].id for shard in shards for index in range(len(shard))]


def test_a_folder_is_read_with_all_below_it_whatever_the_names(folder):
    source = Source(folder)
    assert ids(source) == ["b0", "b1", "b2", "c0", "c1", "d0", "d1", "a0"]
    assert source.formats == ["yt8m", "audioset", "npz", "yt8m"]
    assert source.counts == [3, 2, 2, 1]
    assert len(source) == 8
    assert [os.path.basename(path) for path in source.ignored] == [".hidden.tfrecord", "notes.txt"]


def test_several_paths_are_read_in_their_order_and_each_file_once(folder):
    source = Source([folder / "d.npz", f"{folder}/*.tfrecord", folder / "d.npz", folder / "b.tfrecord"])
    assert ids(source) == ["d0", "d1", "b0", "b1", "b2"]


def test_globs_go_down_folders(folder):
    assert ids(Source(f"{folder}/**/*.gz")) == ["a0"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(folder):
    yt8m(folder / "x[1].tfrecord", "x0")
    assert ids(Source(folder / "x[1].tfrecord")) == ["x0"]


def test_a_link_back_up_does_not_go_round_for_ever(folder):
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "deep" / "same.tfrecord").symlink_to(folder / "b.tfrecord")
    assert len(Source(folder)) == 8


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere", "no such file or folder"),
        ("*.nothing", "no file matches this pattern"),
        ("notes.txt", "no reader recognises it; there are: arrow, audioset, npz, yt8m"),
        ("empty", "nothing to read here; the formats are: arrow, audioset, npz, yt8m"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_says_why(folder, name, reason):
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=reason) as caught:
        Source(folder / name)
    assert caught.value.path == str(folder / name)


def test_no_path_at_all_is_an_error():
    with pytest.raises(DataError, match="nothing to read"):
        Source([])


def test_a_pipe_in_a_folder_is_not_waited_for(folder):
    os.mkfifo(folder / "pipe")
    assert str(folder / "pipe") in Source(folder).ignored


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("d.npz", b"PK\x03\x04 no more", "damaged: File is not a zip file"),
        ("b.tfrecord", b"", "the file is empty"),
        ("b.tfrecord", bytes(100), "length header is damaged"),
    ],
)
def test_a_shard_that_cannot_be_opened_is_one_damaged_example(folder, name, content, reason):
    (folder / name).write_bytes(content)
    source = Source(folder)
    where = [os.path.basename(path) for path in source.paths].index(name)
    assert source.counts[where] == 1
    for _ in range(2):
        with pytest.raises(DataError, match=reason) as caught:
            source.open(where)[0]
    assert caught.value.path == str(folder / name)


def test_an_archive_that_is_lost_counts_the_videos_that_it_held(folder):
    content = bytearray((folder / "d.npz").read_bytes())
    content[content.index(FRAMES[:2].tobytes())] ^= 1
    (folder / "d.npz").write_bytes(content)
    source = Source(folder)
    where = source.paths.index(str(folder / "d.npz"))
    assert source.counts[where] == 2
    for index in range(2):
        with pytest.raises(DataError, match=r"the whole file \(2 videos\) cannot be read$") as caught:
            source.open(where)[index]
        assert (caught.value.path, caught.value.record) == (str(folder / "d.npz"), index)
    assert str(source.open(where).error).startswith(
        f"{folder}/d.npz: it is damaged: the checksum of 'rgb.npy'"
    )


def test_a_source_without_a_video_is_an_error(folder):
    np.savez(folder / "e.npz", id=np.array([], "U2"), rgb=FRAMES[:0])
    with pytest.raises(DataError, match=r"e\.npz: holds no videos$"):
        Source(folder / "e.npz")
    with pytest.raises(DataError, match=r"e\.npz: holds no videos$"):
        Source(folder / "e.npz", whole_videos=True)
    assert len(Source([folder / "e.npz", folder / "d.npz"])) == 2


def test_segments_of_which_none_is_rated_are_an_error_that_knows_a_way(tmp_path):
    context = {"id": "a", "labels": [1], "segment_start_times": np.array([], np.int64)}
    write(tmp_path / "a.tfrecord", [encode_sequence_example(context, {"rgb": FRAMES})])
    with pytest.raises(DataError, match=r"a\.tfrecord: holds no rated segments; .*--whole-videos$"):
        Source(tmp_path / "a.tfrecord")
    assert len(Source(tmp_path / "a.tfrecord", whole_videos=True)) == 1


def test_the_first_example_is_the_first_that_can_be_read(folder):
    assert Source(folder).first().id == "b0"
    (folder / "b.tfrecord").write_bytes(b"")
    np.savez(folder / "a.npz", id=np.array([], "U2"), rgb=FRAMES[:0])
    content = bytearray((folder / "c").read_bytes())
    content[40] ^= 1
    (folder / "c").write_bytes(content)
    assert Source(folder).first().id == "c1"


def test_where_no_example_can_be_read_the_first_error_is_raised(folder):
    (folder / "b.tfrecord").write_bytes(b"")
    (folder / "d.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"b\.tfrecord, record 0: the file is empty"):
        Source([folder / "b.tfrecord", folder / "d.npz"]).first()


def test_a_file_that_may_not_be_read_is_one_damaged_example(folder, monkeypatch):
    def refuse(path, *arguments, **options):
        if str(path).endswith("b.tfrecord"):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    real = open
    monkeypatch.setattr("builtins.open", refuse)
    source = Source(folder)
    with pytest.raises(DataError, match=r"b\.tfrecord: cannot be read: Permission denied"):
        source.open(source.paths.index(str(folder / "b.tfrecord")))[0]


def test_a_link_to_nowhere_is_one_damaged_example(folder):
    (folder / "gone.tfrecord").symlink_to(folder / "not there")
    source = Source(folder)
    with pytest.raises(DataError, match="No such file"):
        source.open(source.paths.index(str(folder / "gone.tfrecord")))[0]


def test_a_shard_that_vanishes_or_changes_keeps_its_count(folder):
    source = Source(folder, keep_open=0)
    (folder / "b.tfrecord").unlink()
    npz(folder / "d.npz", "d0", "d1", "d2")
    shards = [source.open(index) for index in range(4)]
    assert [len(shard) for shard in shards] == [3, 2, 2, 1]
    for shard, reason in ((shards[0], "No such file"), (shards[2], "2 examples at first and has 3 now")):
        for index in range(len(shard)):
            with pytest.raises(DataError, match=reason) as caught:
                shard[index]
            assert caught.value.record == index


def test_only_so_many_shards_stay_open(folder):
    source = Source(folder, keep_open=2)
    first = source.open(0)
    assert source.open(0) is first
    source.open(1)
    assert source.open(0) is first
    source.open(2)
    assert source.open(0) is first
    source.open(1)
    source.open(2)
    assert source.open(0) is not first


def test_shards_are_opened_from_many_threads_at_once(folder):
    source = Source(folder, keep_open=1)
    expected, ready = ids(source), threading.Barrier(8)

    def read(_: int) -> list[list[str]]:
        ready.wait()
        return [ids(source) for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        assert all(found == [expected] * 20 for found in pool.map(read, range(8)))


def test_a_source_can_be_sent_to_another_process(folder):
    source = Source(folder)
    assert ids(pickle.loads(pickle.dumps(source))) == ids(source)  # noqa: S301 - our own bytes


def test_class_names_come_from_the_archives_and_must_agree(folder):
    assert Source(folder).label_names is None
    npz(folder / "d.npz", "d0", label_names=np.array(["cat", "dog"]))
    assert Source(folder).label_names == ["cat", "dog"]
    npz(folder / "e.npz", "e0", label_names=np.array(["dog", "cat"]))
    with pytest.raises(DataError, match=r"e\.npz: its 'label_names' are not those of .*d\.npz"):
        Source(folder)


def test_the_fingerprint_tells_other_data_but_not_another_place(folder, tmp_path):
    before = Source(folder).fingerprint()
    assert Source(folder).fingerprint() == before
    moved = folder.parent / f"{folder.name} moved"
    folder.rename(moved)
    assert Source(moved).fingerprint() == before
    assert Source(moved, whole_videos=True).fingerprint() != before
    yt8m(moved / "b.tfrecord", "b0", "b1")
    assert Source(moved).fingerprint() != before


def test_sizes_and_versions_follow_the_files(folder):
    source = Source(folder)
    assert source.sizes() == [os.path.getsize(path) for path in source.paths]
    before = source.versions()
    os.utime(folder / "c", ns=(0, int(before[1]) + 1))
    (folder / "d.npz").unlink()
    after = source.versions()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, False, True]
    assert source.sizes()[2] == -1


def test_progress_is_told_of_every_file(folder):
    told: list[tuple[int, int]] = []
    Source(folder, progress=lambda done, of: told.append((done, of)))
    assert told == [(number, 5) for number in range(1, 6)], "four shards and the notes"


def test_fetching_ahead_is_nothing_for_local_files(folder):
    def needs() -> None:
        raise AssertionError("nobody asks")

    with Source(folder).fetching(needs) as done:
        done(0)


def test_options_reach_the_readers(folder):
    content = bytearray((folder / "b.tfrecord").read_bytes())
    content[-8] ^= 1
    (folder / "b.tfrecord").write_bytes(content)
    with pytest.raises(DataError, match="record 2: the checksum"):
        Source(folder / "b.tfrecord").open(0)[2]
    assert Source(folder / "b.tfrecord", check_crc=False).open(0)[2].id == "b2"


@needs_data
def test_the_audioset_shards_hold_the_clips_that_they_should():
    source = Source(DATA / "audioset")
    counts = dict(zip(map(os.path.basename, source.paths), source.counts, strict=True))
    assert sum(count for name, count in counts.items() if name.startswith("bal_train-")) == 22160
    assert sum(count for name, count in counts.items() if name.startswith("eval-")) == 11061
    assert sum(counts[name] for name in ("rm.tfrecord", "xI.tfrecord", "z8.tfrecord")) == 975
