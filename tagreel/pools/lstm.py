"""Stacked LSTM: the frames in order through layers of long short-term memory; what is left is the descriptor.

Equations in tagreel/layers/lstm_cell.py. The starter code (Abu-El-Haija et al., arXiv 1609.08675) reads the
last h of two layers of 1,024, and so does the prototype of Tsinghua (Zou, Xu, Li, Zhu, "The YouTube-8M Kaggle
Competition: Challenges and Methods", 2017, arXiv 1706.09274), whose best model has two bidirectional layers
and a fixed attention on the thirds of a video. Willow's code (Miech, Laptev, Sivic, arXiv 1706.06905) reads
all final states; a learned attention is CMU Informedia's (Huang et al., arXiv 1707.01408).
"""

from __future__ import annotations

from torch import Tensor, nn

from tagreel.layers.lstm_cell import LSTMLayer
from tagreel.layers.recurrence import Readout, Stack, checked_units


class LSTM(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, out_dim) out.

    `units` are the layers' widths, a direction. `readout` is what becomes of the states: "last" the final h
    of the top layer, "states" the final c and h of all layers, "thirds" the mean of the top outputs at a
    third, two thirds and the end of the real frames, "attention" their sum under a learned softmax.
    """

    ordered = True

    def __init__(
        self,
        dim: int,
        *,
        units: tuple[int, ...] = (1024, 1024),
        bidirectional: bool = False,
        readout: Readout = "last",
    ) -> None:
        super().__init__()
        layers = []
        for width in checked_units("LSTM", units):
            layers.append(LSTMLayer(dim, width, bidirectional=bidirectional))
            dim = layers[-1].out_dim
        self.stack = Stack(layers, readout=readout)
        self.out_dim = self.stack.out_dim

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read the real frames; a video without any gives zeros."""
        return self.stack(frames, mask)  # type: ignore[no-any-return]

    def outputs(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the top layer puts out in each frame, (B, T, W); zeros in padded ones."""
        return self.stack.outputs(frames, mask)
