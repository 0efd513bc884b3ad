"""The long short-term memory, as TensorFlow's BasicLSTMCell has it.

    i, f, j, o = W [x, h] + b;   c' = σ(f) ∘ c + σ(i) ∘ tanh(j);   h' = σ(o) ∘ tanh(c')

Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; forget gate: Gers, Schmidhuber, Cummins, 2000. One
bias, 4h(in + h + 1) parameters; the forget gate's starts at 1, which TensorFlow adds inside the sigmoid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tagreel.layers.product import product
from tagreel.layers.recurrence import Recurrence, States
from tagreel.layers.repeated import Multiply


class LSTMCell(nn.Module):
    """The kernel (4H, D + H) is one tensor, as in TensorFlow: its gradient is clipped as one."""

    num_states = 2

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.dim, self.units = dim, units
        self.kernel = nn.Parameter(glorot(4 * units, dim + units))
        self.bias = nn.Parameter(torch.zeros(4 * units))
        with torch.no_grad():
            self.bias[units : 2 * units] = 1.0

    def inputs(self, frames: Tensor) -> States:
        """The frames' share of the gates, (..., 4H)."""
        return (product(frames, self.kernel[:, : self.dim].contiguous().t(), self.bias),)

    def matrices(self) -> States:
        """The state's share of the kernel, (4H, H)."""
        return (self.kernel[:, self.dim :],)

    def weights(self) -> States:
        """None else."""
        return ()

    def step(self, state: States, inputs: States, recall: Sequence[Multiply], weights: States) -> States:
        """(c, h) to (c', h')."""
        (c, h), (gates,), (for_gates,) = state, inputs, recall
        i, f, j, o = (gates + for_gates(h)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(j)
        return c, torch.sigmoid(o) * torch.tanh(c)

    def fused(self) -> tuple[Tensor, Tensor, Tensor]:
        """What cuDNN takes; its gates come in our order."""
        return self.kernel[:, : self.dim], self.kernel[:, self.dim :], self.bias


class LSTMLayer(Recurrence):
    """A layer of such cells, for which cuDNN has a kernel."""

    def __init__(self, dim: int, units: int, *, bidirectional: bool = False) -> None:
        super().__init__([LSTMCell(dim, units) for _ in range(1 + bidirectional)], torch.lstm)


def glorot(gates: int, width: int) -> Tensor:
    """A kernel (gates, width) as TensorFlow draws it: one uniform for the weights of frame and state."""
    bound = math.sqrt(6 / (gates + width))
    return torch.empty(gates, width).uniform_(-bound, bound)
