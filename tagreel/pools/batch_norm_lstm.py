"""Stacked LSTM with batch norm between the steps as well as before them.

    i, f, j, o = BN(W_x x; γ, b) + BN(W_h h; γ, 0);   c' = σ(f) ∘ c + σ(i) ∘ tanh(j)
    h' = σ(o) ∘ tanh(BN(c'; γ, β))

Cooijmans et al., "Recurrent Batch Normalization", 2016, arXiv 1603.09025, section 3; every γ starts at 0.1
(section 4), the forget gate's b at 1. The paper keeps statistics for each step up to a largest; videos differ
in length, so here one set serves all steps, and a step is normalised in training over the videos that have
it. CMU Informedia (Huang et al., arXiv 1707.01408, table 2) used it and does not say how.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.lstm_cell import glorot
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.recurrence import Readout, Recurrence, Stack, States


class BatchNormLSTM(Stack):
    """(B, T, D) and a mask (B, T) in, (B, out_dim) out.

    `units` are the layers' widths, a direction. `readout` is what becomes of the states, as in an LSTM:
    "last", "states", "thirds" or "attention".
    """

    def __init__(
        self,
        dim: int,
        *,
        units: tuple[int, ...] = (1024, 1024),
        bidirectional: bool = False,
        readout: Readout = "last",
    ) -> None:
        def layer(dim: int, width: int) -> Recurrence:
            return _Layer([_Cell(dim, width) for _ in range(1 + bidirectional)])

        super().__init__(dim, units=units, layer=layer, readout=readout)


class _Layer(Recurrence):
    def forward(self, frames: Tensor, mask: Tensor | None) -> tuple[Tensor, States]:
        result = super().forward(frames, mask)
        for module in self.modules():
            if isinstance(module, _StepNorm):
                module.update()
        return result


class _Cell(nn.Module):
    num_states = 2

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.dim, self.units = dim, units
        self.kernel = nn.Parameter(glorot(4 * units, dim + units))
        self.input_norm = MaskedBatchNorm(4 * units)
        self.state_norm = _StepNorm(4 * units, shift=False)
        self.memory_norm = _StepNorm(units)
        with torch.no_grad():
            for norm in (self.input_norm, self.state_norm, self.memory_norm):
                norm.weight.fill_(0.1)
            self.input_norm.bias[units : 2 * units] = 1.0

    def inputs(self, frames: Tensor, mask: Tensor | None) -> States:
        real = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device) if mask is None else mask
        return self.input_norm(F.linear(frames, self.kernel[:, : self.dim]), mask), real[..., None]

    def weights(self) -> States:
        of_state = self.kernel[:, self.dim :]
        if self.state_norm.training:  # which may be so while the rest is not, to take statistics anew
            return (of_state,)
        return of_state, *self.state_norm.scale_and_shift(), *self.memory_norm.scale_and_shift()

    def step(self, state: States, inputs: States, weights: States) -> States:
        (c, h), (of_frame, real), (of_state, *fixed) = state, inputs, weights
        recalled = F.linear(h, of_state)
        recalled = recalled * fixed[0] + fixed[1] if fixed else self.state_norm.step(recalled, real)
        i, f, j, o = (of_frame + recalled).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(j)
        memory = c * fixed[2] + fixed[3] if fixed else self.memory_norm.step(c, real)
        return c, torch.sigmoid(o) * torch.tanh(memory)


class _StepNorm(MaskedBatchNorm):
    """Batch norm of one step at a time, whose running statistics are those of all steps together.

    A step that fewer than two videos have is normalised with the running statistics. Its eps is the paper's
    order of magnitude: the state's share of the gates varies little at first.
    """

    def __init__(self, dim: int, *, shift: bool = True) -> None:
        super().__init__(dim, eps=1e-5)
        if not shift:  # b is there already
            del self.bias
            self.register_buffer("bias", torch.zeros(dim))
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def step(self, x: Tensor, real: Tensor) -> Tensor:
        """Normalise (B, D) over the videos that are `real` (B, 1) in this step, and remember its moments."""
        exact = torch.promote_types(x.dtype, torch.float32)
        count = real.sum()
        mean = (x * real).sum(0, dtype=exact) / count.clamp_min(1)
        var = ((x - mean).square() * real).sum(0) / count.clamp_min(1)
        self._seen.append((count, mean.detach(), var.detach()))
        mean = torch.where(count > 1, mean, self.running_mean)
        var = torch.where(count > 1, var, self.running_var)
        return ((x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias).to(x.dtype)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What normalising with the running statistics multiplies with and adds."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    @torch.no_grad()
    def update(self) -> None:
        """Move the running statistics towards those of the steps since the last call."""
        if not self._seen:
            return
        counts, means, variances = (torch.stack(moments) for moments in zip(*self._seen, strict=True))
        self._seen.clear()
        total, counts = counts.sum(), counts[:, None]
        if total > 1:
            mean = (counts * means).sum(0) / total
            var = (counts * (variances + (means - mean).square())).sum(0) / (total - 1)
            self.batches += 1
            share = torch.clamp(1.0 / self.batches, min=self.momentum)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(var.to(self.running_var.dtype), share)
