"""Tagreel tags videos from per-second audio and visual features.

import tagreel
tagger = tagreel.load("runs/first")
tagger.predict({"rgb": rgb, "audio": audio})   # (T, 1024) and (T, 128) -> the most probable tags
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Imported when first used: `tagreel --help` need not wait for torch.
_HOMES = {
    "Batch": "tagreel.batch",
    "DataError": "tagreel.errors",
    "Ensemble": "tagreel.recipe",
    "Example": "tagreel.batch",
    "Loader": "tagreel.loader",
    "Model": "tagreel.model",
    "Recipe": "tagreel.recipe",
    "RecipeError": "tagreel.errors",
    "Source": "tagreel.source",
    "Tag": "tagreel.model",
    "Tagger": "tagreel.tagger",
    "build": "tagreel.tagger",
    "load": "tagreel.checkpoint",
}

__all__ = [
    "Batch",
    "DataError",
    "Ensemble",
    "Example",
    "Loader",
    "Model",
    "Recipe",
    "RecipeError",
    "Source",
    "Tag",
    "Tagger",
    "build",
    "load",
]

if TYPE_CHECKING:
    from tagreel.batch import Batch, Example
    from tagreel.checkpoint import load
    from tagreel.errors import DataError, RecipeError
    from tagreel.loader import Loader
    from tagreel.model import Model, Tag
    from tagreel.recipe import Ensemble, Recipe
    from tagreel.source import Source
    from tagreel.tagger import Tagger, build


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tagreel' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
