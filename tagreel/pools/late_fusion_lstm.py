"""Late-fusion LSTM: each modality is read both ways by a layer of its own, their outputs by one layer more.

Layer-normalised cells (tagreel/layers/layer_norm_lstm_cell.py): of picture and sound, 1,024 and 128 wide, 512
and 150 a direction, whose 1,324 outputs a frame go through 1,200 units; the last h is the descriptor. Zou,
Xu, Li, Zhu, "The YouTube-8M Kaggle Competition: Challenges and Methods", 2017, arXiv 1706.09274; sizes as in
the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagreel.layers.layer_norm_lstm_cell import LayerNormLSTMLayer
from tagreel.layers.ragged import Mask


class LateFusionLSTM(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, fused_units) out.

    `parts` are the widths of the modalities that lie side by side in a frame, () for one alone; `units` the
    widths of their layers, a direction; `fused_units` that of the layer on top.
    """

    ordered = True
    packs = True

    def __init__(
        self,
        dim: int,
        *,
        parts: tuple[int, ...] = (),
        units: tuple[int, ...] = (512, 150),
        fused_units: int = 1200,
    ) -> None:
        super().__init__()
        self.parts = parts or (dim,)
        if sum(self.parts) != dim or min(self.parts) < 1:
            raise ValueError(f"LateFusionLSTM: parts={parts}; expected widths that add up to {dim}")
        if len(units) < len(self.parts) or min(*units, fused_units) < 1:
            options = f"units={units}, fused_units={fused_units}"
            raise ValueError(
                f"LateFusionLSTM: {options}; expected a width for each of {len(self.parts)} parts"
            )
        self.layers = nn.ModuleList(
            LayerNormLSTMLayer(part, width, bidirectional=True)
            for part, width in zip(self.parts, units, strict=False)
        )
        self.fuse = LayerNormLSTMLayer(2 * sum(units[: len(self.parts)]), fused_units)
        self.out_dim = fused_units

    def forward(self, frames: Tensor, mask: Mask = None) -> Tensor:
        """Read the real frames; a video without any gives zeros."""
        parts = frames.split(list(self.parts), dim=-1)  # type: ignore[no-untyped-call]
        read = [layer(part, mask)[0] for layer, part in zip(self.layers, parts, strict=True)]
        _, (_, h) = self.fuse(torch.cat(read, dim=-1), mask)
        return h  # type: ignore[no-any-return]
