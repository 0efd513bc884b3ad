from __future__ import annotations

import torch

from tagreel.pools.max import Max


def _naive(pool, videos):
    rows = []
    for video in videos:
        if not len(video):
            rows.append(torch.zeros(pool.out_dim, dtype=torch.float64))
            continue
        largest = list(video[0])
        for frame in video[1:]:
            largest = [value if value > best else best for value, best in zip(frame, largest, strict=True)]
        rows.append(torch.stack(largest))
    return torch.stack(rows)


def test_takes_the_largest_of_the_real_frames(assert_follows):
    assert_follows(Max(5), _naive, 5)
    assert_follows(Max(5), _naive, 5, lengths=(2, 0, 3))


def test_padded_zeros_do_not_beat_negative_frames():
    frames = torch.tensor([[[-3.0], [-2.0], [0.0]]])
    assert Max(1)(frames, torch.tensor([[True, True, False]])).item() == -2.0
