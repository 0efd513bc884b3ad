"""Stacked GRU: the frames in order through layers of gated recurrent units; what is left is the descriptor.

Equations in tagreel/layers/gru_cell.py. Willow's (Miech, Laptev, Sivic, arXiv 1706.06905, table 1) has two
layers of 1,200, of which its code reads all final states; Non-local NetVLAD (2018) has one in its ensemble.
"""

from __future__ import annotations

from torch import Tensor, nn

from tagreel.layers.gru_cell import GRULayer
from tagreel.layers.recurrence import Readout, Stack, checked_units


class GRU(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, out_dim) out.

    `units` are the layers' widths, a direction. `readout` is what becomes of the states: "last" the final h
    of the top layer, "states" the final h of all layers, "thirds" the mean of the top outputs at a third, two
    thirds and the end of the real frames, "attention" their sum under a learned softmax. `reset_before` is
    TensorFlow's place of the reset gate, for which PyTorch has no fused kernel: several times slower.
    """

    ordered = True

    def __init__(
        self,
        dim: int,
        *,
        units: tuple[int, ...] = (1200, 1200),
        bidirectional: bool = False,
        readout: Readout = "last",
        reset_before: bool = False,
    ) -> None:
        super().__init__()
        layers = []
        for width in checked_units("GRU", units):
            layers.append(GRULayer(dim, width, bidirectional=bidirectional, reset_before=reset_before))
            dim = layers[-1].out_dim
        self.stack = Stack(layers, readout=readout)
        self.out_dim = self.stack.out_dim

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read the real frames; a video without any gives zeros."""
        return self.stack(frames, mask)  # type: ignore[no-any-return]

    def outputs(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the top layer puts out in each frame, (B, T, W); zeros in padded ones."""
        return self.stack.outputs(frames, mask)
