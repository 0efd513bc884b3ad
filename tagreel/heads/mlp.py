"""Logistic regression above one hidden layer, z = V min(max(W x + b, 0), 6) + c.

In the code of Zou et al., "The YouTube-8M Kaggle Competition: Challenges and Methods", 2017, arXiv 1706.09274
(github.com/taufikxu/youtube): 1,024 units, ReLU6.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.product import Linear


class MLP(nn.Module):
    """(B, D) in, logits (B, C) out; both layers start Xavier, their biases at 0."""

    def __init__(self, dim: int, classes: int, *, hidden: int = 1024) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"MLP: hidden={hidden}; expected at least 1")
        self.hidden = Linear(dim, hidden)
        self.linear = Linear(hidden, classes)
        with torch.no_grad():
            for linear in (self.hidden, self.linear):
                nn.init.xavier_uniform_(linear.weight)
                linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes."""
        return self.linear(F.relu6(self.hidden(x)))  # type: ignore[no-any-return]
