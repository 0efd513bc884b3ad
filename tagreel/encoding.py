"""An encoder by its name on the command line, `KIND:WHAT`, or by what a model remembers of it."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import tagreel.encoders
from tagreel import parts
from tagreel.decoding import Pictures, Sound
from tagreel.errors import DataError, RecipeError


class Encoder(Protocol):
    """What a module of `tagreel.encoders` makes: features of pictures (stream "rgb") or sound ("audio").

    `kind` is the first part of its name, `expects` says in words what the second one is, None where there is
    none. `wants` says what the decoder has to hand over for each second.
    """

    kind: str
    expects: str | None
    stream: str
    wants: Pictures | Sound
    out_dim: int

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Pictures (n, H, W, 3) in uint8, or sound (n, samples) in float32, to features (n, out_dim)."""
        ...

    def identity(self) -> dict[str, Any]:
        """What determines the features, as plain JSON: kind, what, weights, preparation, options, ..."""
        ...


@cache
def encoders() -> dict[str, Any]:
    """The class of each kind of encoder: every one in a module of `tagreel.encoders` that has a `kind`."""
    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(tagreel.encoders.__path__, "tagreel.encoders."):
        if not module.name.rpartition(".")[2].startswith("_"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and value.__module__ == module.name and hasattr(value, "kind"):
                    found[value.kind] = value
    return found


def find(name: str, settings: Iterable[str] = (), *, slot: str) -> Encoder:
    """The encoder of that name for a slot, "rgb" or "audio", with settings such as `rgb.fit=stretch`.

    Raises `RecipeError` for a name or setting that there is not, or that is for the other slot, and
    `DataError` for a file that cannot be used.
    """
    kind, colon, what = name.partition(":")
    if kind not in encoders():
        suffix = os.path.splitext(name)[1][1:].lower()
        if not colon and suffix in encoders():
            raise RecipeError(f"{slot}: there is no encoder {name!r}; did you mean {suffix}:{name}?")
        raise parts.no_such(slot, "there is no encoder", kind, encoders())
    part = partial(encoders()[kind])
    for setting in settings:
        prefix, _, option = setting.partition(".")
        if prefix != slot or not option:
            raise RecipeError(f"--set {setting}: expected {slot}.OPTION=VALUE")
        part = parts.override_part(part, option, where=slot)
    return _made(part, what, slot=slot)


def from_identity(identity: Mapping[str, Any], *, slot: str, what: str | None = None) -> Encoder:
    """The encoder that made some features, from what a data set or model remembers of it.

    `what` names its file, where that has moved since. Raises `DataError` where what is there now would not
    make the same features.
    """
    kind = identity.get("kind")
    if kind not in encoders():
        raise parts.no_such(slot, "this version of tagreel has no encoder", str(kind), encoders())
    part = partial(encoders()[kind], **parts.decode(dict(identity["options"]), ()))
    parts.check(part, slot)
    named = what or identity.get("what") or ""
    encoder = _made(part, named, slot=slot)
    now = encoder.identity()
    for key in ("weights", "out_dim", "preparation"):
        if now[key] != identity.get(key):
            raise DataError(
                f"makes other features than {slot!r} was made of: its {key} {_short(now[key])}, expected "
                f"{_short(identity.get(key))}",
                path=f"{kind}:{named}" if named else kind,
            )
    return encoder


def _made(part: partial[Any], what: str, *, slot: str) -> Encoder:
    made: Any = part.func
    kind, expects = made.kind, made.expects
    if expects is None and what:
        raise RecipeError(f"{slot}: {kind} is all of this encoder's name; found {kind}:{what}")
    if expects is not None and not what:
        raise RecipeError(f"{slot}: {kind} needs to be told what: {expects}")
    try:
        encoder: Encoder = part(what) if what else part()
    except RecipeError as error:
        raise RecipeError(f"{slot}: {kind}: {error}") from error
    if encoder.stream != slot:
        takes = "pictures" if encoder.stream == "rgb" else "sound"
        raise RecipeError(f"{slot}: {kind}{what and ':'}{what} takes {takes}; it goes to {encoder.stream}")
    return encoder


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 64 else f"{text[:63]}…"
