"""Image and audio models of Hugging Face transformers, by their name on the hub or from a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagreel.decoding import Pictures, Sound
from tagreel.encoders._identity import identity
from tagreel.encoders._inputs import check, dtype_of, normalised, shape_of
from tagreel.encoders._needs import need
from tagreel.encoders._rows import rows
from tagreel.encoders._weights import hash_of_tensors
from tagreel.errors import DataError, RecipeError
from tagreel.runtime import pick_device


class Transformers:
    """Pictures (n, H, W, 3) or sound (n, samples) to a model's embedding of each, (n, D).

    Which of the two is told from the model's preprocessor_config.json. Pictures: CLIP, SigLIP, SigLIP 2 (but
    for NaFlex, whose pictures have no fixed size), DINOv2, DINOv3, ViT and their like, resized, cropped and
    normalised as that file says. Sound: AST, CLAP, wav2vec 2.0 and their like, through their own feature
    extractor. The embedding is the one that pictures or sound are compared with text by, where the model has
    one (`get_image_features`, `get_audio_features`), else its pooled output, else the mean over its last
    layer; that too where its pooling has no trained weights, as in a classifier's checkpoint.

    `NAME@REVISION` is that branch, tag or commit of the hub. `seconds` is the window of sound around each
    second; None takes the length that the model was trained on, 10.24 s for AST and 10 s for CLAP, and 1 s
    where it takes any. A shorter one says more exactly when, and is further from what the model has learned.
    Weights are read from safetensors alone, and no code of a model's own is run.
    """

    kind = "transformers"
    expects = "a model of the hub or a folder, transformers:google/siglip2-base-patch16-224"

    def __init__(
        self,
        what: str,
        *,
        seconds: float | None = None,
        device: str = "auto",
    ) -> None:
        self.what = what
        self.options = {"seconds": seconds}
        self.device = pick_device(device)
        name, revision = (what, None) if os.path.isdir(what) else _of_the_hub(what)
        transformers = need("transformers", extra="encoders")
        with _errors_in_one_line("cannot be loaded", what), _quiet(transformers.utils.logging, what):
            settings, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name, revision=revision)
            network, report = transformers.AutoModel.from_pretrained(
                name,
                revision=revision,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
            if "sampling_rate" in settings:
                self.extractor = transformers.AutoFeatureExtractor.from_pretrained(name, revision=revision)
        drawn = set(report["missing_keys"])  # at random, as the files lack them
        if lacking := sorted(name for name in drawn if not name.startswith("pooler.")):
            raise DataError(f"lacks {len(lacking):,} of the model's tensors, such as {lacking[0]}", path=what)
        self.pooled = not drawn
        self.weights = hash_of_tensors(
            {name: tensor for name, tensor in network.state_dict().items() if name not in drawn}
        )
        self.network = network.eval().to(self.device)
        self.wants: Pictures | Sound
        if "sampling_rate" in settings:
            self.stream, self.wants = "audio", _sound(self.extractor, seconds)
            self.preparation = {"extractor": settings}
        elif seconds is None:
            self.stream, self.wants = "rgb", _pictures(settings, path=what)
            self.preparation = _normalisation(settings, path=what)
        else:
            raise RecipeError(f"seconds={seconds}: the model takes pictures, which have no such option")
        with _errors_in_one_line("cannot be run", what), torch.inference_mode():
            first = torch.from_numpy(np.zeros((1, *shape_of(self.wants)), dtype_of(self.wants)))
            self.out_dim = self._encode(first.to(self.device)).shape[1]

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Encode pictures or windows of sound; raises `ValueError` for any other input."""
        check(inputs, self.wants)
        return rows(self._encode, inputs, self.out_dim, device=self.device)

    def identity(self) -> dict[str, Any]:
        """What determines the features."""
        return identity(
            self.kind,
            self.what,
            wants=self.wants,
            out_dim=self.out_dim,
            options=self.options,
            weights=self.weights,
            preparation=self.preparation,
            packages=("transformers", "torch"),
        )

    def _encode(self, inputs: Tensor) -> Tensor:
        if isinstance(self.wants, Sound):
            values = self._extracted(inputs)
            embed = getattr(self.network, "get_audio_features", self.network)
        else:
            values = {"pixel_values": normalised(inputs, **self.preparation)}
            embed = getattr(self.network, "get_image_features", self.network)
        found = embed(**values)
        pooled: Tensor | None = found.get("pooler_output") if self.pooled else None
        if pooled is not None:
            return pooled.flatten(1)
        last: Tensor = found["last_hidden_state"]
        return last.mean(1) if last.ndim == 3 else last.flatten(2).mean(2)  # (n, T, D) or (n, D, H, W)

    def _extracted(self, sound: Tensor) -> dict[str, Tensor]:
        # One by one: CLAP's draws one of several to show in a second way.
        assert isinstance(self.wants, Sound)
        each = [
            self.extractor(row, sampling_rate=self.wants.rate, return_tensors="pt")
            for row in sound.cpu().numpy()
        ]
        return {name: torch.cat([one[name] for one in each]).to(self.device) for name in each[0]}


def _of_the_hub(what: str) -> tuple[str, str | None]:
    if what.startswith(("/", ".", "~")) or what.count("/") > 1:
        raise DataError("no such folder", path=what)
    name, _, revision = what.partition("@")
    return name, revision or None


def _sound(extractor: Any, seconds: float | None) -> Sound:
    """The window to take: as asked, or as long as the model goes, which AST says in frames of 10 ms."""
    longest = getattr(extractor, "max_length_s", None)
    if longest is None and hasattr(extractor, "max_length"):
        longest = extractor.max_length / 100
    if seconds is None:
        seconds = longest or 1.0
    elif longest and seconds > longest:
        raise RecipeError(
            f"seconds={seconds}: expected at most {longest:g}, which is all that the model takes"
        )
    return Sound(rate=extractor.sampling_rate, seconds=float(seconds))


def _pictures(settings: Mapping[str, Any], *, path: str) -> Pictures:
    """How a preprocessor_config.json makes pictures of one size; an old one has a number for both sides."""
    size: Any
    crop: Any
    size, crop = settings.get("size"), settings.get("crop_size")
    cropped = crop is not None and settings.get("do_center_crop", True)
    if isinstance(size, int):
        size = {"shortest_edge": size} if cropped else {"height": size, "width": size}
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    if not isinstance(size, dict) or "crop_pct" in settings or (cropped and crop["height"] != crop["width"]):
        raise DataError("its preprocessor_config.json asks for no single size that is known here", path=path)
    sides = crop["height"] if cropped else None
    if "shortest_edge" in size:
        return Pictures(resize=size["shortest_edge"], crop=sides or size["shortest_edge"])
    if "height" in size and "width" in size:
        return Pictures(resize=(size["height"], size["width"]), crop=sides)
    raise DataError("its preprocessor_config.json asks for no single size that is known here", path=path)


def _normalisation(settings: Mapping[str, Any], *, path: str) -> dict[str, Any]:
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    if not settings.get("do_normalize", True):
        return {"mean": [0.0] * 3, "std": [1.0] * 3, "scale": scale}
    if "image_mean" not in settings or "image_std" not in settings:
        raise DataError("its preprocessor_config.json has no image_mean and image_std", path=path)
    return {"mean": settings["image_mean"], "std": settings["image_std"], "scale": scale}


@contextmanager
def _errors_in_one_line(what: str, path: str) -> Iterator[None]:
    """Whatever transformers, the hub, safetensors or torch raise, as one `DataError`."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{what}: {' '.join(str(error).split())}", path=path) from error


@contextmanager
def _quiet(logging: Any, what: str) -> Iterator[None]:
    """Nothing about weights that a model leaves out, and no progress but of downloads."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if os.path.isdir(what):
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
