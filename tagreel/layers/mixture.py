"""A gated mixture of whole networks, each taught by all of them together while they train.

    a = softmax(W BN(mean frame) + b),   z = Σ_m a_m z_m
    loss = loss(z) + Σ_m loss(z_m) + T² Σ_m KL(softmax(z / T) ‖ softmax(z_m / T))

the softmaxes over classes. Lin, Xiao, Fan, "NeXtVLAD", 2018, arXiv 1811.05014, section 3.4, after Lan, Zhu,
Gong, arXiv 1806.04606. As in the authors' code no gradient is stopped: the teacher z learns from its
students too. Their first public code gave the gate the mean over features instead of over frames; the mean
here is that of the real frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.initializers import he_truncated_
from tagreel.layers.masked_batch_norm import MaskedBatchNorm


class Mixture(nn.Module):
    """The mean frame (B, D) and the logits (B, C) of `branches` networks in, logits (B, C) out.

    `temperature` is T; 0 leaves the distillation out ("0T" in the paper's table 3).
    """

    def __init__(self, dim: int, *, branches: int = 3, temperature: float = 3.0) -> None:
        super().__init__()
        if branches < 2 or temperature < 0:
            raise ValueError(
                f"branches={branches}, temperature={temperature}; expected 2 or more branches, and 0 or more"
            )
        self.branches, self.temperature = branches, temperature
        self.norm = MaskedBatchNorm(dim)
        self.gate = nn.Linear(dim, branches)
        with torch.no_grad():
            he_truncated_(self.gate.weight, dim)
            self.gate.bias.zero_()
        self._seen: tuple[Tensor, Sequence[Tensor]] | None = None

    def forward(self, mean: Tensor, logits: Sequence[Tensor]) -> Tensor:
        """Weigh the branches' logits by the gate."""
        share = self.gate(self.norm(mean)).softmax(-1)  # (B, M)
        # Not a matrix product: autocast would round the logits to eight bits.
        mixed: Tensor = (share.T[..., None] * torch.stack(list(logits))).sum(0)
        self._seen = (mixed, logits) if self.training else None
        return mixed

    def total_loss(self, loss: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """The loss of the mixture's logits, with those of its branches and the distillation.

        `loss_of` gives the loss of other logits of the same batch; to be called after `forward`.
        """
        assert self._seen is not None, "total_loss belongs after a forward in training"
        mixed, logits = self._seen
        self._seen = None
        for branch in logits:
            loss = loss + loss_of(branch)
        if self.temperature:
            teacher = (mixed.float() / self.temperature).log_softmax(-1)
            for branch in logits:
                student = (branch.float() / self.temperature).log_softmax(-1)
                divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
                loss = loss + self.temperature**2 * divergence
        return loss
