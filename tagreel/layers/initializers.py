"""How the references draw their first weights."""

from __future__ import annotations

import math

from torch import Tensor, nn


def he_truncated_(weight: Tensor, fan_in: int) -> Tensor:
    """Fill in place as TF-Slim's `variance_scaling_initializer()` does, which NeXtVLAD uses throughout.

    A normal truncated at two standard deviations, of parameter deviation sqrt(1.3 · 2 / fan_in), so that
    what is left after truncation deviates by about sqrt(2 / fan_in).
    """
    std = math.sqrt(1.3 * 2.0 / fan_in)
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
