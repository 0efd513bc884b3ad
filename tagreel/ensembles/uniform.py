"""The plain mean: every model counts alike, as in Willow's final seven and NL-NetVLAD's final six."""

from __future__ import annotations

from torch import Tensor

from tagreel.ensembles._panel import Panel, alike


class Uniform:
    """Weights 1/M."""

    def __call__(self, panel: Panel) -> Tensor:
        """Weights (M,)."""
        return alike(panel, range(len(panel.names)))
