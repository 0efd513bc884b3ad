"""Stacked LSTM with layer norm: the frames in order; what is left is the descriptor.

Equations in tagreel/layers/layer_norm_lstm_cell.py. Tsinghua's quickest learner, bidirectional with 1,024 and
768 units: Zou, Xu, Li, Zhu, "The YouTube-8M Kaggle Competition: Challenges and Methods", 2017, arXiv
1706.09274, table 2.
"""

from __future__ import annotations

from tagreel.layers.layer_norm_lstm_cell import LayerNormLSTMLayer
from tagreel.layers.recurrence import Readout, Recurrence, Stack


class LayerNormLSTM(Stack):
    """(B, T, D) and a mask (B, T) in, (B, out_dim) out.

    `units` are the layers' widths, a direction. `readout` is what becomes of the states: "last" the final h
    of the top layer, "states" the final c and h of all layers, "thirds" the mean of the top outputs at a
    third, two thirds and the end of the real frames, "attention" their sum under a learned softmax.
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
            return LayerNormLSTMLayer(dim, width, bidirectional=bidirectional)

        super().__init__(dim, units=units, layer=layer, readout=readout)
