"""The long short-term memory with layer norm, as TensorFlow's LayerNormBasicLSTMCell has it.

    i, f, j, o = LN(W_i [x, h]), LN(W_f [x, h]), LN(W_j [x, h]), LN(W_o [x, h])
    c' = LN(σ(f) ∘ c + σ(i) ∘ tanh(j));   h' = σ(o) ∘ tanh(c')

Ba, Kiros, Hinton, "Layer Normalization", 2016, arXiv 1607.06450; there the memory is normalised on its way to
h' alone, here what is carried is the normalised one, as in TensorFlow. The shifts of LN stand for a bias,
that of the forget gate starts at 1. 4h(in + h) + 10h parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.lstm_cell import glorot
from tagreel.layers.product import product
from tagreel.layers.recurrence import Recurrence, States
from tagreel.layers.repeated import Multiply


class LayerNormLSTMCell(nn.Module):
    """The kernel is (4H, D + H); each of the four gates and the memory has H gains and H shifts."""

    num_states = 2

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.dim, self.units = dim, units
        self.kernel = nn.Parameter(glorot(4 * units, dim + units))
        self.gate_weight = nn.Parameter(torch.ones(4, units))
        self.gate_bias = nn.Parameter(torch.zeros(4, units))
        self.memory_weight = nn.Parameter(torch.ones(units))
        self.memory_bias = nn.Parameter(torch.zeros(units))
        with torch.no_grad():
            self.gate_bias[1] = 1.0

    def inputs(self, frames: Tensor) -> States:
        """The frames' share of the gates, (..., 4H)."""
        return (product(frames, self.kernel[:, : self.dim].contiguous().t()),)

    def matrices(self) -> States:
        """The state's share of the kernel, (4H, H)."""
        return (self.kernel[:, self.dim :],)

    def weights(self) -> States:
        """All gains and shifts."""
        return self.gate_weight, self.gate_bias, self.memory_weight, self.memory_bias

    def step(self, state: States, inputs: States, recall: Sequence[Multiply], weights: States) -> States:
        """(c, h) to (c', h')."""
        (c, h), (gates,), (for_gates,) = state, inputs, recall
        gate_weight, gate_bias, memory_weight, memory_bias = weights
        gates = (gates + for_gates(h)).view(-1, 4, self.units)
        i, f, j, o = (F.layer_norm(gates, (self.units,)) * gate_weight + gate_bias).unbind(1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(j)
        c = F.layer_norm(c, (self.units,), memory_weight, memory_bias)
        return c, torch.sigmoid(o) * torch.tanh(c)


class LayerNormLSTMLayer(Recurrence):
    """A layer of such cells, for which cuDNN has no kernel."""

    def __init__(self, dim: int, units: int, *, bidirectional: bool = False) -> None:
        super().__init__([LayerNormLSTMCell(dim, units) for _ in range(1 + bidirectional)])
