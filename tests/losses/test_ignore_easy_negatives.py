from __future__ import annotations

import pytest
import torch

from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.losses.ignore_easy_negatives import IgnoreEasyNegatives


@pytest.mark.parametrize("threshold", [0.15, 0.2, 0.9])
def test_follows_the_equation(threshold, follows_the_equation):
    def term(y, z, p):
        if y == 1:
            return -torch.log(p)
        return 0 * z if p < threshold else -torch.log(1 - p)

    follows_the_equation(IgnoreEasyNegatives(threshold=threshold), term)


@pytest.mark.parametrize("threshold", [0.15, 0.2])
def test_agrees_with_the_authors_code_but_for_its_epsilon(threshold):
    torch.manual_seed(0)
    logits, labels = 2 * torch.randn(6, 9), (torch.rand(6, 9) < 0.3).float()
    p = torch.sigmoid(logits)
    p = torch.where((labels == 0) & (p < threshold), 0.0, p)
    theirs = -(labels * torch.log(p + 1e-5) + (1 - labels) * torch.log(1 - p + 1e-5)).sum(1).mean()
    ours = IgnoreEasyNegatives(threshold=threshold)(logits, labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_without_a_threshold_it_is_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 6), (torch.rand(4, 6) < 0.5).float()
    plain = CrossEntropy()(logits, labels)
    torch.testing.assert_close(IgnoreEasyNegatives(threshold=0)(logits, labels), plain)


def test_a_threshold_that_drops_every_negative_is_refused():
    with pytest.raises(ValueError, match="expected 0 to less than 1"):
        IgnoreEasyNegatives(threshold=1.0)
