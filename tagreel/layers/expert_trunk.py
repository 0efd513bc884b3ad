"""The hidden layers below the experts of CMU Informedia's deeper mixtures.

    h₁ = Drop(BN(a(W₁ x + b₁))),   h₂ = Drop(BN(a(W₂ h₁ + b₂))), ...

Huang et al., "Video Representation Learning and Latent Concept Mining for Large-scale Multi-label Video
Classification", 2017, arXiv 1707.01408: "one perceptron layer, then batch norm, then dropout", 4,096 wide,
keep rate 0.8. The paper does not name the activation a; ReLU is assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.product import Linear

Activation = Literal["relu", "gelu", "tanh"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}


class ExpertTrunk(nn.Module):
    """(B, D) in, one (B, width) a layer out; `widths` are the layers', from the bottom."""

    def __init__(
        self, dim: int, *, widths: tuple[int, ...], activation: Activation = "relu", dropout: float = 0.2
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation={activation!r}; expected one of {', '.join(_ACTIVATIONS)}")
        if not widths or min(widths) < 1:
            raise ValueError(
                f"the hidden layers are {widths} wide; expected one layer or more, each at least 1"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}; expected 0 to less than 1")
        pairs = zip((dim, *widths[:-1]), widths, strict=True)
        self.layers = nn.ModuleList(_Perceptron(*pair, activation, dropout) for pair in pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        """What every layer says, from the bottom."""
        hidden = []
        for layer in self.layers:
            x = layer(x)
            hidden.append(x)
        return hidden


class _Perceptron(nn.Module):
    def __init__(self, dim: int, width: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.activation, self.dropout = activation, dropout
        self.linear = Linear(dim, width)
        self.norm = MaskedBatchNorm(width)
        with torch.no_grad():
            nn.init.xavier_uniform_(self.linear.weight)
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(_ACTIVATIONS[self.activation](self.linear(x)))
        return F.dropout(x, self.dropout, self.training)
