"""How much memory a training needs, found before it starts by a step on tensors without content.

PyTorch's fake tensors have shape and type and no memory, so the model of a recipe can be built, and led
through forward and backward, on any machine; what would be alive at each moment is added up. Padding is taken
to be real, which is the largest case.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tagreel.batch import Batch, Example
from tagreel.optimization import Optimization
from tagreel.recipe import Recipe, Training
from tagreel.tagger import Tagger, build

_CUDA_CONTEXT = 500 * 2**20
_ONCE_AT_WORK = 100 * 2**20  # libraries loaded late, and what the allocator keeps; 60 to 230 MB measured
_LENGTHS = (24, 48)
_BATCHES_AHEAD = 6  # what the loader holds: read ahead, in use, and kept for the next


@dataclass(frozen=True)
class Estimate:
    """Bytes of each kind that a training holds.

    `activations` are the largest sum of what a forward and backward pass holds besides gradients, `update`
    is what the optimizer's step needs for a moment, and `saving` the copies while a checkpoint is written,
    when there are no gradients. `complete` is False where a part of the model looks at the content of its
    tensors, so that its activations cannot be known without any.
    """

    optimizer_name: str
    process: int
    weights: int
    optimizer: int
    average: int
    batches: int
    gradients: int
    activations: int
    update: int
    saving: int
    complete: bool = True

    @property
    def total(self) -> int:
        """The most that is needed at one time."""
        return sum(self._at_most().values())

    def text(self, available: int | None) -> str:
        """One line: the sum, what it is made of in GB, and what there is."""
        parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in self._at_most().items() if size >= 5e7)
        least = "about" if self.complete else "more than"
        line = f"needs {least} {self.total / 1e9:.1f} GB ({parts})"
        return line if available is None else f"{line}; this machine has {available / 1e9:.1f}"

    def _at_most(self) -> dict[str, int]:
        """What lies side by side when it is most."""
        parts = {"weights": self.weights, self.optimizer_name: self.optimizer}
        parts |= {"averaged weights": self.average, "batches": self.batches, "PyTorch": self.process}
        if self.saving > self.gradients + max(self.activations, self.update):
            return parts | {"copies for the checkpoint": self.saving}
        update = self.update > self.activations
        name, size = ("update", self.update) if update else ("activations", self.activations)
        return parts | {"gradients": self.gradients, name: size}


def estimate(recipe: Recipe, example: Example, *, device: torch.device, frames: int = 300) -> Estimate:
    """What training the recipe takes on `device`; its widths and classes have to be known.

    `example` shows which streams are vectors and which have frames, and of what type they are; `frames` is
    the length of the longest videos. Raises `RecipeError` when the model or the optimizer cannot be built.
    """
    with torch.device("meta"):
        model = build(recipe)
    weights = _bytes(*model.state_dict().values())
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = _bytes(*trained)
    states, updates = _optimizer_bytes(recipe.training, [p.shape for p in trained])
    average = weights if recipe.training.ema else 0
    on_cpu = device.type == "cpu"
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        length = len(np.arange(frames)[recipe.sampling()(frames, (0,))])
        batch = _batch(recipe, example, length)
        try:
            peak, complete = _peak(model, recipe, example, length), True
        except (DataDependentOutputException, DynamicOutputShapeException):
            peak, complete = 0, False
        batch_bytes = _bytes(*batch.streams.values())
    return Estimate(
        optimizer_name=recipe.training.optimizer.func.__name__,
        process=_resident() + _ONCE_AT_WORK if on_cpu else _CUDA_CONTEXT,
        weights=weights,
        optimizer=states,
        average=average,
        batches=batch_bytes * (_BATCHES_AHEAD if on_cpu else 2),
        gradients=gradients,
        activations=max(peak - gradients, 0),
        # Tensor by tensor on a CPU, all at once elsewhere.
        update=max(updates, default=0) if on_cpu else sum(updates),
        saving=max(weights, states + average) if on_cpu else 0,
        complete=complete,
    )


def available(device: torch.device) -> int | None:
    """Bytes that this process may have in all, what it has already included; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    free = [found for found in (_free_in_machine(), _free_in_container()) if found is not None]
    return min(free) + _resident() if free else None


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make and that somebody still holds; `known` ones cost nothing."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._storages: dict[int, object] = {t.untyped_storage()._cdata: None for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what came out."""
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._count(result.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def gone(_: object) -> None:
            del self._storages[key]
            self.now -= size

        self._storages[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class _AllReal(TorchFunctionMode):
    """Answers what depends on the content of a mask as if every frame were real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """x[mask] takes all rows, index_put((mask,), rows) puts them all back, mask.any() is true."""
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return args[0].flatten(0, args[1].ndim - 1).clone()
        if func is Tensor.index_put:
            return args[2].reshape(args[0].shape).clone()
        if func is Tensor.__bool__:
            return True
        return func(*args, **(kwargs or {}))


def _step_bytes(model: Tagger, recipe: Recipe, batch: Batch) -> int:
    """The most that is alive in forward and backward, besides the model and the batch."""
    known = [*model.state_dict().values(), *batch.streams.values()]
    loss_function: nn.Module = recipe.loss()
    live = _Live(*known)
    with live, _AllReal():
        labels = torch.zeros(len(batch), model.classes)

        def loss_of(logits: Tensor) -> Tensor:
            return loss_function(logits, labels)  # type: ignore[no-any-return]

        for _ in range(min(recipe.training.accumulate, 2)):  # the second finds gradients there already
            with model.autocast():
                loss = model.with_further_losses(loss_of(model.logits(batch)), loss_of)
            loss.backward()  # type: ignore[no-untyped-call]
    return live.peak


def _peak(model: Tagger, recipe: Recipe, example: Example, length: int) -> int:
    """`_step_bytes` of videos that long; of long ones extended from two shorter lengths.

    Fused recurrent kernels are led through frame by frame here, which takes half a minute for 300.
    """
    if length <= _LENGTHS[1]:
        return _step_bytes(model, recipe, _batch(recipe, example, length))
    short, long = (_step_bytes(model, recipe, _batch(recipe, example, size)) for size in _LENGTHS)
    return long + (long - short) * (length - _LENGTHS[1]) // (_LENGTHS[1] - _LENGTHS[0])


def _batch(recipe: Recipe, example: Example, frames: int) -> Batch:
    """A full batch of videos of so many frames, without content."""
    B = recipe.training.batch_size
    streams, num_frames, sizes = {}, {}, {}
    for name, width in recipe.features.items():
        assert width is not None, "the recipe is settled"
        array = example.streams.get(name)
        length, dtype = 1, np.dtype(np.float32)
        if array is not None:
            dtype = array.dtype
        if array is not None and len(array) > 1:
            length = frames
        streams[name] = torch.zeros(B, length, width, dtype=getattr(torch, dtype.name))
        num_frames[name], sizes[name] = torch.full((B,), length), [length] * B
    none = torch.zeros(0, dtype=torch.int64)
    counts = torch.zeros(B, dtype=torch.int64)
    return Batch([""] * B, streams, num_frames, label_ids=none, label_counts=counts, sizes=sizes)


_SAMPLES = ((), (9973,), (97, 89), (23, 19, 17), (13, 11, 7, 5))
"""Shapes of tensors that stand for larger ones: no size comes twice or by chance."""


def _optimizer_bytes(training: Training, shapes: Sequence[torch.Size]) -> tuple[int, list[int]]:
    """What an optimizer keeps for tensors of these shapes, and what its step needs for each for a moment.

    It takes two steps on a small tensor of as many dimensions, and every size of that one's states is read
    as the size of the dimension that it comes from: so Adafactor's rows and columns are told from a copy.
    """
    plain = replace(training, ema=0.0, head_l2=0.0)
    kept, momentary = 0, []
    for ndim in sorted({len(shape) for shape in shapes}):
        sample = nn.ParameterList([torch.zeros(_SAMPLES[ndim])])
        optimization = Optimization(sample, plain)  # type: ignore[arg-type]
        for number in (1, 2):
            sample[0].grad = torch.ones_like(sample[0])
            live = _Live(sample[0], sample[0].grad, *optimization.tensors().values())
            with live:
                optimization.step(number, examples=0, total_examples=1)
        for shape in shapes:
            if len(shape) == ndim:
                sizes = dict(zip(_SAMPLES[ndim], shape, strict=True))
                for state in optimization.tensors().values():
                    kept += state.element_size() * math.prod(sizes.get(size, size) for size in state.shape)
                momentary.append(live.peak * shape.numel() // sample[0].numel())
    return kept, momentary


def _resident() -> int:
    """Bytes of this process that lie in memory now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 400 * 2**20


def _free_in_machine() -> int | None:
    """What Linux says could be had without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None


def _free_in_container(
    processes: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """What the tightest limit of this process's control groups leaves, their file cache not counted."""
    try:
        groups = [line.split(":", 2) for line in processes.read_text().splitlines()]
    except OSError:
        return None
    free = []
    for _, kind, group in groups:
        if kind not in ("", "memory"):
            continue
        names = _VERSION_1 if kind else _VERSION_2
        folder = root / kind / group.strip("/")
        # The groups above bind as well; and within a container the path is often that outside of it.
        for place in (folder, *folder.parents):
            if place.is_relative_to(root / kind) and (found := _left(place, *names)) is not None:
                free.append(found)
    return min(free, default=None)


_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def _left(folder: Path, limit: str, used: str, cache: str) -> int | None:
    try:
        most, now = (folder / limit).read_text().strip(), int((folder / used).read_text())
        lines = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
    except OSError:
        return None
    cached = sum(int(size) for name, size in lines if name == cache)
    return None if most == "max" else max(int(most) - now + cached, 0)


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
