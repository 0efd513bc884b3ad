"""The gated recurrent unit, with its reset gate after or before the candidate's matrix.

    r, u = σ(W_g [x, h] + b_g);   h' = u ∘ h + (1 - u) ∘ n
    after:  n = tanh(W_x x + r ∘ (W_h h) + b);   before:  n = tanh(W_x x + W_h (r ∘ h) + b)

Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014, arXiv 1406.1078, where it
stands before, as in TensorFlow's GRUCell; PyTorch's kernel has it after. One bias, 3h(in + h + 1) parameters;
that of the gates starts at 1, as in TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tagreel.layers.lstm_cell import glorot
from tagreel.layers.product import product
from tagreel.layers.recurrence import Recurrence, States
from tagreel.layers.repeated import Multiply


class GRUCell(nn.Module):
    """Kernels of the gates (2H, D + H) and of the candidate (H, D + H), each one tensor as in TensorFlow."""

    num_states = 1

    def __init__(self, dim: int, units: int, *, reset_before: bool = False) -> None:
        super().__init__()
        self.dim, self.units, self.reset_before = dim, units, reset_before
        self.gate_kernel = nn.Parameter(glorot(2 * units, dim + units))
        self.gate_bias = nn.Parameter(torch.ones(2 * units))
        self.kernel = nn.Parameter(glorot(units, dim + units))
        self.bias = nn.Parameter(torch.zeros(units))

    def inputs(self, frames: Tensor) -> States:
        """The frames' share of the gates, (..., 2H), and of the candidate, (..., H)."""
        of_gates, of_candidate = self.gate_kernel[:, : self.dim], self.kernel[:, : self.dim]
        return (
            product(frames, of_gates.contiguous().t(), self.gate_bias),
            product(frames, of_candidate.contiguous().t(), self.bias),
        )

    def matrices(self) -> States:
        """The state's share of both kernels: as one (3H, H), or (2H, H) and (H, H) where r stands between."""
        kernels: States = (self.gate_kernel, self.kernel)
        if not self.reset_before:
            kernels = (torch.cat(kernels),)
        return tuple(kernel[:, self.dim :] for kernel in kernels)

    def weights(self) -> States:
        """None else."""
        return ()

    def step(self, state: States, inputs: States, recall: Sequence[Multiply], weights: States) -> States:
        """(h,) to (h',)."""
        [h], (gates, x) = state, inputs
        if self.reset_before:
            for_gates, for_candidate = recall
            r, u = torch.sigmoid(gates + for_gates(h)).chunk(2, dim=-1)
            recalled = for_candidate(r * h)
        else:
            of_gates, of_candidate = torch.split(recall[0](h), [2 * self.units, self.units], dim=-1)
            r, u = torch.sigmoid(gates + of_gates).chunk(2, dim=-1)
            recalled = r * of_candidate
        candidate = torch.tanh(x + recalled)
        return (candidate + u * (h - candidate),)

    def fused(self) -> tuple[Tensor, Tensor, Tensor]:
        """What cuDNN takes; its gates come in our order."""
        kernel = torch.cat([self.gate_kernel, self.kernel])
        return kernel[:, : self.dim], kernel[:, self.dim :], torch.cat([self.gate_bias, self.bias])


class GRULayer(Recurrence):
    """A layer of such cells; cuDNN has a kernel for those with the reset gate after the matrix."""

    def __init__(
        self, dim: int, units: int, *, bidirectional: bool = False, reset_before: bool = False
    ) -> None:
        cells = [GRUCell(dim, units, reset_before=reset_before) for _ in range(1 + bidirectional)]
        super().__init__(cells, None if reset_before else torch.gru)
