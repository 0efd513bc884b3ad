"""A gated mixture of whole networks, each taught by all of them together while they train.

    a = softmax(W BN(mean frame) + b),   z = Σ_m a_m z_m
    loss = loss(z) + Σ_m loss(z_m) + T² Σ_m KL(softmax(z / T) ‖ softmax(z_m / T))

the softmaxes over classes. Lin, Xiao, Fan, "NeXtVLAD", 2018, arXiv 1811.05014, section 3.4, after Lan, Zhu,
Gong, arXiv 1806.04606. As in the authors' code no gradient is stopped: the teacher z learns from its
students too. The mean here is that of the real frames. That of the authors' code of 2018, with which the
published scores were presumably reached, ran over features instead and gave the gate one number for each of
300 rows; that of 2019 runs over the 300 rows, padding included. Both are there to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.initializers import he_truncated_
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.ragged import Mask, count, padded, total
from tagreel.layers.sums import Sums

_ROWS = 300
"""What the authors pad a video to, and cut it to."""


class Mixture(nn.Module):
    """What the gate reads of a video (B, G) and the logits (B, C) of `branches` networks in, logits out.

    `dim` is the width of all features together. `temperature` is T; 0 leaves the distillation out ("0T" in
    the paper's table 3). `gate` is what is averaged, see above: "frames", the "padded" 300 rows, "features".
    """

    def __init__(
        self,
        dim: int,
        *,
        branches: int = 3,
        temperature: float = 3.0,
        gate: Literal["frames", "padded", "features"] = "frames",
    ) -> None:
        super().__init__()
        if branches < 2 or temperature < 0:
            raise ValueError(
                f"branches={branches}, temperature={temperature}; expected 2 or more branches, and 0 or more"
            )
        if gate not in ("frames", "padded", "features"):
            raise ValueError(f"gate={gate!r}; expected frames, padded or features")
        self.branches, self.temperature, self.gate_reads = branches, temperature, gate
        width = _ROWS if gate == "features" else dim
        self.norm = MaskedBatchNorm(width)
        self.gate = nn.Linear(width, branches)
        with torch.no_grad():
            he_truncated_(self.gate.weight, width)
            self.gate.bias.zero_()
        self._seen: tuple[Tensor, Sequence[Tensor]] | None = None

    def look(self, frames: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> Tensor:
        """What the gate reads (B, G) of the features' frames, zeros where padded."""
        if self.gate_reads == "frames":
            return self.finish(self.accumulate(frames, masks))
        frames, _ = padded(frames, masks)
        if self.gate_reads == "features":
            rows = [F.pad(x, (0, 0, 0, _ROWS - x.shape[1])) for x in frames.values()]
            return torch.cat(rows, dim=-1).mean(-1)  # (B, 300)
        return torch.cat([x[:, :_ROWS].sum(1) / _ROWS for x in frames.values()], dim=1)

    def accumulate(self, frames: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> Sums:
        """For `gate` "frames": the sums of each feature's frames (B, D), and their numbers (B, 1)."""
        pairs = [(x, masks[name]) for name, x in frames.items()]
        return Sums((*(total(*pair) for pair in pairs), *(count(*pair) for pair in pairs)))

    def finish(self, state: Sums) -> Tensor:
        """What the gate reads, of what `accumulate` gave."""
        half = len(state.sums) // 2
        pairs = zip(state.sums[:half], state.sums[half:], strict=True)
        return torch.cat([summed / number.clamp_min(1) for summed, number in pairs], dim=1)

    def forward(self, seen: Tensor, logits: Sequence[Tensor]) -> Tensor:
        """Weigh the branches' logits by the gate."""
        share = self.gate(self.norm(seen)).softmax(-1)  # (B, M)
        # Not a matrix product: autocast would round the logits to eight bits.
        mixed: Tensor = (share.T[..., None] * torch.stack(list(logits))).sum(0)
        self._seen = (mixed, logits) if self.training else None
        return mixed

    def total_loss(self, loss: Tensor, losses_of: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        """The loss of the mixture's logits, with those of its branches and the distillation.

        `losses_of` gives each branch's loss of its logits of the same batch; to be called after `forward`.
        """
        assert self._seen is not None, "total_loss belongs after a forward in training"
        mixed, logits = self._seen
        self._seen = None
        for branch, loss_of in zip(logits, losses_of, strict=True):
            loss = loss + loss_of(branch)
        if self.temperature:
            teacher = (mixed.float() / self.temperature).log_softmax(-1)
            for branch in logits:
                student = (branch.float() / self.temperature).log_softmax(-1)
                divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
                loss = loss + self.temperature**2 * divergence
        return loss
