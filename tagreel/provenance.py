"""What made features: it travels with a data set and with every model that was trained on it.

Of each stream an identity, in JSON: the encoder (`kind`, `what` was named, the sha256 of its `weights`), the
`preparation` of what it was shown, its `options`, how many `seconds` lie between frames, the `projection`
(the sha256 of a file) and whether values are `quantised`; and the `versions` of the libraries. Two streams
are alike where all of it is, but for the name of the file that the weights were in, and the versions. What
nobody noted, as in the official data sets, fits all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tagreel.errors import DataError

_ONLY_TOLD = ("what", "versions")


@dataclass(frozen=True)
class Provenance:
    """The identity of each of some `streams`, and by their sha256 the `files` that are named there."""

    streams: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def difference(ours: Provenance | None, theirs: Provenance | None) -> str | None:
    """Where the features of two data sets, or of a model and of data, were made otherwise; None if nowhere.

    Only streams that both know count. The sentence calls `theirs` "these".
    """
    if ours is None or theirs is None:
        return None
    for stream in sorted(ours.streams.keys() & theirs.streams.keys()):
        mine, other = ours.streams[stream], theirs.streams[stream]
        differing = [
            key for key in {**mine, **other} if key not in _ONLY_TOLD and mine.get(key) != other.get(key)
        ]
        if not differing:
            continue
        if "kind" in differing or "weights" in differing:
            return f"{stream!r} is of {encoder(mine)}, these are of {encoder(other)}"
        key = differing[0]
        told = _told(mine.get(key)), _told(other.get(key))
        return f"{stream!r} of {encoder(mine)} has {key} {told[0]}, these have {told[1]}"
    return None


def check(ours: Provenance | None, theirs: Provenance | None, *, path: str) -> None:
    """Raise `DataError` where features at `path` were made otherwise than those that a model knows."""
    if found := difference(ours, theirs):
        raise DataError(
            f"the model cannot read these features: its {found}; extract them as the model's were, or "
            "evaluate, predict and tag all the same with --foreign",
            path=path,
        )


def merged(known: Iterable[Provenance | None]) -> Provenance | None:
    """What several models or data sets know together, the first one of a stream; None where nobody knows."""
    streams: dict[str, Mapping[str, Any]] = {}
    files: dict[str, bytes] = {}
    for one in known:
        if one is not None:
            streams, files = {**one.streams, **streams}, {**one.files, **files}
    return Provenance(streams, files) if streams else None


def only(known: Provenance | None, streams: Iterable[str]) -> Provenance | None:
    """What is known of some streams."""
    if known is None:
        return None
    kept = {name: known.streams[name] for name in streams if name in known.streams}
    return Provenance(kept, known.files) if kept else None


def encoder(identity: Mapping[str, Any]) -> str:
    """An encoder as people tell it: `tflite:mobilenet.tflite (weights f409ef4f)`."""
    what = f":{identity['what']}" if identity.get("what") else ""
    weights = f" (weights {str(identity['weights'])[:8]})" if identity.get("weights") else ""
    return f"{identity.get('kind')}{what}{weights}"


def _told(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
