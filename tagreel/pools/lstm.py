"""Stacked LSTM: the frames in order through layers of long short-term memory; what is left is the descriptor.

Equations in tagreel/layers/lstm_cell.py. The starter code (Abu-El-Haija et al., arXiv 1609.08675) reads the
last h of two layers of 1,024, and so does the prototype of Tsinghua (Zou, Xu, Li, Zhu, "The YouTube-8M Kaggle
Competition: Challenges and Methods", 2017, arXiv 1706.09274), whose best model has two bidirectional layers
and a fixed attention on the thirds of a video. Willow's code (Miech, Laptev, Sivic, arXiv 1706.06905) reads
all final states; a learned attention is CMU Informedia's (Huang et al., arXiv 1707.01408).
"""

from __future__ import annotations

from tagreel.layers.lstm_cell import LSTMLayer
from tagreel.layers.recurrence import Readout, Recurrence, Stack


class LSTM(Stack):
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
            return LSTMLayer(dim, width, bidirectional=bidirectional)

        super().__init__(dim, units=units, layer=layer, readout=readout)
