"""Packages that only some encoders need, imported when one of those is made."""

from __future__ import annotations

import importlib
from typing import Any

from tagreel.errors import RecipeError


def need(module: str, *, extra: str) -> Any:
    """The module; raises `RecipeError`, which names the extra to install, where it is not there."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RecipeError(f'{error.name} is not installed: pip install "tagreel[{extra}]"') from error
    except (ImportError, OSError, RuntimeError) as error:  # such as a torchvision of another build than torch
        reason = str(error).strip().splitlines()[:1]
        raise RecipeError(f"{module} is installed, but cannot be imported: {' '.join(reason)}") from error
