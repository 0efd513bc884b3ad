"""Sparse code of a frame, ReLU(BN(W x)), much wider than the frame itself.

The encoder E of CMU Informedia's attentive poolings and of their NetVLAD with few clusters.
Huang, Yuan, Lan, Jiang, Hauptmann, "Video Representation Learning and Latent Concept Mining for
Large-scale Multi-label Video Classification", 2017, arXiv 1707.01408. They
leave the activation open; ReLU and batch norm, which makes about half of a code zero, are our choice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagreel.layers.initializers import he_truncated_
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.product import product
from tagreel.layers.ragged import Mask


class SparseCode(nn.Module):
    """(B, T, D) and a mask (B, T) in, (B, T, width) out; what comes out in padded frames says nothing."""

    packs = True

    def __init__(self, dim: int, *, width: int = 4096) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"SparseCode: width={width}; expected at least 1")
        self.out_dim = width
        self.weight = nn.Parameter(he_truncated_(torch.empty(dim, width), dim))
        self.norm = MaskedBatchNorm(width)

    def forward(self, frames: Tensor, mask: Mask = None) -> Tensor:
        """Encode each frame by itself."""
        return torch.relu(self.norm(product(frames, self.weight), mask))
