"""Non-local block in embedded Gaussian form: every cluster descriptor looks at all others.

    y_i = Σ_j softmax_j(s · θ(v_i)ᵀ φ(v_j)) g(v_j),   v̂_i = v_i + W y_i

Wang, Girshick, Gupta, He, "Non-local Neural Networks", 2018, arXiv 1711.07971; on NetVLAD's clusters Tang,
Zhang, Wang, Chen, Ma, Jiang, "Non-local NetVLAD Encoding for Video Classification", 2018, arXiv 1810.00207.
The latter's slides have no s; the authors' code takes 1/sqrt(D) in two of its three models and 1/64 in the
other. W starts at random as in that code, not at zero as in the first paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class NonLocal(nn.Module):
    """Rows (B, K, D) in, (B, K, D) out.

    `inner` is the width of θ, φ and g, and `scale` is s, None for 1/sqrt(D). With `reuse_phi` the values are
    φ(v), as two of the authors' three models have it by an oversight; g is then made and counted, and unused.
    """

    def __init__(
        self, dim: int, *, inner: int = 64, scale: float | None = None, reuse_phi: bool = False
    ) -> None:
        super().__init__()
        if inner < 1:
            raise ValueError(f"NonLocal: inner={inner}; expected at least 1")
        self.out_dim = dim
        self.scale = dim**-0.5 if scale is None else scale
        self.reuse_phi = reuse_phi
        self.theta = nn.Parameter(torch.randn(dim, inner) / math.sqrt(dim))
        self.phi = nn.Parameter(torch.randn(dim, inner) / math.sqrt(dim))
        self.g = nn.Parameter(torch.randn(dim, inner) / math.sqrt(dim))
        self.out = nn.Parameter(torch.randn(inner, dim) / math.sqrt(inner))

    def forward(self, rows: Tensor) -> Tensor:
        """Add to each row what the rows like it say."""
        # In the rows' own precision, which may be float64 where they are sums over hours.
        theta, phi, g = (weight.to(rows.dtype) for weight in (self.theta, self.phi, self.g))
        keys = rows @ phi  # (B, K, inner)
        values = keys if self.reuse_phi else rows @ g
        attention = (self.scale * (rows @ theta) @ keys.transpose(1, 2)).softmax(-1)  # (B, K, K)
        return rows + attention.to(values.dtype) @ values @ self.out.to(values.dtype)
