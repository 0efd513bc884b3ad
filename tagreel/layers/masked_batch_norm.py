"""Batch norm that never sees a padded frame.

Ioffe and Szegedy, "Batch Normalization", 2015, arXiv 1502.03167. Every YouTube-8M system of 2017 and 2018
normalised padded rows along with real ones, so that a video's score depended on the lengths of its
neighbours; here statistics come from real rows alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.product import Scaled
from tagreel.layers.ragged import Mask


class MaskedBatchNorm(nn.Module):
    """(..., D) and its mask in, (..., D) out, each of the D columns normalised over the real rows.

    `momentum` is the share of a new batch in the running statistics (TF-Slim, which the references use, has
    0.001) and `eps` is TF-Slim's. The first batches are averaged evenly instead, with share 1/n as long as
    that is larger, so that a short run does not evaluate with its initial statistics. A training batch of
    fewer than two real rows has no variance: it is normalised with the running statistics. Where several
    processes train on parts of a batch, `across` adds up a tensor over them, gradients included, and the
    statistics are those of the whole batch.
    """

    running_mean: Tensor
    running_var: Tensor
    batches: Tensor

    packs = True

    def __init__(self, dim: int, *, momentum: float = 0.01, eps: float = 1e-3) -> None:
        super().__init__()
        self.out_dim = dim
        self.momentum, self.eps = momentum, eps
        self.across: Callable[[Tensor], Tensor] | None = None
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, mask: Mask = None) -> Tensor:
        """Normalise; what comes out in padded rows says nothing and is for the caller to mask."""
        if self.training:
            rows = x[mask] if isinstance(mask, Tensor) else x.reshape(-1, x.shape[-1])
            if len(rows) > 1 or self.across is not None:
                rows = self._normalize_by_batch(rows)
                return (
                    rows.new_zeros(x.shape).index_put((mask,), rows)
                    if isinstance(mask, Tensor)
                    else rows.view(x.shape)
                )
        scale, shift = self.scale_and_shift()
        return (x * scale + shift).to(x.dtype)

    def scaled(self, x: Tensor | Scaled, mask: Mask = None) -> Tensor | Scaled:
        """What `forward` gives, its last step left to a product where x has no gradient."""
        if isinstance(x, Scaled):  # in evaluation alone
            return x.then(*self.scale_and_shift())
        if x.requires_grad or (self.training and (self.across is not None or isinstance(mask, Tensor))):
            return self(x, mask)  # type: ignore[no-any-return]
        rows = x.reshape(-1, x.shape[-1])
        if self.training and len(rows) > 1:
            return Scaled(self._by_batch(rows, None, None).view(x.shape), self.weight, self.bias)
        return Scaled(x, *self.scale_and_shift())

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What normalising with the running statistics multiplies with and adds, (D,) each."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    def _normalize_by_batch(self, rows: Tensor) -> Tensor:
        if self.across is not None:
            return self._normalize_by_all(rows, self.across)
        return self._by_batch(rows, self.weight, self.bias)

    def _by_batch(self, rows: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        # Momentum 1 makes the fused kernel hand out the batch's own statistics.
        rows = F.batch_norm(rows, mean, var, weight, bias, True, 1.0, self.eps)
        with torch.no_grad():
            self.batches += 1
            share = torch.clamp(1.0 / self.batches, min=self.momentum)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var, share)
        return rows

    def _normalize_by_all(self, rows: Tensor, across: Callable[[Tensor], Tensor]) -> Tensor:
        x = rows.to(torch.promote_types(rows.dtype, torch.float32))
        sums = across(torch.cat([x.sum(0), x.new_tensor([len(x)])]))
        count = sums[-1].detach()
        # Asked of tensors, so that no process waits for the count.
        enough, n = count > 1, count.clamp_min(2)
        mean = torch.where(enough, sums[:-1] / n, self.running_mean)
        centred = x - mean
        # In a second turn: a difference of large sums would lose the variance's digits.
        var = torch.where(enough, across(centred.square().sum(0)) / n, self.running_var)
        with torch.no_grad():
            self.batches += enough
            share = torch.clamp(1.0 / self.batches.clamp_min(1), min=self.momentum) * enough
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_((var * (n / (n - 1))).to(self.running_var.dtype), share)
        return (centred * (torch.rsqrt(var + self.eps) * self.weight) + self.bias).to(rows.dtype)
