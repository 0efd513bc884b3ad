"""The long short-term memory, as TensorFlow's BasicLSTMCell has it.

    i, f, j, o = W [x, h] + b;   c' = σ(f) ∘ c + σ(i) ∘ tanh(j);   h' = σ(o) ∘ tanh(c')

Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; forget gate: Gers, Schmidhuber, Cummins, 2000. One
bias, 4h(in + h + 1) parameters; the forget gate's starts at 1, which TensorFlow adds inside the sigmoid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.recurrence import Recurrence, States, fused, last_real


class LSTMCell(nn.Module):
    """The kernel (4H, D + H) is one tensor, as in TensorFlow: its gradient is clipped as one."""

    num_states = 2
    hold = (-1e4, 1e4, 0.0, 0.0)  # σ is then exactly 0 for the input gate and 1 for the forget gate

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.dim, self.units = dim, units
        self.kernel = nn.Parameter(glorot(4 * units, dim + units))
        self.bias = nn.Parameter(torch.zeros(4 * units))
        with torch.no_grad():
            self.bias[units : 2 * units] = 1.0

    def inputs(self, frames: Tensor, mask: Tensor | None) -> States:
        """The frames' share of the gates, (B, T, 4H)."""
        return (F.linear(frames, self.kernel[:, : self.dim], self.bias),)

    def weights(self) -> States:
        """The state's share of the kernel, (4H, H)."""
        return (self.kernel[:, self.dim :],)

    def step(self, state: States, inputs: States, weights: States) -> States:
        """(c, h) to (c', h')."""
        c, h = state
        i, f, j, o = (inputs[0] + F.linear(h, weights[0])).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(j)
        return c, torch.sigmoid(o) * torch.tanh(c)

    def fused(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `torch.lstm` takes; its gates come in our order."""
        return self.kernel[:, : self.dim], self.kernel[:, self.dim :], self.bias


class LSTMLayer(Recurrence):
    """A layer of such cells, in PyTorch's kernel wherever that can be."""

    def __init__(self, dim: int, units: int, *, bidirectional: bool = False) -> None:
        super().__init__([LSTMCell(dim, units) for _ in range(1 + bidirectional)])

    def forward(self, frames: Tensor, mask: Tensor | None) -> tuple[Tensor, States]:
        """Outputs (B, T, W) and (c, h); frame by frame when exported, since the kernel would fix T."""
        if torch.compiler.is_exporting():
            return super().forward(frames, mask)
        outputs, (h, c) = fused(torch.lstm, list(self.cells), frames, mask)  # type: ignore[arg-type]
        if mask is not None:  # after which the kernel's h = σ(o) ∘ tanh(c) went on with c alone held
            units = self.out_dim // len(self.cells)
            h = torch.cat([last_real(outputs[..., :units], mask), outputs[:, 0, units:]], dim=-1)
        return outputs, (c, h)


def glorot(gates: int, width: int) -> Tensor:
    """A kernel (gates, width) as TensorFlow draws it: one uniform for the weights of frame and state."""
    bound = math.sqrt(6 / (gates + width))
    return torch.empty(gates, width).uniform_(-bound, bound)
