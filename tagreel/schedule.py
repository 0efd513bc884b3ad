"""How the learning rate moves: a factor on the base rate, from examples seen and examples planned.

Examples rather than steps, as in all five papers, so that a change of batch size leaves the curve alone.
"""

from __future__ import annotations

import math


class Staircase:
    """factor^floor(n / every), the references' exponential decay in stairs (NeXtVLAD: 0.8 every 2 million).

    `warmup` examples at the start rise linearly from zero.
    """

    def __init__(self, *, factor: float = 0.8, every: int = 4_000_000, warmup: int = 0) -> None:
        if factor <= 0 or every < 1 or warmup < 0:
            raise ValueError(f"factor={factor}, every={every}, warmup={warmup}; expected > 0, >= 1 and >= 0")
        self.factor, self.every, self.warmup = factor, every, warmup

    def __call__(self, examples: int, total: int) -> float:
        """The factor after `examples` examples."""
        return _warm(examples, self.warmup) * self.factor ** (examples // self.every)


class Cosine:
    """Half a cosine from 1 to `floor` over the planned examples; Loshchilov and Hutter, arXiv 1608.03983.

    `warmup` examples at the start rise linearly from zero.
    """

    def __init__(self, *, floor: float = 0.0, warmup: int = 0) -> None:
        if not 0 <= floor <= 1 or warmup < 0:
            raise ValueError(f"floor={floor}, warmup={warmup}; expected 0 to 1 and >= 0")
        self.floor, self.warmup = floor, warmup

    def __call__(self, examples: int, total: int) -> float:
        """The factor after `examples` of `total` examples."""
        share = min(max(examples - self.warmup, 0) / max(total - self.warmup, 1), 1.0)
        cosine = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * share))
        return _warm(examples, self.warmup) * cosine


def _warm(examples: int, warmup: int) -> float:
    return min((examples + 1) / (warmup + 1), 1.0)
