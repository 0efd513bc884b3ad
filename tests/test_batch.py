from __future__ import annotations

import numpy as np
import pytest
import torch

from tagreel.batch import Batch, dequantize, frame_mask, quantize
from tagreel.errors import DataError


def _batch(**changes):
    fields = {
        "ids": ["a", "b", "c"],
        "streams": {"rgb": torch.zeros(3, 4, 2), "audio": torch.zeros(3, 1, 5)},
        "num_frames": {"rgb": torch.tensor([4, 2, 0]), "audio": torch.tensor([1, 0, 1])},
        "label_ids": torch.tensor([1, 3, 0]),
        "label_counts": torch.tensor([2, 0, 1]),
    }
    return Batch(**(fields | changes))


def test_bytes_become_the_floats_that_every_published_number_was_made_with():
    found = dequantize(torch.tensor([0, 127, 128, 255], dtype=torch.uint8))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([-1.9921875, -0.00003064, 0.01565564, 2.0078125], abs=3e-7)


def test_all_bytes_lie_4_over_512_above_the_inverse_of_the_quantiser():
    q = torch.arange(256, dtype=torch.uint8)
    inverse = q.double() * 4 / 255 - 2
    torch.testing.assert_close(
        dequantize(q).double() - inverse, torch.full((256,), 4 / 512).double(), rtol=0, atol=5e-7
    )
    assert torch.equal(((inverse + 2) * 255 / 4).round(), q.double())


def test_floats_become_the_bytes_of_the_feature_extractor():
    x = np.random.default_rng(0).normal(0, 1.2, 10_000).astype(np.float32)
    x[:7] = [-np.inf, -2.1, -2, 0, 2, 2.1, np.inf]
    # feature_extractor.py, in Python's own numbers, whose `round` is to even between two.
    expected = [round((min(max(float(value), -2.0), 2.0) + 2.0) * (255.0 / 4.0)) for value in x]
    found = quantize(x)
    assert found.dtype == np.uint8
    assert found.tolist() == expected
    assert found[:7].tolist() == [0, 0, 0, 128, 255, 255, 255]


def test_there_and_back_is_half_a_step_off_at_most_around_the_known_offset():
    x = np.linspace(-2, 2, 100_001, dtype=np.float32)
    error = dequantize(torch.from_numpy(quantize(x))).double().numpy() - x - 4 / 512
    assert np.abs(error).max() == pytest.approx(2 / 255, abs=1e-5)
    assert abs(error.mean()) < 1e-4


def test_every_byte_comes_back_from_its_own_value():
    q = np.arange(256, dtype=np.uint8)
    assert (quantize(dequantize(torch.from_numpy(q)).numpy() - np.float32(4 / 512)) == q).all()


def test_no_byte_says_that_something_is_not_a_number():
    with pytest.raises(ValueError, match="the features hold NaN"):
        quantize(np.array([0, np.nan], np.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_floats_are_taken_as_they_are(dtype):
    x = torch.randn(3, 2).to(dtype)
    assert torch.equal(dequantize(x), x.float())


def test_a_mask_is_true_where_a_frame_is_real():
    found = frame_mask(torch.tensor([2, 0, 3]), 3)
    assert found.tolist() == [[True, True, False], [False] * 3, [True] * 3]


def test_each_stream_has_its_own_mask():
    masks = _batch().masks()
    assert masks["rgb"].sum(1).tolist() == [4, 2, 0]
    assert masks["rgb"].shape == (3, 4)
    assert masks["audio"].tolist() == [[True], [False], [True]]


def test_labels_are_zeros_and_ones():
    found = _batch().labels(5)
    assert found.dtype == torch.float32
    assert found.tolist() == [[0, 1, 0, 1, 0], [0] * 5, [1, 0, 0, 0, 0]]


def test_rated_classes_are_ones_or_none_when_all_count():
    assert _batch().rated(5) is None
    rated = _batch(rated_ids=torch.tensor([4, 0, 2]), rated_counts=torch.tensor([1, 2, 0]))
    assert rated.rated(5).tolist() == [[0, 0, 0, 0, 1], [1, 0, 1, 0, 0], [0] * 5]


def test_a_video_that_nobody_restricted_counts_on_every_class():
    rated = _batch(
        rated_ids=torch.tensor([4, 0]),
        rated_counts=torch.tensor([1, 1, 0]),
        rated_all=torch.tensor([False, False, True]),
    )
    found = rated.rated(5)
    assert found.dtype == torch.float32
    assert found.tolist() == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [1] * 5]


def test_a_label_beyond_the_classes_is_an_error():
    with pytest.raises(IndexError):
        _batch().labels(3)


def test_a_batch_of_nothing_has_no_labels():
    empty = torch.zeros(0, dtype=torch.int64)
    batch = _batch(ids=[], streams={}, num_frames={}, label_ids=empty, label_counts=empty)
    assert len(batch) == 0
    assert batch.labels(5).shape == (0, 5)


def test_everything_moves_to_the_device():
    damaged = [DataError("cut off", path="x", record=1)]
    batch = _batch(
        rated_ids=torch.tensor([4]),
        rated_counts=torch.tensor([1, 0, 0]),
        rated_all=torch.tensor([False, True, True]),
        damaged=damaged,
    )
    moved = batch.to(torch.device("meta"))
    tensors = [*moved.streams.values(), *moved.num_frames.values(), moved.label_ids, moved.label_counts]
    assert all(tensor.is_meta for tensor in (*tensors, moved.rated_ids, moved.rated_counts, moved.rated_all))
    assert moved.ids == batch.ids
    assert moved.damaged == damaged
    assert _batch().to(torch.device("meta")).rated_ids is None
