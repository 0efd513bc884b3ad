from __future__ import annotations

import torch

from tagreel.pools.mean import Mean


def _naive(pool, videos):
    rows = []
    for video in videos:
        total = torch.zeros(video.shape[1], dtype=torch.float64)
        for frame in video:
            total = total + frame
        rows.append(total / max(len(video), 1))
    return torch.stack(rows)


def test_divides_by_the_real_frames(assert_follows):
    assert_follows(Mean(5), _naive, 5)
    assert_follows(Mean(5), _naive, 5, lengths=(2, 0, 3))


def test_the_mean_of_a_video_level_record_is_the_record():
    record = torch.randn(3, 1, 7)
    assert torch.equal(Mean(7)(record, torch.ones(3, 1, dtype=torch.bool)), record[:, 0])


def test_has_nothing_to_learn():
    assert not list(Mean(5).parameters())
