"""Batch norm that never sees a padded frame.

Ioffe and Szegedy, "Batch Normalization", 2015, arXiv 1502.03167. Every YouTube-8M system of 2017 and 2018
normalised padded rows along with real ones, so that a video's score depended on the lengths of its
neighbours; here statistics come from real rows alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedBatchNorm(nn.Module):
    """(..., D) and a mask (...) in, (..., D) out, each of the D columns normalised over the real rows.

    `momentum` is the share of a new batch in the running statistics (TF-Slim, which the references use, has
    0.001) and `eps` is TF-Slim's. The first batches are averaged evenly instead, with share 1/n as long as
    that is larger, so that a short run does not evaluate with its initial statistics. A training batch of
    fewer than two real rows has no variance: it is normalised with the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor
    batches: Tensor

    def __init__(self, dim: int, *, momentum: float = 0.01, eps: float = 1e-3) -> None:
        super().__init__()
        self.out_dim = dim
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise; what comes out in padded rows says nothing and is for the caller to mask."""
        if self.training:
            rows = x.reshape(-1, x.shape[-1]) if mask is None else x[mask]
            if len(rows) > 1:
                rows = self._normalize_by_batch(rows)
                return (
                    rows.view(x.shape) if mask is None else rows.new_zeros(x.shape).index_put((mask,), rows)
                )
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return (x * scale + (self.bias - self.running_mean * scale)).to(x.dtype)

    def _normalize_by_batch(self, rows: Tensor) -> Tensor:
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        # Momentum 1 makes the fused kernel hand out the batch's own statistics.
        rows = F.batch_norm(rows, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        with torch.no_grad():
            self.batches += 1
            share = torch.clamp(1.0 / self.batches, min=self.momentum)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var, share)
        return rows
