"""What a data set and a model remember of an encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from tagreel.decoding import Pictures, Sound


def identity(
    kind: str,
    what: str | None,
    *,
    wants: Pictures | Sound,
    out_dim: int,
    options: Mapping[str, Any],
    weights: str | None = None,
    preparation: Mapping[str, Any] | None = None,
    packages: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Plain JSON: an encoder of the same kind, weights, preparation and options computes the same.

    `what` is what the user named; `preparation` is all between what the decoder hands over and the network;
    `packages` are those whose version may change the last digits.
    """
    facts = {
        "kind": kind,
        "what": what,
        "weights": weights,
        "out_dim": out_dim,
        "preparation": {**asdict(wants), **(preparation or {})},
        "options": dict(options),
        "versions": {package: version(package) for package in packages},
    }
    return dict(json.loads(json.dumps(facts)))
