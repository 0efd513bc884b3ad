"""The log mel spectrogram of VGGish and YAMNet: 64 bands, 125 to 7,500 Hz, every 10 ms.

Hershey et al., CNN Architectures for Large-Scale Audio Classification, 2017, arXiv:1609.09430, section 3.1,
with the constants of the released code: magnitudes (not powers) of a 512-point Fourier transform over 25 ms
under a periodic Hann window, triangles that are equally wide on the HTK mel scale, and log(· + 0.01).
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

RATE = 16_000
BANDS = 64
_WINDOW, _HOP, _POINTS = 400, 160, 512
_LOWEST, _HIGHEST = 125.0, 7500.0


def log_mel(sound: Tensor) -> Tensor:
    """Sound (n, samples) in [-1, 1] at 16 kHz to (n, frames, 64) in float32, computed in float64."""
    window = torch.hann_window(_WINDOW, periodic=True, dtype=torch.float64, device=sound.device)
    frames = sound.double().unfold(-1, _WINDOW, _HOP) * window  # (n, frames, 400)
    magnitudes = torch.fft.rfft(frames, _POINTS).abs()  # (n, frames, 257)
    return torch.log(magnitudes @ _triangles().to(sound.device) + 0.01).float()


def _mel(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz / 700.0)


@cache
def _triangles() -> Tensor:
    """(257, 64): how much of each frequency goes into each band."""
    at = _mel(torch.linspace(0.0, RATE / 2, _POINTS // 2 + 1, dtype=torch.float64))[:, None]
    lowest, highest = (1127.0 * math.log1p(hertz / 700.0) for hertz in (_LOWEST, _HIGHEST))
    edges = torch.linspace(lowest, highest, BANDS + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    return torch.minimum((at - left) / (centre - left), (right - at) / (right - centre)).clamp_min(0.0)
