"""Scale vectors to length one, x / sqrt(max(Σ x², 1e-12)), as `tf.nn.l2_normalize` does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.ragged import Mask, Ragged, alike, pack, padded


class L2Norm(nn.Module):
    """(..., D) in, (..., D) out, each vector of length one; zeros stay zeros.

    `parts` are the widths of modalities that lie side by side and are scaled each by itself, as CMU
    Informedia and Tsinghua do; empty means that the vector is one.
    """

    packs = True

    def __init__(self, dim: int, *, parts: tuple[int, ...] = ()) -> None:
        super().__init__()
        if parts and sum(parts) != dim:
            raise ValueError(f"parts={parts} are {sum(parts):,} wide together; the vector is {dim:,}")
        self.parts = list(parts) or [dim]
        self.out_dim = dim

    def forward(self, x: Tensor, mask: Mask = None) -> Tensor:
        """`mask` is not needed: padded frames are zeros and stay so."""
        return torch.cat(
            [F.normalize(part, dim=-1, eps=1e-6) for part in torch.split(x, self.parts, -1)], dim=-1
        )


def joint_l2_norm(
    streams: Mapping[str, Tensor], masks: Mapping[str, Mask] | None = None
) -> dict[str, Tensor]:
    """Divide all streams (..., D_s) of a frame by the length of their concatenation.

    The starter code, Willow and Non-local NetVLAD normalise the 1,152 visual and audio numbers of a frame as
    one vector, so that loud audio shrinks the picture. A stream that ends before the others, as where the
    batch's longest video lacks it, adds nothing to the frames after its end.
    """
    masks = dict.fromkeys(streams) if masks is None else masks
    if alike(masks[name] for name in streams):
        squares = [frames.square().sum(-1) for frames in streams.values()]  # each (ΣT,)
        scale = torch.rsqrt(torch.stack(squares).sum(0).clamp_min(1e-12))
        return {name: frames * scale[:, None] for name, frames in streams.items()}
    frames, _ = padded(streams, masks)
    longest = max(x.shape[1] for x in frames.values())
    squares = [F.pad(x.square().sum(-1), (0, longest - x.shape[1])) for x in frames.values()]  # each (B, T)
    scale = torch.rsqrt(torch.stack(squares).sum(0).clamp_min(1e-12))
    scaled = {name: x * scale[:, : x.shape[1], None] for name, x in frames.items()}
    back = ((name, x, masks[name]) for name, x in scaled.items())
    return {name: pack(x, mask) if isinstance(mask, Ragged) else x for name, x, mask in back}
