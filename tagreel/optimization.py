"""From gradients to new weights: schedule, regularisation, clipping, the optimizer, and averaged weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tagreel.errors import RecipeError
from tagreel.recipe import Training
from tagreel.sharding import is_sharded, part_of, shard
from tagreel.tagger import Tagger


class Optimization:
    """What a recipe's training does to a model after each backward pass.

    `averaged` is the model with exponentially averaged weights and statistics, None when the recipe wants
    none. With `shard_on` a device, model and averages are divided among the ranks that work there. Raises
    `RecipeError` when the optimizer refuses its options.
    """

    def __init__(self, model: Tagger, training: Training, *, shard_on: torch.device | None = None) -> None:
        self.model, self.training = model, training
        self.averaged = copy.deepcopy(model).eval() if training.ema else None
        if shard_on is not None:
            for divided in (model, self.averaged):
                if divided is not None:
                    shard(divided, shard_on)
        self._optimizer = _optimizer(model, training)
        self._schedule = training.schedule()
        self._base_rates = [group["lr"] for group in self._optimizer.param_groups]

    def step(self, number: int, *, examples: int, total_examples: int) -> float:
        """Take step `number` after `examples` of the planned examples; returns its learning rate."""
        factor = self._schedule(examples, total_examples)
        for group, base_rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base_rate * factor
        self._regularize()
        self._clip()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._average(number)
        return float(self._base_rates[0] * factor)

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs: the optimizer's state, and the raw weights where averages are kept."""
        state: Mapping[int, Mapping[str, Tensor]] = self._optimizer.state_dict()["state"]
        tensors = {
            f"optimizer.{i}.{key}": value for i, slots in state.items() for key, value in slots.items()
        }
        if self.averaged is not None:
            tensors |= {f"weights.{name}": tensor for name, tensor in self.model.state_dict().items()}
        return tensors

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the optimizer's state from what `tensors` gave."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = part_of(tensor, parameters[int(index)])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _regularize(self) -> None:
        if self.training.head_l2:
            for network in self.model.networks:
                for parameter in network.head.parameters():
                    if parameter.ndim > 1 and parameter.grad is not None:
                        parameter.grad.add_(parameter.detach(), alpha=self.training.head_l2)

    def _clip(self) -> None:
        with_gradient = [p for p in self.model.parameters() if p.grad is not None]
        if self.training.clip == "global":
            nn.utils.clip_grad_norm_(with_gradient, self.training.clip_norm)
        elif self.training.clip == "tensor":
            for parameter in with_gradient:
                nn.utils.clip_grad_norm_([parameter], self.training.clip_norm)

    @torch.no_grad()
    def _average(self, number: int) -> None:
        """Move the averaged weights and statistics towards the model's; early steps move further."""
        if self.averaged is None:
            return
        share = 1 - min(self.training.ema, (1 + number) / (10 + number))
        theirs = self.model.state_dict().values()
        for ours, new in zip(self.averaged.state_dict().values(), theirs, strict=True):
            if ours.is_floating_point():
                ours.lerp_(new, share)
            else:
                ours.copy_(new)


def _optimizer(model: Tagger, training: Training) -> torch.optim.Optimizer:
    part = training.optimizer
    options: dict[str, Any] = {}
    # PyTorch's fused update is several times faster and not its default. SGD's wants a momentum of every
    # parameter or of none, and those that join late have none yet.
    known = inspect.signature(part.func).parameters
    device = next(model.parameters()).device.type
    fused = device in ("cpu", "cuda") and "fused" in known and part.keywords.get("fused") is None
    if is_sharded(model):  # PyTorch has not divided the others' fused updates yet
        fused = fused and part.func in (torch.optim.Adam, torch.optim.AdamW)
    if fused and not (training.late_epochs and part.func is torch.optim.SGD):
        options["fused"] = True
    if part.func is torch.optim.LBFGS:
        raise RecipeError("training.optimizer: LBFGS evaluates its loss again and again; take another one")
    try:
        optimizer: torch.optim.Optimizer = part(model.parameters(), **options)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"training.optimizer: {error}") from error
    return optimizer
