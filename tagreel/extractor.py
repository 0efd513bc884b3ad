"""A media file in, its features out: decoded, shown to an encoder a stream, projected and quantised.

A projected stream is stored in bytes, as YouTube-8M's: whitening puts nearly all values where its quantiser
tells them apart. What no projection made comes in float16, as the encoder gave it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tagreel import encoding
from tagreel.batch import quantize
from tagreel.decoding import SECONDS, Limits, Pictures, Sound, decode
from tagreel.encoding import Encoder
from tagreel.errors import DataError
from tagreel.projection import Projection
from tagreel.provenance import Provenance

Frames = dict[str, NDArray[Any]]
LIMITS = Limits()
_LARGEST = float(np.finfo(np.float16).max)


class Extractor:
    """Features by stream, one frame a second: "rgb" of pictures, "audio" of sound.

    `encoders` has one for each stream wanted, `projections` what is done to it then, if anything. Files are
    decoded within `limits`. It may be called from several threads; each encoder runs in one at a time.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        projections: Mapping[str, Projection] | None = None,
        *,
        limits: Limits = LIMITS,
    ) -> None:
        self.encoders, self.projections, self.limits = dict(encoders), dict(projections or {}), limits
        self._locks = {stream: Lock() for stream in encoders}

    @classmethod
    def from_provenance(
        cls, known: Provenance, *, moved: Mapping[str, str] | None = None, limits: Limits = LIMITS
    ) -> Extractor:
        """What made the features of a data set or model, again; `moved` names weights that lie elsewhere now.

        Raises `DataError` where what is there now would make others.
        """
        encoders = {
            stream: encoding.from_identity(identity, slot=stream, what=(moved or {}).get(stream))
            for stream, identity in known.streams.items()
        }
        projections = {
            stream: _projection(known, identity, stream)
            for stream, identity in known.streams.items()
            if identity.get("projection")
        }
        return cls(encoders, projections, limits=limits)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process it is made again there, of files by their absolute paths."""
        known = self.provenance
        files = {
            stream: os.path.abspath(made["what"])
            for stream, made in known.streams.items()
            if made.get("what") and os.path.exists(made["what"])
        }
        return partial(Extractor.from_provenance, moved=files, limits=self.limits), (known,)

    @property
    def provenance(self) -> Provenance:
        """What makes the features, as it travels with them."""
        streams = {
            stream: {
                **encoder.identity(),
                "seconds": 1.0,
                "width": self._width(stream),
                "projection": self.projections[stream].identity() if stream in self.projections else None,
                "quantised": stream in self.projections,
            }
            for stream, encoder in self.encoders.items()
        }
        files = {
            projection.identity()["sha256"]: projection.to_bytes() for projection in self.projections.values()
        }
        return Provenance(streams, files)

    def pieces(self, path: str | Path, *, seconds: int = SECONDS) -> Iterator[Frames]:
        """What the encoders give, in float32 (T, D), of some `seconds` after others, in constant memory.

        A stream whose track the file lacks is left out. Raises `DataError` for a file that cannot be decoded,
        or has no track that is wanted.
        """
        wants = {stream: encoder.wants for stream, encoder in self.encoders.items()}
        pictures, sound = wants.get("rgb"), wants.get("audio")
        assert pictures is None or isinstance(pictures, Pictures)
        assert sound is None or isinstance(sound, Sound)
        for piece in decode(path, pictures=pictures, sound=sound, limits=self.limits, at_once=seconds):
            shown = {"rgb": piece.pictures, "audio": piece.sound}
            found = {
                stream: self._encode(stream, inputs) for stream, inputs in shown.items() if inputs is not None
            }
            for stream, frames in found.items():
                if not np.isfinite(frames).all():
                    raise DataError(f"the encoder gave {stream!r} that is not finite", path=str(path))
            yield found

    def features(self, path: str | Path) -> Frames:
        """The features of a whole file, as they are stored."""
        return self.finish(self.raw(path))

    def raw(self, path: str | Path) -> Frames:
        """What the encoders give of a whole file."""
        pieces = list(self.pieces(path))
        return {stream: np.concatenate([piece[stream] for piece in pieces]) for stream in pieces[0]}

    def finish(self, raw: Frames) -> Frames:
        """What is stored: projected and in bytes, or else in float16."""
        return {
            stream: quantize(self.projections[stream].apply(frames))
            if stream in self.projections
            else np.clip(frames, -_LARGEST, _LARGEST).astype(np.float16)
            for stream, frames in raw.items()
        }

    def _width(self, stream: str) -> int:
        return (self.projections.get(stream) or self.encoders[stream]).out_dim

    def _encode(self, stream: str, inputs: NDArray[Any]) -> NDArray[np.float32]:
        with self._locks[stream]:
            return self.encoders[stream](inputs)


def _projection(known: Provenance, identity: Mapping[str, Any], stream: str) -> Projection:
    digest = identity["projection"]["sha256"]
    where = f"features/{digest}"
    if digest not in known.files:
        raise DataError(f"is missing: it made {stream!r} from what the encoder gave", path=where)
    projection = Projection.from_bytes(known.files[digest], path=where)
    if projection.identity() != identity["projection"]:
        raise DataError(f"is damaged: it is not the projection that made {stream!r}", path=where)
    return projection
