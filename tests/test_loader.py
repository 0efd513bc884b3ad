from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from tagreel.batch import Batch, dequantize
from tagreel.distributed import Ranks
from tagreel.errors import DataError, RecipeError
from tagreel.loader import Loader, collate
from tagreel.sampling import AllFrames, Crop, EvenlySpaced, RandomFrames
from tagreel.source import Source
from tests.conftest import InMemory, video

COUNTS = (7, 1, 12, 5, 9)
NAMES = [f"{shard}.{record}" for shard, count in enumerate(COUNTS) for record in range(count)]


def source(*, frames: int = 3) -> InMemory:
    """34 videos in five shards."""
    return InMemory(
        *(
            [video(f"{shard}.{record}", frames=1 + record % frames) for record in range(count)]
            for shard, count in enumerate(COUNTS)
        )
    )


def loader(data: InMemory | None = None, **options) -> Loader:
    chosen = {"features": {"rgb": 4}, "classes": 3, "batch_size": 4} | options
    return Loader(source() if data is None else data, **chosen)


def ids(loader: Loader, epoch: int = 0, **where: int) -> list[str]:
    return [name for _, batch in loader.epoch(epoch, **where) for name in batch.ids]


def one(*examples, **options) -> Batch:
    """The only batch of these examples."""
    (_, batch), *others = loader(InMemory(list(examples)), batch_size=8, **options).epoch()
    assert not others
    return batch


# ---------------------------------------------------------------------- the order


def test_without_shuffling_the_order_is_that_of_the_files():
    assert ids(loader()) == NAMES
    assert ids(loader(), epoch=3) == NAMES


# ---------------------------------------------------------------------- disjoint subsets


def test_subsets_are_disjoint_and_the_same_for_every_seed_and_epoch():
    parts = [ids(loader(shuffle=True, subset=(11, number), seed=number)) for number in (1, 2, 3)]
    assert [len(part) for part in parts] == [11, 11, 11]
    assert len(set().union(*parts)) == 33
    again = [ids(loader(shuffle=True, subset=(11, number), seed=7), epoch=2) for number in (1, 2, 3)]
    assert list(map(set, again)) == list(map(set, parts))
    assert again != parts
    # Of all shards, not of the first ones.
    assert {name.split(".")[0] for name in parts[0]} >= {"0", "2", "3", "4"}


def test_a_subset_of_all_is_all_in_the_order_without_one():
    everything = loader(shuffle=True, seed=3)
    assert ids(loader(shuffle=True, seed=3, subset=(34, 1))) == ids(everything)
    assert ids(loader(subset=(34, 1))) == NAMES


def test_an_epoch_of_a_subset_has_as_many_batches_as_it_needs():
    part = loader(shuffle=True, subset=(11, 2))
    assert len(part) == math.ceil(11 / 4)
    assert len(ids(part)) == part.examples == 11


def test_too_few_videos_for_a_subset_are_named():
    message = "training.subset: 3 disjoint sets of 12 videos need 36, and there are 34; give more data"
    with pytest.raises(RecipeError, match=message):
        loader(subset=(12, 3))


# ---------------------------------------------------------------------- ranks


@pytest.mark.parametrize("window", [1, 2, 16])
def test_each_video_comes_exactly_once_an_epoch(window):
    assert sorted(ids(loader(shuffle=True, window=window))) == sorted(NAMES)


@pytest.mark.parametrize("subset", [None, (25, 1)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_slice_the_batches_of_one(ranks, subset):
    """Also where a slice has no video; no rank needs to ask another for it."""
    options = {"shuffle": True, "batch_size": 6, "subset": subset, "window": 2}
    alone = loader(**options)
    shared = [loader(ranks=Ranks(number, ranks), **options) for number in range(ranks)]
    assert {len(part) for part in shared} == {len(alone)}
    for index in range(len(alone)):
        slices = [part.batch(1, index).ids for part in shared]
        assert [name for part in slices for name in part] == alone.batch(1, index).ids
        assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_a_made_up_video_stands_in_for_none():
    batch = loader().stand_in()
    assert {name: tuple(frames.shape) for name, frames in batch.streams.items()} == {"rgb": (1, 1, 4)}
    assert batch.num_frames["rgb"].tolist() == [1]
    assert not batch.labels(3).any()


@pytest.mark.parametrize("threads", [2, 4])
def test_the_number_of_threads_changes_nothing(threads):
    def batches(threads: int) -> list[Batch]:
        chosen = loader(
            source(frames=9), shuffle=True, sampling=RandomFrames(frames=5), threads=threads, ahead=6
        )
        return [batch for _, batch in chosen.epoch(1)]

    for ours, theirs in zip(batches(threads), batches(1), strict=True):
        assert ours.ids == theirs.ids
        assert torch.equal(ours.streams["rgb"], theirs.streams["rgb"])


def test_slow_records_do_not_change_the_order():
    data = source()

    class Slow:
        path = "slow"

        def __init__(self, shard):
            self.shard = shard

        def __getitem__(self, index):
            time.sleep(0.003 * (index % 3))
            return self.shard[index]

    data.shards = [Slow(shard) for shard in data.shards]
    assert ids(loader(data, threads=4)) == NAMES


def test_epochs_and_seeds_differ_and_repeat():
    first, again = (ids(loader(shuffle=True, seed=5)) for _ in range(2))
    assert first == again
    others = [ids(loader(shuffle=True, seed=5), epoch=1), ids(loader(shuffle=True, seed=6)), NAMES]
    for other in others:
        assert sorted(other) == sorted(first)
        assert other != first


def test_a_window_keeps_few_shards_open_at_once():
    names = ids(loader(shuffle=True, window=2))
    order = [name.split(".")[0] for name in names]
    # Each group of two shards ends before the next begins.
    last = {shard: max(i for i, s in enumerate(order) if s == shard) for shard in set(order)}
    first = {shard: order.index(shard) for shard in set(order)}
    for shard in last:
        overlapping = [other for other in last if first[other] <= last[shard] and first[shard] <= last[other]]
        assert len(overlapping) <= 2


@pytest.mark.parametrize("start", [0, 1, 5, 8, 9])
def test_starting_in_the_middle_goes_on_exactly(start):
    chosen = loader(source(frames=9), shuffle=True, sampling=RandomFrames(frames=4))
    whole = list(chosen.epoch(2))
    rest = list(chosen.epoch(2, start=start))
    assert [number for number, _ in rest] == list(range(start, 9))
    for (_, ours), (_, theirs) in zip(rest, whole[start:], strict=True):
        assert ours.ids == theirs.ids
        assert torch.equal(ours.streams["rgb"], theirs.streams["rgb"])


def test_leaving_an_epoch_early_ends_its_threads():
    import threading

    before = threading.active_count()
    for _ in loader(threads=4).epoch():
        break
    assert threading.active_count() == before


def test_an_error_that_is_no_damage_is_not_swallowed():
    data = InMemory([video("a"), ZeroDivisionError("a bug in a reader")])
    with pytest.raises(ZeroDivisionError):
        ids(loader(data))


# ---------------------------------------------------------------------- frames


def test_frames_are_padded_with_zeros_and_counted():
    batch = one(video("a", frames=2), video("b", frames=5))
    frames, counts = batch.streams["rgb"], batch.num_frames["rgb"]
    assert frames.shape == (2, 5, 4)
    assert frames.dtype == torch.uint8
    assert counts.tolist() == [2, 5]
    assert not frames[0, 2:].any()
    assert frames[1].flatten().tolist() == list(range(1, 21))
    assert batch.masks()["rgb"].tolist() == [[True, True, False, False, False], [True] * 5]


def test_labels_keep_to_their_video():
    batch = one(video("a", labels=[2, 0]), video("b", labels=[]), video("c", labels=[1]))
    assert batch.labels(3).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert batch.rated(3) is None


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_whole_video_counts_on_every_class_whatever_is_in_its_batch(batch_size):
    segment = replace(video("a", labels=[1]), rated=np.array([1, 2]))
    unjudged = replace(video("c", labels=[]), rated=np.array([], np.int64))
    data = InMemory([segment, video("b", labels=[0]), unjudged])
    found = {}
    for _, batch in loader(data, batch_size=batch_size).epoch():
        rated = batch.rated(3)
        rows = [[1.0] * 3] * len(batch) if rated is None else rated.tolist()
        found |= dict(zip(batch.ids, rows, strict=True))
    assert found == {"a": [0, 1, 1], "b": [1, 1, 1], "c": [0, 0, 0]}


def test_the_same_frames_are_taken_from_every_stream():
    rgb = np.arange(40, dtype=np.uint8).reshape(10, 4)
    batch = one(
        video("a", rgb=rgb, audio=rgb[:, :2]),
        features={"rgb": 4, "audio": 2},
        sampling=RandomFrames(frames=6),
    )
    assert batch.num_frames["audio"].tolist() == [6]
    assert torch.equal(batch.streams["rgb"][..., :2], batch.streams["audio"])


@pytest.mark.parametrize("aligned", [True, False])
def test_features_are_cropped_together_unless_asked_otherwise(aligned):
    frames = np.arange(100, dtype=np.uint8)[:, None]
    data = InMemory([video(str(n), rgb=frames, audio=frames) for n in range(8)])
    features = {"rgb": 1, "audio": 1}
    batch = one(*data.shards[0].examples, features=features, sampling=Crop(frames=5, aligned=aligned))
    starts = {name: x[:, 0, 0].tolist() for name, x in batch.streams.items()}
    assert (starts["rgb"] == starts["audio"]) is aligned
    assert all(x[:, 1, 0].tolist() == [s + 5 for s in starts[name]] for name, x in batch.streams.items())


def test_random_frames_differ_by_video_and_by_epoch():
    chosen = loader(
        InMemory([video("a", frames=50), video("b", frames=50)]), sampling=RandomFrames(frames=20)
    )
    (first,), (second,) = ([batch.streams["rgb"] for _, batch in chosen.epoch(e)] for e in (0, 1))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


def test_a_vector_of_the_whole_video_stays_beside_sampled_frames():
    frames, vector = np.zeros((10, 4), np.float32), np.ones((1, 2), np.float32)
    batch = one(
        video("a", rgb=frames, mean=vector),
        features={"rgb": 4, "mean": 2},
        sampling=EvenlySpaced(frames=3),
    )
    assert batch.num_frames["rgb"].tolist() == [3]
    assert batch.num_frames["mean"].tolist() == [1]
    assert batch.streams["mean"].tolist() == [[[1.0, 1.0]]]


def test_long_videos_are_cut_at_the_samplers_length():
    assert one(video("a", frames=9), sampling=AllFrames(max_frames=4)).num_frames["rgb"].tolist() == [4]


def test_bytes_among_floats_take_the_values_they_would_have_had_alone():
    quantized = np.array([[0, 1, 128, 255]], np.uint8)
    mixed = one(video("a", rgb=quantized), video("b", rgb=np.full((2, 4), 0.25, np.float16)))
    alone = one(video("a", rgb=quantized))
    assert mixed.streams["rgb"].dtype == torch.float32
    torch.testing.assert_close(mixed.streams["rgb"][0, :1], dequantize(alone.streams["rgb"])[0])
    assert mixed.streams["rgb"][1].unique().tolist() == [0.25]
    assert not mixed.streams["rgb"][0, 1:].any()


def test_streams_that_nobody_asked_for_are_left_out():
    assert set(one(video("a", rgb=np.zeros((2, 4)), other=np.zeros((2, 9)))).streams) == {"rgb"}


@pytest.mark.parametrize("audio", [{}, {"audio": np.zeros((0, 0), np.uint8)}], ids=["missing", "empty"])
@pytest.mark.parametrize("sampling", [AllFrames(), RandomFrames(frames=4)], ids=["all", "random"])
def test_an_optional_stream_may_be_missing(audio, sampling):
    rgb = np.ones((3, 4), np.uint8)
    full = video("b", rgb=rgb, audio=np.ones((3, 2), np.uint8))
    options = {"features": {"rgb": 4, "audio": 2}, "optional": ("audio",), "sampling": sampling}
    batch = one(video("a", rgb=rgb, **audio), full, **options)
    assert batch.num_frames["audio"].tolist()[0] == 0
    assert batch.num_frames["audio"].tolist()[1] > 0
    assert not batch.streams["audio"][0].any()
    assert not batch.masks()["audio"][0].any()
    alone = one(video("a", rgb=rgb, **audio), **options)
    assert alone.streams["audio"].shape == (1, 1, 2)


def test_padding_is_zero_in_memory_that_was_used_before():
    examples = [video("a", frames=2), video("b", frames=4)]
    batch = collate(examples, features={"rgb": 4}, empty=lambda shape, dtype: np.full(shape, 77, dtype))
    assert not batch.streams["rgb"][0, 2:].any()
    assert batch.streams["rgb"][1].flatten().tolist() == list(range(1, 17))


def test_collating_nothing_gives_an_empty_batch():
    batch = collate([], features={"rgb": 4})
    assert len(batch) == 0
    assert batch.streams["rgb"].shape == (0, 1, 4)
    assert batch.labels(3).shape == (0, 3)


# ---------------------------------------------------------------------- damage


SWAPPED = {"rgb": np.zeros((2, 2), np.uint8), "audio": np.zeros((2, 4), np.uint8)}


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (
            video("x", rgb=np.zeros((2, 4))),
            r"no 'audio' \(it has: rgb\); if videos may lack it, train with --set 'optional=\[\"audio\"\]'$",
        ),
        (
            video("x", rgb=np.zeros((2, 4)), audio=np.zeros((0, 0))),
            r"'audio' has no frames; if videos may lack it, train with --set 'optional=\[\"audio\"\]'$",
        ),
        (video("x", rgb=np.zeros((0, 0)), audio=np.zeros((0, 2))), r": 'rgb' has no frames$"),
        (
            video("x", audio_embedding=np.zeros((2, 128)), flow=np.zeros((2, 1500))),
            r"other data than the model's: it has audio_embedding \(128\), flow \(1,500\), "
            r"the model reads rgb \(4\), audio \(2\)$",
        ),
        (video("x", **SWAPPED), "'rgb' is 2 wide, the model expects 4; are two streams swapped"),
        (
            video("x", rgb=np.zeros((2, 5)), audio=np.zeros((2, 2))),
            "'rgb' is 5 wide, the model expects 4; train with --set features.rgb=5$",
        ),
        (
            video("x", rgb=np.zeros((2, 4)), audio=np.zeros((2, 2)), labels=[0, 3]),
            r"label 3, but the model has 3 classes \(0 to 2\)",
        ),
        (
            replace(video("x", rgb=np.zeros((2, 4)), audio=np.zeros((2, 2))), rated=np.array([0, 7])),
            "label 7, but the model has 3 classes",
        ),
        (video("x", rgb=np.full((2, 4), np.nan), audio=np.zeros((2, 2))), "'rgb' holds numbers that are not"),
        (
            video("x", rgb=np.zeros((2, 4)), audio=np.full((2, 2), np.inf, np.float16)),
            "'audio' holds numbers",
        ),
    ],
    ids=["missing", "one empty", "empty", "other data", "swapped", "width", "label", "rated", "nan", "inf"],
)
def test_a_record_that_does_not_fit_the_model_is_damaged(example, reason):
    good = video("good", rgb=np.zeros((2, 4)), audio=np.zeros((2, 2)))
    data = InMemory([good], [good, example])
    options = {"features": {"rgb": 4, "audio": 2}}
    with pytest.raises(DataError, match=reason) as caught:
        ids(loader(data, **options))
    assert (caught.value.path, caught.value.record) == ("shard1", 1)
    skipping = loader(data, skip_damaged=1, **options)
    assert ids(skipping) == ["good", "good"]
    assert [(e.path, e.record) for e in skipping.damaged.values()] == [("shard1", 1)]


def damaged(*records: int, count: int = 12) -> InMemory:
    return InMemory(
        [
            DataError("the checksum is wrong", path="shard0", record=index)
            if index in records
            else video(f"{index}")
            for index in range(count)
        ]
    )


def test_without_leave_to_skip_the_first_damage_is_raised_as_it_is():
    with pytest.raises(DataError, match=r"^shard0, record 5: the checksum is wrong$"):
        ids(loader(damaged(5, 7)))


def test_more_damage_than_may_be_skipped_is_an_error_that_counts():
    with pytest.raises(DataError, match=r"record 9: .*damaged record number 3, and --skip-damaged allows 2"):
        ids(loader(damaged(1, 5, 9), skip_damaged=2))


def test_skipped_records_are_listed_once_however_many_epochs():
    chosen = loader(damaged(1, 5, 9), skip_damaged=3)
    for epoch in range(3):
        assert len(ids(chosen, epoch)) == 9
    assert [error.record for error in chosen.damaged.values()] == [1, 5, 9]


def test_damage_known_from_before_goes_on_counting():
    known = [DataError("the checksum is wrong", path="shard0", record=index) for index in (1, 5)]
    chosen = loader(damaged(1, 5, 9), skip_damaged=3, damaged=iter(known))
    assert len(ids(chosen)) == 9
    assert [error.record for error in chosen.damaged.values()] == [1, 5, 9]
    with pytest.raises(DataError, match=r"record 9: .*damaged record number 3, and --skip-damaged allows 2"):
        for _ in loader(damaged(1, 5, 9), skip_damaged=2, damaged=known).epoch(start=2):
            pass


def test_each_video_of_a_lost_archive_is_counted(tmp_path):
    np.savez(tmp_path / "a.npz", id=np.array(list("abcdef")), rgb=np.full((6, 4), 7, np.uint8))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(b"\x07" * 24)] = 0
    (tmp_path / "a.npz").write_bytes(content)
    np.savez(tmp_path / "b.npz", id=np.array(["g"]), rgb=np.zeros((1, 4), np.uint8))
    data = Source(tmp_path)
    with pytest.raises(DataError, match=r"the whole file \(6 videos\) cannot .* number 6, .* allows 5$"):
        ids(loader(data, skip_damaged=5))
    skipping = loader(data, skip_damaged=6)
    assert ids(skipping) == ["g"]
    assert len(skipping.damaged) == 6


def test_a_batch_without_a_sound_record_is_left_out_unless_asked_for():
    data = damaged(4, 5, 6, 7)
    assert [number for number, _ in loader(data, skip_damaged=4).epoch()] == [0, 2]
    with_empty = list(loader(data, skip_damaged=4).epoch(empty=True))
    assert [(number, len(batch)) for number, batch in with_empty] == [(0, 4), (1, 0), (2, 4)]
    assert len(with_empty[1][1].damaged) == 4


def test_waiting_is_measured():
    data = source()
    opened = data.open
    data.open = lambda index: time.sleep(0.002) or opened(index)
    chosen = loader(data)
    ids(chosen)
    assert 0.02 < chosen.waited < 5


# ---------------------------------------------------------------------- memory


def test_memory_is_used_again_once_nothing_looks_at_it():
    chosen = loader(source(frames=9), ahead=1)
    places = [batch.streams["rgb"].data_ptr() for _ in range(3) for _, batch in chosen.epoch()]
    assert len(set(places)) < len(places) / 2


def test_what_is_kept_of_a_batch_stays_as_it_was():
    chosen = loader(source(frames=9), shuffle=True, threads=2)
    kept = []
    for epoch in range(3):
        for _, batch in chosen.epoch(epoch):
            view = batch.streams["rgb"][-1:, :1]
            kept.append((view, view.clone()))
            del batch, view
    assert all(torch.equal(view, copy) for view, copy in kept)
