"""Undo the whitening of YouTube-8M's visual features, x̂ = (x - 4/512) · (sqrt(e) + 1e-4).

Lin, Xiao, Fan, arXiv 1811.05014, section 3.4. The published features were divided by the root of their PCA
eigenvalues e, which blows up the noise of the last components. The paper writes x · sqrt(e); the formula
here is the authors' code, on which their results rest. Fixed, not trained.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tagreel.errors import RecipeError
from tagreel.layers.product import Scaled
from tagreel.layers.ragged import Mask, masked


class ReverseWhitening(nn.Module):
    """(B, T, D) in, (B, T, D) out.

    `eigenvalues` is the path of `eigenvals.npy`, the first D of whose numbers are used. Google publishes it
    with the YouTube-8M feature extractor, in yt8m_pca.tgz. It is read when a training starts
    (`prepare`); afterwards the model carries the scale itself and the file is not needed.
    """

    scale: Tensor

    packs = True

    def __init__(self, dim: int, *, eigenvalues: str | None = None) -> None:
        super().__init__()
        self.out_dim = dim
        self.eigenvalues = eigenvalues
        self.register_buffer("scale", torch.ones(dim))

    def prepare(self) -> None:
        """Read the eigenvalues; raises `RecipeError` when there is no file or it does not fit."""
        dim = len(self.scale)
        if self.eigenvalues is None:
            raise RecipeError(
                "ReverseWhitening: eigenvalues is not set; give the path of eigenvals.npy (in yt8m_pca.tgz "
                "of the YouTube-8M feature extractor) with --set streams.rgb.transforms.0.eigenvalues=FILE, "
                "or train on the features as they are with --set 'streams.rgb.transforms=[]'"
            )
        try:
            values = np.load(self.eigenvalues, allow_pickle=False).astype(np.float32).reshape(-1)
        except (OSError, ValueError) as error:
            raise RecipeError(f"ReverseWhitening: {self.eigenvalues}: {error}") from error
        if len(values) < dim or not (values[:dim] >= 0).all():
            raise RecipeError(
                f"ReverseWhitening: {self.eigenvalues} holds {len(values):,} numbers; "
                f"expected at least {dim:,}, none negative"
            )
        self.scale.copy_(torch.from_numpy(np.sqrt(values[:dim]) + 1e-4))

    def scaled(self, frames: Scaled, mask: Mask = None) -> Scaled:
        """What `forward` gives of real frames, left to a product."""
        return frames.then(self.scale, -4 / 512 * self.scale)

    def forward(self, frames: Tensor, mask: Mask = None) -> Tensor:
        """Scale every frame; padded frames stay zero."""
        return masked((frames - 4 / 512) * self.scale, mask)
