from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tagreel.pools.soft_bag_of_words import SoftBagOfWords


def _shares(assignment, videos):
    """Soft assignments (F, K) of every video; all real frames share the statistics."""
    norm, logits = assignment.norm, torch.cat(videos) @ assignment.weight
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    logits = F.batch_norm(logits, mean, var, norm.weight, norm.bias, norm.training, eps=1e-3)
    raised = torch.exp(logits)
    return (raised / raised.sum(1, keepdim=True)).split([len(video) for video in videos])


def _naive(pool, videos):
    """The equation and the normalisation, one number at a time."""
    K = pool.assignment.out_dim
    rows = []
    for shares in _shares(pool.assignment, videos):
        parts = [[sum(assigned[k] for assigned in shares) for k in range(K)]]
        if pool.max_pool:
            parts.append([max(assigned[k] for assigned in shares) for k in range(K)])
        row = []
        for words in parts:
            length = torch.sqrt(sum(word**2 for word in words))
            row += [word / length for word in words]
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("max_pool", [False, True])
def test_follows_the_equation(assert_follows, max_pool):
    torch.manual_seed(0)
    assert_follows(SoftBagOfWords(5, clusters=3, max_pool=max_pool), _naive, 5)


def test_a_video_shown_twice_has_the_same_words():
    torch.manual_seed(0)
    pool, frames = SoftBagOfWords(5, clusters=3, max_pool=True).eval(), torch.randn(2, 4, 5)
    torch.testing.assert_close(pool(frames), pool(torch.cat([frames, frames], dim=1)))


def test_the_assignment_may_have_a_bias_instead_of_batch_norm():
    pool = SoftBagOfWords(5, clusters=3, batch_norm=False)
    with torch.no_grad():
        pool.assignment.weight.zero_()
        pool.assignment.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    words = torch.exp(torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(pool(torch.randn(1, 4, 5))[0], words / words.norm())
