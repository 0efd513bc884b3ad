from __future__ import annotations

import torch

from tagreel.pools.attention import Attention


def _naive(pool, videos):
    rows = []
    for video in videos:
        row = torch.zeros(pool.out_dim, dtype=torch.float64)
        raised = [torch.exp(sum(frame[d] * pool.score[d, 0] for d in range(len(frame)))) for frame in video]
        for share, frame in zip(raised, video, strict=True):
            row = row + share / sum(raised) * frame
        rows.append(row)
    return torch.stack(rows)


def test_follows_the_equation(assert_follows):
    torch.manual_seed(0)
    assert_follows(Attention(5), _naive, 5)
    assert_follows(Attention(5), _naive, 5, lengths=(2, 0, 3))


def test_one_frame_is_taken_as_it_is():
    frame = torch.randn(3, 1, 5)
    assert torch.equal(Attention(5)(frame), frame[:, 0])


def test_a_frame_that_scores_far_above_the_others_is_the_descriptor():
    pool, frames = Attention(2), torch.tensor([[[0.0, 1.0], [50.0, 2.0], [1.0, 3.0]]])
    with torch.no_grad():
        pool.score.copy_(torch.tensor([[1.0], [0.0]]))
    torch.testing.assert_close(pool(frames), frames[:, 1])
