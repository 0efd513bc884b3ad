"""Several processes that train or evaluate one model: which one this is, and what they tell each other.

    torchrun --nproc-per-node 2 -m tagreel train RECIPE --data SRC --out RUN

torchrun starts them, on one machine or many, and says so in the environment; alone, a process is the first
rank of one, and everything here gives back what it was given. What goes wrong on one rank is told to all of
them (`together`), so that none waits for one that is gone. Small things travel over gloo on the CPUs;
tensors on GPUs over nccl.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tagreel.errors import RecipeError, TagreelError
from tagreel.runtime import pick_device, started_together

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_PATIENCE = timedelta(days=1)
"""How long a rank waits for another, which may be asking a teacher; one that has died is noticed at once."""
_ENDED, _SOON = "tagreel/ended", timedelta(seconds=10)

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process, `number` of `count` that work together."""

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes, prints and decides."""
        return self.number == 0

    def slice(self, total: int) -> slice:
        """This rank's share of `total` things in order; shares differ by one at most."""
        return slice(total * self.number // self.count, total * (self.number + 1) // self.count)

    def add_up(self, *numbers: float) -> list[float]:
        """Each number's sum over the ranks; whole numbers up to 2^53 are exact."""
        if self.count == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def share(self, value: T) -> list[T]:
        """Every rank's value, on all of them."""
        found: list[Any] = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(found, value)
        return found

    def gather(self, value: T) -> list[T]:
        """Every rank's value on the first, and none on the others."""
        if self.count == 1:
            return [value]
        found: list[Any] | None = [None] * self.count if self.first else None
        dist.gather_object(value, found)
        return found or []

    def tell(self, value: T) -> T:
        """The first rank's value, on all of them."""
        told: list[Any] = [value]
        if self.count > 1:
            dist.broadcast_object_list(told)
        return told[0]  # type: ignore[no-any-return]

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors, all of one shape."""
        tensor = tensor.clone()
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    @contextmanager
    def together(self) -> Iterator[None]:
        """What goes wrong within on one rank goes wrong on all: the lowest one's error is raised on each.

        Within, no rank may wait for another.
        """
        problem: TagreelError | OSError | None = None
        try:
            yield
        except (TagreelError, OSError) as error:
            problem = error
        if self.add_up(problem is not None)[0]:
            raise next(error for error in self.share(problem) if error is not None)

    def begin_alike(self, model: nn.Module) -> None:
        """Give all ranks the first one's weights: another processor may draw other ones from the seed."""
        if self.count > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)


ALONE = Ranks()


class Statistics:
    """Adds up over the ranks what a batch norm counts, and its gradients on the way back.

    A rank that is not `present` brings zeros: it has no video in this batch and looks at a made-up one.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.present = ranks, True

    def __call__(self, sums: Tensor) -> Tensor:
        """The sums of all ranks."""
        return _Sum.apply(sums if self.present else sums * 0, self.ranks)  # type: ignore[no-untyped-call, no-any-return]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.total(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.total(gradients[0]), None


class Gradients:
    """Adds up a model's gradients over the ranks, each as soon as the backward pass has it.

    So they travel while others are computed. Not `DistributedDataParallel`: a step calls the model's parts
    rather than its `forward`, some parts join late, and what has no gradient on any rank needs none here.
    All ranks have to go through the same parts of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.last = True
        """Whether the backward pass is the last one before a step; gradients of earlier ones wait for it."""
        self._under_way: list[dist.Work] = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._add_up)  # type: ignore[no-untyped-call]

    def _add_up(self, parameter: Tensor) -> None:
        if self.last:
            assert parameter.grad is not None
            work = dist.all_reduce(parameter.grad, async_op=True)
            assert work is not None
            self._under_way.append(work)

    def wait(self) -> None:
        """Return when all that began has ended."""
        for work in self._under_way:
            work.wait()
        self._under_way.clear()


def join(device: torch.device) -> Ranks:
    """This process among those that torchrun, or the caller, has started; raises `RecipeError` if it fails.

    The first call waits for the others.
    """
    if started_together() or (dist.is_available() and dist.is_initialized()):
        return _join(device)[0]
    return ALONE


@contextmanager
def one_of_several(device: str) -> Iterator[tuple[torch.device, Ranks]]:
    """The device and the ranks of a command; within, the first rank alone prints.

    An error that all ranks end with is left to it as well, and the others end after it: torchrun ends
    whoever is left once one has failed.
    """
    if not started_together():
        yield pick_device(device), ALONE
        return
    target = pick_device(device)
    ranks, store = _join(target)
    if ranks.first:
        yield target, ranks
        return
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield target, ranks
    except Exception as error:
        if _has_ended(store):
            raise SystemExit(getattr(error, "exit_code", 2)) from error
        raise


@cache
def _join(device: torch.device) -> tuple[Ranks, Store | None]:
    if dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size()), None
    from torch.distributed.rendezvous import rendezvous

    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, number, count = next(rendezvous("env://", timeout=_PATIENCE))
        dist.init_process_group(
            backend,
            store=store,
            rank=number,
            world_size=count,
            timeout=_PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(
            f"the processes did not find each other: {reason}; start them by torchrun"
        ) from error
    atexit.register(_leave, store, number)
    return Ranks(number, count), store


def _leave(store: Store, number: int) -> None:
    if number == 0:
        store.set(_ENDED, "1")
    dist.destroy_process_group()


def _has_ended(store: Store | None) -> bool:
    """Whether the first rank has said all it had to say, or does so soon."""
    if store is None:
        return False
    try:
        store.wait([_ENDED], _SOON)
    except dist.DistStoreError:
        return False
    except dist.DistError:  # it kept the store, and both are gone
        return True
    return True
