from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tagreel.errors import DataError
from tagreel.readers._tfexample import encode_example, encode_sequence_example
from tagreel.readers._tfrecord import write
from tagreel.readers.yt8m import YT8M

RNG = np.random.default_rng(0)
DATA = Path(__file__).parents[2].parent / "shared" / "data" / "yt8m" / "video_level"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the YouTube-8M shards are not in {DATA}")


def frames(count: int, width: int):
    return RNG.integers(0, 256, (count, width), np.uint8)


def shard(folder: Path, *payloads: bytes, **options) -> YT8M:
    write(folder / "train00.tfrecord", payloads)
    assert YT8M.recognises(folder / "train00.tfrecord")
    return YT8M(folder / "train00.tfrecord", **options)


@pytest.mark.parametrize("key", ["id", "video_id"])
@pytest.mark.parametrize("name", ["train00.tfrecord", "train00.tfrecord.gz"])
def test_frame_level_records_are_read(tmp_path, key, name):
    rgb, audio = frames(9, 1024), frames(9, 128)
    payload = encode_sequence_example({key: "abcd", "labels": [7, 2, 7]}, {"rgb": rgb, "audio": audio})
    write(tmp_path / name, [payload, payload])
    read = YT8M(tmp_path / name)
    assert len(read) == 2
    example = read[1]
    assert (example.id, example.labels.tolist(), example.rated) == ("abcd", [2, 7], None)
    assert list(example.streams) == ["rgb", "audio"]
    np.testing.assert_array_equal(example.streams["rgb"], rgb)
    np.testing.assert_array_equal(example.streams["audio"], audio)


def test_video_level_vectors_are_videos_of_one_frame(tmp_path):
    mean = RNG.normal(size=1024).astype(np.float32)
    example = shard(tmp_path, encode_example({"id": "abcd", "labels": [3], "mean_rgb": mean}))[0]
    assert example.streams["mean_rgb"].shape == (1, 1024)
    np.testing.assert_array_equal(example.streams["mean_rgb"][0], mean)


def test_the_names_of_2016_are_todays(tmp_path):
    mean = np.ones(4, np.float32)
    payload = encode_sequence_example({"video_id": "a", "mean_inc3": mean}, {"inc3": frames(3, 8)})
    assert set(shard(tmp_path, payload)[0].streams) == {"rgb", "mean_rgb"}


def test_further_lists_and_vectors_are_streams(tmp_path):
    context = {"id": "a", "clip": np.ones(4, np.float32), "duration": [3.5]}
    payload = encode_sequence_example(context, {"rgb": frames(3, 8), "flow": frames(3, 2)})
    example = shard(tmp_path, payload)[0]
    assert {name: s.shape for name, s in example.streams.items()} == {
        "rgb": (3, 8),
        "flow": (3, 2),
        "clip": (1, 4),
    }


def test_records_without_labels_have_none(tmp_path):
    assert (
        shard(tmp_path, encode_sequence_example({"id": "a"}, {"rgb": frames(3, 8)}))[0].labels.tolist() == []
    )


@pytest.mark.parametrize(
    ("context", "lists", "reason"),
    [
        ({"id": "b"}, {"rgb": frames(3, 8), "audio": frames(4, 2)}, "'rgb' has 3, 'audio' has 4"),
        ({"labels": [1]}, {"rgb": frames(3, 8)}, "no 'id' or 'video_id'"),
        ({"id": "b", "labels": [-1]}, {"rgb": frames(3, 8)}, "label -1 is negative"),
        ({"id": b"\xff"}, {"rgb": frames(3, 8)}, "not UTF-8"),
        ({"id": "b", "labels": [1]}, {}, "no features"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(tmp_path, context, lists, reason):
    good = encode_sequence_example({"id": "a"}, {"rgb": frames(3, 8)})
    read = shard(tmp_path, good, encode_sequence_example(context, lists))
    assert read[0].id == "a"
    with pytest.raises(DataError, match=reason) as caught:
        read[1]
    assert caught.value.record == 1
    assert caught.value.path.endswith("train00.tfrecord")


def segments(name: str, starts, labels, scores, count: int = 20):
    context = {
        "id": name,
        "labels": [1, 2],
        "segment_start_times": starts,
        "segment_end_times": [start + 5 for start in starts],
        "segment_labels": labels,
        "segment_scores": np.array(scores, np.float32),
    }
    rgb = np.tile(np.arange(count, dtype=np.uint8)[:, None], (1, 8))
    return encode_sequence_example(context, {"rgb": rgb, "audio": rgb[:, :2]})


RATED = segments("aaaa", [10, 5, 5, 17], [4, 9, 3, 8], [1, 1, 0, 0])
UNRATED = encode_sequence_example({"id": "bbbb", "labels": [6]}, {"rgb": frames(7, 8), "audio": frames(7, 2)})


def test_each_rated_segment_is_an_example(tmp_path):
    read = shard(tmp_path, RATED, UNRATED, segments("cccc", [0], [1], [1]))
    found = [read[index] for index in range(len(read))]
    assert [example.id for example in found] == ["aaaa:5", "aaaa:10", "aaaa:17", "cccc:0"]
    assert [example.labels.tolist() for example in found] == [[9], [4], [], [1]]
    assert [example.rated.tolist() for example in found] == [[3, 9], [4], [8], [1]]
    assert found[0].streams["rgb"][:, 0].tolist() == [5, 6, 7, 8, 9]
    assert found[2].streams["audio"][:, 0].tolist() == [17, 18, 19]


def test_segments_need_not_be_in_the_first_record(tmp_path):
    assert [example.id for example in shard(tmp_path, UNRATED, segments("c", [0], [1], [1]))] == ["c:0"]


def test_segments_beyond_the_first_records_are_never_lost_silently(tmp_path):
    read = shard(tmp_path, *[UNRATED] * 16, RATED)
    assert len(read) == 17
    assert read[15].id == "bbbb"
    with pytest.raises(DataError, match="it has rated segments, but the first 16 records"):
        read[16]


def test_rated_files_can_be_read_as_whole_videos(tmp_path):
    read = shard(tmp_path, RATED, UNRATED, whole_videos=True)
    assert [(video.id, video.labels.tolist(), len(video.streams["rgb"])) for video in read] == [
        ("aaaa", [1, 2], 20),
        ("bbbb", [6], 7),
    ]


def test_segments_without_ratings_count_on_no_class(tmp_path):
    payload = encode_sequence_example({"id": "a", "segment_start_times": [5]}, {"rgb": frames(20, 8)})
    example = shard(tmp_path, payload)[0]
    assert (example.id, example.labels.tolist(), example.rated.tolist()) == ("a:5", [], [])


@pytest.mark.parametrize(
    ("starts", "labels", "scores", "reason"),
    [
        ([20], [1], [1], "starts at 20 s, but 'rgb' has 20 frames"),
        ([-5], [1], [1], "starts at -5 s"),
        ([0, 5], [1], [1], "2 start times, 1 labels and 1 scores"),
        ([0], [-1], [1], "segment label -1 is negative"),
    ],
)
def test_a_segment_that_cannot_be_is_named(tmp_path, starts, labels, scores, reason):
    with pytest.raises(DataError, match=reason) as caught:
        shard(tmp_path, RATED, segments("b", starts, labels, scores))[3]
    assert caught.value.record == 1


def test_a_damaged_record_among_segments_is_one_entry(tmp_path):
    shard(tmp_path, RATED, RATED, UNRATED, segments("cccc", [0], [1], [1]))
    path = tmp_path / "train00.tfrecord"
    content = bytearray(path.read_bytes())
    content[len(RATED) + 16 + 60] ^= 1
    path.write_bytes(content)
    read = YT8M(path)
    assert len(read) == 5
    with pytest.raises(DataError, match="record 1: the checksum"):
        read[3]
    assert read[4].id == "cccc:0"


def test_other_tfrecord_files_are_not_recognised(tmp_path):
    write(tmp_path / "images.tfrecord", [encode_example({"image/encoded": b"..."})])
    assert not YT8M.recognises(tmp_path / "images.tfrecord")
    (tmp_path / "notes.txt").write_text("no records here, only words " * 50)
    assert not YT8M.recognises(tmp_path / "notes.txt")


def test_a_file_damaged_beyond_recognition_is_known_by_its_name(tmp_path):
    for name in ("train00.tfrecord", "train01.tfrecord.gz"):
        (tmp_path / name).write_bytes(bytes(500))
        assert YT8M.recognises(tmp_path / name)


VIDEOS = [
    encode_sequence_example(
        {"id": f"v{i:03}", "labels": [i, 2 * i + 1]}, {"rgb": frames(3 + i, 16), "audio": frames(3 + i, 4)}
    )
    for i in range(6)
]


@settings(max_examples=200, deadline=2000)
@example("flip", 0.11328125, 1, "a.tfrecord.gz", False)  # which once hit the name of the id
@given(
    st.sampled_from(["flip", "cut", "zero"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 200),
    st.sampled_from(["a.tfrecord", "a.tfrecord.gz"]),
    st.booleans(),
)
def test_damage_anywhere_is_told_and_costs_nothing_else(tmp_path_factory, kind, where, size, name, check_crc):
    path = tmp_path_factory.mktemp("damage") / name
    write(path, VIDEOS)
    sound = {example.id: example for example in YT8M(path)}
    content = bytearray(path.read_bytes())
    at = int(where * len(content))
    if kind == "flip":
        content[at] ^= 1 << size % 8
    elif kind == "zero":
        content[at : at + size] = bytes(len(content[at : at + size]))
    else:
        del content[at:]
    path.write_bytes(content)
    assert YT8M.recognises(path)
    read = YT8M(path, check_crc=check_crc)
    errors = 0
    seen = set()
    for index in range(len(read)):
        try:
            example = read[index]
        except DataError:
            errors += 1
            continue
        if check_crc:
            seen.add(example.id)
            assert example.labels.tolist() == sound[example.id].labels.tolist()
            for stream, original in sound[example.id].streams.items():
                np.testing.assert_array_equal(example.streams[stream], original)
    boundaries = {sum(map(len, VIDEOS[:count])) + 16 * count for count in range(1, 7)}
    told = errors > 0 or (kind == "cut" and at in boundaries and name == "a.tfrecord")
    assert told or not check_crc or seen == set(sound)


@needs_data
@pytest.mark.parametrize(
    ("name", "videos", "classes"),
    [
        ("validate0000", 284, 407),
        ("validate0001", 305, 402),
        ("validate0100", 293, 345),
        ("validate2L", 297, 391),
        ("validate3227", 262, 375),
    ],
)
def test_original_shards_are_read(name, videos, classes):
    read = YT8M(DATA / f"{name}.tfrecord")
    found = [read[index] for index in range(len(read))]
    assert len(found) == videos
    assert len(np.unique(np.concatenate([example.labels for example in found]))) == classes
    assert {len(example.id) for example in found} == {4}
    assert {stream.shape for example in found for stream in example.streams.values()} == {(1, 1024), (1, 128)}


@needs_data
def test_original_features_lie_within_the_quantiser(tmp_path):
    example = YT8M(DATA / "validate0000.tfrecord")[0]
    assert example.id == "02aa"
    assert example.labels.tolist() == [3, 4, 9, 34]
    assert np.abs(example.streams["mean_rgb"]).max() <= 2


def test_an_empty_list_is_a_stream_that_the_video_lacks(tmp_path):
    frames = {"rgb": np.ones((5, 4), np.uint8), "audio": np.empty((0, 0), np.uint8)}
    path = tmp_path / "a.tfrecord"
    write(path, [encode_sequence_example({"id": [b"a"], "labels": np.array([1])}, frames)])
    streams = YT8M(str(path))[0].streams
    assert len(streams["rgb"]) == 5
    assert len(streams["audio"]) == 0
