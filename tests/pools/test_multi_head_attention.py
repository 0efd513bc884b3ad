from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tagreel.pools.multi_head_attention import MultiHeadAttention


def _naive(pool, videos):
    """The equation, each frame multiplied by its values before it is weighed."""
    H, D, V = pool.values.shape
    rows = []
    for video in videos:
        row = [pool.bias[i] for i in range(H * V)]
        for h in range(H):
            raised = [torch.exp(sum(frame[d] * pool.queries[d, h] for d in range(D))) for frame in video]
            for share, frame in zip(raised, video, strict=True):
                for v in range(V):
                    value = sum(frame[d] * pool.values[h, d, v] for d in range(D))
                    row[h * V + v] = row[h * V + v] + share / sum(raised) * value
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_follows_the_equation(assert_follows):
    torch.manual_seed(0)
    assert_follows(MultiHeadAttention(5, heads=3, width=6), _naive, 5)
    assert_follows(MultiHeadAttention(5, heads=2, width=4), _naive, 5, lengths=(2, 0, 3))


def test_is_pytorchs_own_attention_with_the_keys_multiplied_out():
    torch.manual_seed(0)
    D, H, V = 5, 3, 2
    pool = MultiHeadAttention(D, heads=H, width=H * V)
    frames, mask = torch.randn(2, 4, D), torch.tensor([[True] * 4, [True, True, False, False]])
    queries, keys = torch.randn(H, 1, 7), torch.randn(H, D, 7)
    with torch.no_grad():
        pool.queries.copy_(torch.einsum("hqi,hdi->dh", queries, keys) / 7**0.5)
    expected = F.scaled_dot_product_attention(
        queries.expand(2, H, 1, 7),
        torch.einsum("btd,hdi->bhti", frames, keys),
        torch.einsum("btd,hdv->bhtv", frames, pool.values),
        attn_mask=mask[:, None, None, :],
    )
    torch.testing.assert_close(pool(frames, mask), expected.flatten(1) + pool.bias)


def test_a_width_that_the_heads_do_not_divide_is_named():
    with pytest.raises(ValueError, match="width=10 is not a multiple of heads=4"):
        MultiHeadAttention(5, heads=4, width=10)
