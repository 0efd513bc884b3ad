"""Stacked LSTM with zoneout: in training, units keep their last value at random.

    c' = d_c ∘ c + (1 - d_c) ∘ ĉ,   h' = d_h ∘ h + (1 - d_h) ∘ ĥ

ĉ and ĥ are what a plain LSTM (tagreel/layers/lstm_cell.py) would go to; each d is 1 with its rate, drawn for
every unit and frame, and the rate itself in evaluation. Krueger et al., "Zoneout", 2016, arXiv 1606.01305,
whose rates 0.5 and 0.05 are the defaults; CMU Informedia (arXiv 1707.01408, table 2) does not say its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tagreel.layers.lstm_cell import LSTMCell
from tagreel.layers.recurrence import Readout, Recurrence, Stack, States
from tagreel.layers.repeated import Multiply


class ZoneoutLSTM(Stack):
    """(B, T, D) and a mask (B, T) in, (B, out_dim) out.

    `units` are the layers' widths, a direction, `memory_rate` and `output_rate` the rates of c and of h.
    `readout` is what becomes of the states, as in an LSTM: "last", "states", "thirds" or "attention".
    """

    def __init__(
        self,
        dim: int,
        *,
        units: tuple[int, ...] = (1024, 1024),
        bidirectional: bool = False,
        readout: Readout = "last",
        memory_rate: float = 0.5,
        output_rate: float = 0.05,
    ) -> None:
        rates = (memory_rate, output_rate)
        if not (0 <= memory_rate < 1 and 0 <= output_rate < 1):
            options = f"memory_rate={memory_rate}, output_rate={output_rate}"
            raise ValueError(f"ZoneoutLSTM: {options}; expected 0 to less than 1")

        def layer(dim: int, width: int) -> Recurrence:
            return Recurrence([_ZoneoutCell(dim, width, rates) for _ in range(1 + bidirectional)])

        super().__init__(dim, units=units, layer=layer, readout=readout)


class _ZoneoutCell(LSTMCell):
    def __init__(self, dim: int, units: int, rates: tuple[float, float]) -> None:
        super().__init__(dim, units)
        self.rates = rates

    def inputs(self, frames: Tensor) -> States:
        gates = super().inputs(frames)
        if not self.training:
            return gates
        undrawn = frames.new_empty(*frames.shape[:-1], self.units, dtype=torch.bool)
        return *gates, *(torch.empty_like(undrawn).bernoulli_(rate) for rate in self.rates)

    def step(self, state: States, inputs: States, recall: Sequence[Multiply], weights: States) -> States:
        new = super().step(state, inputs[:1], recall, weights)
        if self.training:
            return tuple(
                torch.where(kept, old, n) for kept, old, n in zip(inputs[1:], state, new, strict=True)
            )
        return tuple(rate * old + (1 - rate) * n for rate, old, n in zip(self.rates, state, new, strict=True))
