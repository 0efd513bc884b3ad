"""Stacked GRU: the frames in order through layers of gated recurrent units; what is left is the descriptor.

Equations in tagreel/layers/gru_cell.py. Willow's (Miech, Laptev, Sivic, arXiv 1706.06905, table 1) has two
layers of 1,200, of which its code reads all final states; Non-local NetVLAD (2018) has one in its ensemble.
"""

from __future__ import annotations

from tagreel.layers.gru_cell import GRULayer
from tagreel.layers.recurrence import Readout, Recurrence, Stack


class GRU(Stack):
    """(B, T, D) and a mask (B, T) in, (B, out_dim) out.

    `units` are the layers' widths, a direction. `readout` is what becomes of the states: "last" the final h
    of the top layer, "states" the final h of all layers, "thirds" the mean of the top outputs at a third, two
    thirds and the end of the real frames, "attention" their sum under a learned softmax. `reset_before` is
    TensorFlow's place of the reset gate, for which cuDNN has no kernel: several times slower on a GPU.
    """

    def __init__(
        self,
        dim: int,
        *,
        units: tuple[int, ...] = (1200, 1200),
        bidirectional: bool = False,
        readout: Readout = "last",
        reset_before: bool = False,
    ) -> None:
        def layer(dim: int, width: int) -> Recurrence:
            return GRULayer(dim, width, bidirectional=bidirectional, reset_before=reset_before)

        super().__init__(dim, units=units, layer=layer, readout=readout)
