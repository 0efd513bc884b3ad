"""The gated recurrent unit, with its reset gate after or before the candidate's matrix.

    r, u = σ(W_g [x, h] + b_g);   h' = u ∘ h + (1 - u) ∘ n
    after:  n = tanh(W_x x + r ∘ (W_h h) + b);   before:  n = tanh(W_x x + W_h (r ∘ h) + b)

Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014, arXiv 1406.1078, where it
stands before, as in TensorFlow's GRUCell; PyTorch's kernel has it after. One bias, 3h(in + h + 1) parameters;
that of the gates starts at 1, as in TensorFlow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.lstm_cell import glorot
from tagreel.layers.recurrence import Recurrence, States, fused


class GRUCell(nn.Module):
    """Kernels of the gates (2H, D + H) and of the candidate (H, D + H), each one tensor as in TensorFlow."""

    num_states = 1
    hold = (0.0, 1e4, 0.0)  # σ is then exactly 1 for the update gate

    def __init__(self, dim: int, units: int, *, reset_before: bool = False) -> None:
        super().__init__()
        self.dim, self.units, self.reset_before = dim, units, reset_before
        self.gate_kernel = nn.Parameter(glorot(2 * units, dim + units))
        self.gate_bias = nn.Parameter(torch.ones(2 * units))
        self.kernel = nn.Parameter(glorot(units, dim + units))
        self.bias = nn.Parameter(torch.zeros(units))

    def inputs(self, frames: Tensor, mask: Tensor | None) -> States:
        """The frames' share of gates and candidate, (B, T, 3H)."""
        of_frames, _, bias = self.fused()
        return (F.linear(frames, of_frames, bias),)

    def weights(self) -> States:
        """The state's share of both kernels, (2H, H) and (H, H)."""
        return self.gate_kernel[:, self.dim :], self.kernel[:, self.dim :]

    def step(self, state: States, inputs: States, weights: States) -> States:
        """(h,) to (h',)."""
        [h], [x], (of_gates, of_candidate) = state, inputs, weights
        gates, x = x[:, : 2 * self.units], x[:, 2 * self.units :]
        r, u = torch.sigmoid(gates + F.linear(h, of_gates)).chunk(2, dim=-1)
        recalled = F.linear(r * h, of_candidate) if self.reset_before else r * F.linear(h, of_candidate)
        return (u * h + (1 - u) * torch.tanh(x + recalled),)

    def fused(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `torch.gru` takes; its gates come in our order."""
        kernel = torch.cat([self.gate_kernel, self.kernel])
        return kernel[:, : self.dim], kernel[:, self.dim :], torch.cat([self.gate_bias, self.bias])


class GRULayer(Recurrence):
    """A layer of such cells, in PyTorch's kernel wherever that can be."""

    def __init__(
        self, dim: int, units: int, *, bidirectional: bool = False, reset_before: bool = False
    ) -> None:
        super().__init__([GRUCell(dim, units, reset_before=reset_before) for _ in range(1 + bidirectional)])
        self.reset_before = reset_before

    def forward(self, frames: Tensor, mask: Tensor | None) -> tuple[Tensor, States]:
        """Outputs (B, T, W) and (h,); frame by frame when exported, since the kernel would fix T."""
        if self.reset_before or torch.compiler.is_exporting():
            return super().forward(frames, mask)
        return fused(torch.gru, list(self.cells), frames, mask)  # type: ignore[arg-type]
