"""Stacked LSTM with batch norm between the steps as well as before them.

    i, f, j, o = BN(W_x x; γ, b) + BN(W_h h; γ, 0);   c' = σ(f) ∘ c + σ(i) ∘ tanh(j)
    h' = σ(o) ∘ tanh(BN(c'; γ, β))

Cooijmans et al., "Recurrent Batch Normalization", 2016, arXiv 1603.09025, section 3; every γ starts at 0.1
(section 4), the forget gate's b at 1. The paper keeps statistics for each step up to a largest; videos differ
in length, so here one set serves all steps, and a step is normalised in training over the videos that have
it. CMU Informedia (Huang et al., arXiv 1707.01408, table 2) used it and does not say how.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tagreel.layers.lstm_cell import glorot
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.product import product
from tagreel.layers.ragged import Mask
from tagreel.layers.recurrence import Readout, Recurrence, Stack, States
from tagreel.layers.repeated import Multiply


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
    def forward(self, frames: Tensor, mask: Mask) -> tuple[Tensor, States]:
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

    def inputs(self, frames: Tensor) -> States:
        return (self.input_norm(product(frames, self.kernel[:, : self.dim].contiguous().t())),)

    def matrices(self) -> States:
        return (self.kernel[:, self.dim :],)

    def weights(self) -> States:
        if self.state_norm.training:  # which may be so while the rest is not, to take statistics anew
            return ()
        return *self.state_norm.scale_and_shift(), *self.memory_norm.scale_and_shift()

    def step(self, state: States, inputs: States, recall: Sequence[Multiply], weights: States) -> States:
        (c, h), (gates,), (for_gates,) = state, inputs, recall
        recalled = for_gates(h)
        recalled = recalled * weights[0] + weights[1] if weights else self.state_norm.step(recalled)
        i, f, j, o = (gates + recalled).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(j)
        memory = c * weights[2] + weights[3] if weights else self.memory_norm.step(c)
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
        self._seen: list[tuple[int, Tensor, Tensor]] = []

    def step(self, x: Tensor) -> Tensor:
        """Normalise (B, D) over the videos that have this step, and remember its moments."""
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, var = self.running_mean, self.running_var
        if len(x) > 1:
            mean = exact.mean(0)
            var = (exact - mean).square().mean(0)
            self._seen.append((len(x), mean.detach(), var.detach()))
        elif len(x) == 1:
            self._seen.append((1, exact[0].detach(), torch.zeros_like(var)))
        return ((exact - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias).to(x.dtype)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What normalising with the running statistics multiplies with and adds."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    @torch.no_grad()
    def update(self) -> None:
        """Move the running statistics towards those of the steps since the last call."""
        if not self._seen:
            return
        sizes, *moments = zip(*self._seen, strict=True)
        self._seen.clear()
        if (total := sum(sizes)) > 1:
            means, variances = (torch.stack(seen) for seen in moments)
            counts = means.new_tensor(sizes)[:, None]
            mean = (counts * means).sum(0) / total
            var = (counts * (variances + (means - mean).square())).sum(0) / (total - 1)
            self.batches += 1
            share = torch.clamp(1.0 / self.batches, min=self.momentum)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(var.to(self.running_var.dtype), share)
