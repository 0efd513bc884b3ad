from __future__ import annotations

import copy

import pytest
import torch

from tagreel.heads.chained_experts import ChainedExperts


def _reference(naive, head, rows):
    """Logits of every mixture, the last one's at the end."""
    logits = []
    for mixture, summary in zip(head.mixtures[:-1], head.summaries, strict=True):
        logits.append(naive.mixed(mixture, rows, rows))
        summed = naive.linear(summary, 1 / (1 + torch.exp(-logits[-1]))).clamp_min(0)
        lengths = torch.sqrt(sum(column**2 for column in summed.unbind(1)).clamp_min(1e-12))
        rows = torch.cat([rows, summed / lengths[:, None]], dim=1)
    return [*logits, naive.mixed(head.mixtures[-1], rows, rows)]


@pytest.mark.parametrize("null_expert", [True, False])
@pytest.mark.parametrize("links", [1, 3])
def test_each_mixture_sees_what_those_before_it_predicted(assert_follows, naive, links, null_expert):
    torch.manual_seed(0)
    head = ChainedExperts(4, 3, links=links, width=8, null_expert=null_expert)
    assert [mixture.gates.in_features for mixture in head.mixtures] == [4 + 8 * i for i in range(links + 1)]
    assert_follows(head, lambda head, rows: _reference(naive, head, rows)[-1], torch.randn(6, 4))


def test_the_supports_have_a_share_of_the_loss(naive):
    torch.manual_seed(0)
    head, x = ChainedExperts(4, 3, links=2, width=8, support=0.1), torch.randn(6, 4)

    def loss_of(logits):
        return logits.square().sum(1).mean()

    loss = head.total_loss(loss_of(head(x)), loss_of)
    exact = copy.deepcopy(head).double()
    first, second, last = map(loss_of, _reference(naive, exact, x.double()))
    expected = 0.9 * last + 0.1 * (first + second)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    found_grads = torch.autograd.grad(loss, list(head.parameters()))
    expected_grads = torch.autograd.grad(expected, list(exact.parameters()))
    for one, other in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_evaluation_keeps_no_supports():
    head = ChainedExperts(4, 3).eval()
    head(torch.randn(2, 4))
    with pytest.raises(AssertionError, match="after a forward in training"):
        head.total_loss(torch.zeros(()), torch.sum)


def test_parameters_are_those_of_its_mixtures_and_summaries():
    D, C, E, L, q = 1152, 4716, 4, 3, 256
    with torch.device("meta"):
        head = ChainedExperts(D, C, links=L, width=q, experts=E)
    mixtures = sum((D + link * q) * C * (2 * E + 1) + C * E for link in range(L + 1))
    assert sum(p.numel() for p in head.parameters()) == mixtures + L * (C * q + q)


@pytest.mark.parametrize("options", [{"links": 0}, {"width": 0}, {"support": 1.0}])
def test_what_it_cannot_be_is_named(options):
    with pytest.raises(ValueError, match=r"links=\d, width=\d+, support=\d\.\d+; expected at least 1"):
        ChainedExperts(4, 3, **options)
