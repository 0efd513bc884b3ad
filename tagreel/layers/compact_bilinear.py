"""Join by compact bilinear pooling: the outer product of all descriptors, hashed into `width` numbers.

    Ψ(x)[j] = Σ_{i: h(i) = j} s(i) x[i];   out = FFT⁻¹(FFT(Ψ₁(x₁)) ∘ FFT(Ψ₂(x₂)) ∘ ...)

with places h and signs s drawn once. Inner products of what comes out estimate those of the outer products,
which are never formed. Gao et al., "Compact Bilinear Pooling", 2015, arXiv 1511.06062, algorithm 2. Miech,
Laptev, Sivic, arXiv 1706.06905, tried it to fuse picture and sound, without gain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class CompactBilinear(nn.Module):
    """A descriptor (B, P_i) of every stream in, (B, width) out; nothing in it is trained."""

    places: Tensor
    signs: Tensor

    def __init__(self, dims: tuple[int, ...], *, width: int = 8192) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"CompactBilinear: width={width}; expected at least 1")
        self.dims, self.out_dim = list(dims), width
        self.register_buffer("places", torch.randint(width, (sum(dims),)))
        self.register_buffer("signs", torch.randint(2, (sum(dims),)) * 2.0 - 1.0)

    def forward(self, descriptors: Sequence[Tensor]) -> Tensor:
        """Sketch each descriptor and convolve the sketches."""
        product = None
        all_places, all_signs = torch.split(self.places, self.dims), torch.split(self.signs, self.dims)
        for x, places, signs in zip(descriptors, all_places, all_signs, strict=True):
            signed = (x * signs).to(torch.promote_types(x.dtype, torch.float32))  # no FFT has 16 bits
            sketch = signed.new_zeros(x.shape[0], self.out_dim).index_add(1, places, signed)  # (B, width)
            spectrum = torch.fft.rfft(sketch)
            product = spectrum if product is None else product * spectrum
        assert product is not None
        joined: Tensor = torch.fft.irfft(product, n=self.out_dim)
        return joined.to(descriptors[0].dtype)
