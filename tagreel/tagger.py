"""The tagger: transforms and a pool per stream, a join, a body, a head. Built from a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, reduce
from operator import or_
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.batch import Batch, dequantize, on_the_grid
from tagreel.errors import RecipeError
from tagreel.layers.l2_norm import joint_l2_norm
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.product import Scaled
from tagreel.layers.ragged import Mask, alike, masked, padded
from tagreel.model import Model
from tagreel.parts import Part
from tagreel.recipe import Recipe, override, to_json
from tagreel.sampling import AllFrames, view


class Network(nn.Module):
    """Streams, their join, a body and a head: what a `Tagger` is, or one of a mixture's several."""

    def __init__(self, recipe: Recipe, features: Mapping[str, int], classes: int) -> None:
        super().__init__()
        branches = {name: _Branch(stream, name, features) for name, stream in recipe.streams.items()}
        self.streams = nn.ModuleDict(branches)
        widths = tuple(branch.out_dim for branch in branches.values())
        self.join = None if recipe.join is None else _make(recipe.join, "join", widths)
        self.descriptor_dim: int = sum(widths) if self.join is None else self.join.out_dim
        width = self.descriptor_dim
        self.body = nn.ModuleList()
        for index, part in enumerate(recipe.body):
            module = _make(part, f"body.{index}", width)
            width = module.out_dim
            self.body.append(module)
        self.hidden_dim = width
        self.head: nn.Module = _make(recipe.head, "head", width, classes)
        self.output = nn.ModuleList(
            _make(part, f"output.{index}", classes) for index, part in enumerate(recipe.output)
        )
        self.late = nn.ModuleList(
            _make(part, f"late.{index}", classes) for index, part in enumerate(recipe.late)
        )
        self.memory = None if recipe.memory is None else _make(recipe.memory, "memory", width, classes)
        self.fired = True  # whether the late parts take part

    def pool(self, frames: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> Tensor:
        """Frames and masks of every feature, padded or packed, to one descriptor a video, (B, P)."""
        pooled = [branch(frames, masks) for branch in self.streams.values()]
        return torch.cat(pooled, dim=1) if self.join is None else self.join(pooled)

    def embed(self, descriptor: Tensor) -> Tensor:
        """Descriptors (B, P) to what the head reads, (B, H)."""
        for part in self.body:
            descriptor = part(descriptor)
        return descriptor

    def classify(self, descriptor: Tensor) -> Tensor:
        """Descriptors (B, P) to logits (B, C)."""
        hidden = self.embed(descriptor)
        logits: Tensor = self.head(hidden)
        for part in (*self.output, *(self.late if self.fired else ())):
            logits = part(logits)
        return logits if self.memory is None else self.memory(hidden, logits)

    def with_supports(self, loss: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """The loss of its logits, and what its parts add that make predictions of their own."""
        for module in self.modules():
            if callable(total_loss := getattr(module, "total_loss", None)):
                loss = total_loss(loss, loss_of)
        return loss


class Tagger(Network, Model):
    """Frames of every stream in, logits (B, C) out; made by `build`, trained by `train`, loaded by `load`.

    With a recipe's `mixture` it holds several networks in `branches`, and a gate over their logits.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        features: Mapping[str, int],
        classes: int,
        label_names: Sequence[str] | None = None,
    ) -> None:
        if recipe.mixture is None:
            super().__init__(recipe, features, classes)
            self.mixture = None
        else:
            nn.Module.__init__(self)
            self.fired = True
            self.mixture = _make(recipe.mixture, "mixture", sum(features.values()))
            self.branches = nn.ModuleList(
                Network(recipe, features, classes) for _ in range(self.mixture.branches)
            )
        self.recipe, self.features = recipe, dict(features)
        self.keeps_bytes = False  # whether the branches are given bytes as they are, as `folding` has it
        self.name_classes(classes, label_names)
        for norm in self.modules():
            if isinstance(norm, MaskedBatchNorm):
                norm.momentum = recipe.batch_norm_momentum

    @property
    def name(self) -> str:  # type: ignore[override]
        """The recipe's."""
        return self.recipe.about.name

    @property
    def optional(self) -> tuple[str, ...]:  # type: ignore[override]
        """The recipe's."""
        return self.recipe.optional

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """That of the training."""
        return self.recipe.training.batch_size

    @property
    def reads(self) -> Part:
        """The recipe's `evaluation_sampling`; every frame where an inference makes views of the video."""
        whole = partial(AllFrames, max_frames=None)
        return self.recipe.evaluation_sampling if self.recipe.inference is None else whole

    def settings(self) -> Any:
        """The recipe."""
        return to_json(self.recipe)

    @property
    def networks(self) -> list[Network]:
        """Itself, or the branches of a mixture."""
        return [self] if self.mixture is None else list(self.branches)  # type: ignore[arg-type]

    def fire(self, fired: bool) -> None:
        """Whether the recipe's `late` parts take part from now on."""
        for network in (self, *self.networks):
            network.fired = fired

    def frames(self, streams: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> dict[str, Tensor]:
        """What the streams read of every feature: floats, zero where padded, normalised."""
        if self.keeps_bytes and all(streams[name].dtype == torch.uint8 for name in self.features):
            return {name: streams[name] for name in self.features}
        # Masked again here: the float of a padded byte is not zero.
        frames = {name: masked(dequantize(streams[name]), masks[name]) for name in self.features}
        return joint_l2_norm(frames, masks) if self.recipe.joint_l2_norm else frames

    def describe(self, streams: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> Tensor:
        """Frames and masks of every feature, padded or packed, to one descriptor a video, (B, ΣP).

        That of a mixture holds the branches' descriptors and then what its gate reads.
        """
        frames = self.frames(streams, masks)
        if self.mixture is None:
            return self.pool(frames, masks)
        seen = self.mixture.look(frames, masks)
        return torch.cat([*(network.pool(frames, masks) for network in self.networks), seen], dim=1)

    def classify(self, descriptor: Tensor) -> Tensor:
        """Descriptors to logits (B, C)."""
        if self.mixture is None:
            return super().classify(descriptor)
        widths = [network.descriptor_dim for network in self.networks]
        *descriptors, seen = torch.split(descriptor, [*widths, descriptor.shape[1] - sum(widths)], dim=1)
        pairs = zip(self.networks, descriptors, strict=True)
        return self.mixture(seen, [network.classify(part) for network, part in pairs])  # type: ignore[no-any-return]

    def forward(self, streams: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """Frames and masks of every feature to logits (B, C)."""
        return self.classify(self.describe(streams, masks))

    def with_further_losses(self, loss: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """The loss of the logits that came out, and what parts add that hold more: branches, supports.

        `loss_of` gives the loss of other logits of the same batch; to be called after a forward in training.
        """
        if self.mixture is None:
            return self.with_supports(loss, loss_of)

        def of_branch(network: Network, logits: Tensor) -> Tensor:
            return network.with_supports(loss_of(logits), loss_of)

        return self.mixture.total_loss(loss, [partial(of_branch, network) for network in self.networks])  # type: ignore[no-any-return]

    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, C) of a batch that lies on this model's device."""
        return self.classify(self.describe(*batch.packed()))

    def probabilities(self, batch: Batch) -> Tensor:
        """Probabilities (B, C) of a batch that lies on this model's device, by the recipe's `inference`."""

        def scores(batch: Batch) -> Tensor:
            with self.autocast():
                descriptor = self.describe(*batch.packed())
            # In float32: logits of eight bits tie, and ties cost rank (mAP 0.0004 on AudioSet).
            return torch.sigmoid(self.classify(descriptor.float()))

        if self.recipe.inference is None:
            return scores(batch)
        sampler = self.recipe.evaluation_sampling()
        probabilities: Tensor = self.recipe.inference()(
            scores, lambda videos, draw: view(videos, sampler, draw), batch
        )
        return probabilities

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of matrix products that the recipe asks for, on this model's device."""
        if self.recipe.training.precision == "bfloat16":
            return torch.autocast(next(self.parameters()).device.type, torch.bfloat16)
        return nullcontext()


class _Branch(nn.Module):
    """One stream: its features side by side, its transforms, its pool."""

    def __init__(self, stream: Any, name: str, features: Mapping[str, int]) -> None:
        super().__init__()
        self.inputs = stream.inputs or (name,)
        width = sum(features[feature] for feature in self.inputs)
        self.transforms = nn.ModuleList()
        for index, part in enumerate(stream.transforms):
            module = _make(part, f"streams.{name}.transforms.{index}", width)
            width = module.out_dim
            self.transforms.append(module)
        self.pool = _make(stream.pool, f"streams.{name}.pool", width)
        self.out_dim: int = self.pool.out_dim
        self.packs = all(getattr(part, "packs", False) for part in (*self.transforms, self.pool))
        last = self.transforms[-1] if len(self.transforms) else None
        self.defers = isinstance(last, MaskedBatchNorm) and getattr(self.pool, "takes_scaled", False)

    def read(self, frames: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> tuple[Tensor | Scaled, Mask]:
        """What the pool is given: its frames and their mask, packed if they were and all parts take it."""
        if self.packs and alike(masks[name] for name in self.inputs):
            x: Any = torch.cat([frames[name] for name in self.inputs], dim=-1)
            mask: Mask = masks[self.inputs[0]]
            x = on_the_grid(x) if x.dtype == torch.uint8 else x
        else:
            x, mask = self._side_by_side(*padded(frames, masks))
        for transform in self.transforms:
            scaled = transform is self.transforms[-1] and self.defers
            if isinstance(x, Scaled) and not hasattr(transform, "scaled"):
                x = x.multiplied()
            scaled = scaled or isinstance(x, Scaled)
            x = transform.scaled(x, mask) if scaled else transform(x, mask)  # type: ignore[operator]
        if isinstance(x, Scaled) and not getattr(self.pool, "takes_scaled", False):
            x = x.multiplied()
        return x, mask

    def _side_by_side(
        self, frames: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The features of each frame behind one another (B, T, ΣD), and which frames have any, (B, T)."""
        length = max(frames[name].shape[1] for name in self.inputs)
        parts, real = [], []
        for name in self.inputs:
            x = frames[name]
            if x.dtype == torch.uint8:
                x = masked(dequantize(x), masks[name])
            # A vector of the whole video stands beside each of its frames.
            vector = x.shape[1] == 1
            parts.append(x.expand(-1, length, -1) if vector else F.pad(x, (0, 0, 0, length - x.shape[1])))
            real.append(F.pad(masks[name], (0, length - x.shape[1])))
        return torch.cat(parts, dim=-1), reduce(or_, real)

    def forward(self, frames: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> Tensor:
        return self.pool(*self.read(frames, masks))  # type: ignore[no-any-return]


def build(
    recipe: Recipe,
    *,
    features: Mapping[str, int] | None = None,
    classes: int | None = None,
    label_names: Sequence[str] | None = None,
) -> Tagger:
    """The model of a recipe, with first weights from torch's generator.

    Widths and the number of classes come from the recipe; where it leaves them open, from `features` and
    `classes`, which the data say. Raises `RecipeError` when one is left open or the two disagree.
    """
    widths: dict[str, int] = {}
    for name, declared in recipe.features.items():
        widths[name] = _settled(f"features.{name}", declared, (features or {}).get(name))
    total = _settled("classes", recipe.classes, classes)
    return Tagger(recipe, features=widths, classes=total, label_names=label_names)


def set_inference(model: Model, settings: Sequence[str], *, trust: tuple[str, ...] = ()) -> None:
    """Change how a trained model scores: settings (PATH=VALUE) of `inference` and `evaluation_sampling`.

    In an ensemble they hold for every member. Raises `RecipeError` for other settings, which training fixed,
    and where there are recorded predictions alone.
    """
    taggers = [module for module in model.modules() if isinstance(module, Tagger)]
    if settings and not taggers:
        raise RecipeError(
            f"--set {settings[0]}: {model.name} holds predictions, which are what they are; expected a model"
        )
    for tagger in taggers:
        tagger.recipe = with_inference(tagger.recipe, settings, trust=trust)


def with_inference(recipe: Recipe, settings: Sequence[str], *, trust: tuple[str, ...] = ()) -> Recipe:
    """The recipe of a trained model that scores otherwise; raises `RecipeError` as `set_inference` does."""
    for setting in settings:
        if setting.partition("=")[0].strip().split(".")[0] not in ("inference", "evaluation_sampling"):
            raise RecipeError(
                f"--set {setting}: training has settled it; of a trained model only inference and "
                "evaluation_sampling can be set"
            )
        recipe = override(recipe, setting, trust=trust)
    return recipe


def count_parameters(recipe: Recipe) -> int | None:
    """Trainable parameters at the recipe's own widths, without allocating them; None when they are open."""
    if recipe.classes is None or None in recipe.features.values():
        return None
    with torch.device("meta"):
        model = build(recipe)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _make(part: Part, where: str, *sizes: int | tuple[int, ...]) -> Any:
    """Fill a slot; raises `RecipeError` that names it when the class refuses its options or its place."""
    try:
        return part(*sizes)
    except (ValueError, TypeError, ArithmeticError, IndexError) as error:
        raise RecipeError(f"{where}: {part.func.__name__} cannot be built: {error}") from error


def _settled(setting: str, declared: int | None, found: int | None) -> int:
    """The number that the recipe states; where it leaves it open, the one that the data say."""
    number = found if declared is None else declared
    if number is None:
        raise RecipeError(f"{setting} is not known yet; set it with --set {setting}=...")
    if found not in (None, number):
        raise RecipeError(
            f"{setting}: the recipe says {number:,}, the data {found:,}; mend it with --set {setting}={found}"
        )
    return number
