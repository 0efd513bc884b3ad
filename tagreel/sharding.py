"""A tagger whose weights, gradients and optimizer state are divided among ranks, for those too large for one.

PyTorch's FSDP2 keeps of every tensor an equal part on each rank and puts the parts of one module together
just before it is used. Files know nothing of it: what is written is whole, and read into either kind.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tagreel.errors import RecipeError
from tagreel.tagger import Tagger


def shard(model: Tagger, device: torch.device) -> None:
    """Divide a tagger among all ranks; what fills a slot of its recipe is put together as one.

    Gradients are added up over the ranks. Raises `RecipeError` for a part that cannot be divided.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    # A warning to whoever changes such a view in place; no part changes what another put out.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view tensor", UserWarning)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    try:
        for network in model.networks:
            slots = [*network.streams.values(), network.join, *network.body, network.head]
            for part in (*slots, *network.output, *network.late):
                if part is not None and any(True for _ in part.parameters()):
                    fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
    except ValueError as error:
        raise RecipeError(f"--shard: {error}") from error
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Sums, as of weights that are not divided; FSDP's default is the mean.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    for name in ("describe", "classify"):  # what is called of it, beside `forward`
        register_fsdp_forward_method(model, name)
    model.to(device)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has divided it, so that using it takes all ranks."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what this rank keeps, divided `like` a parameter; all of it where that is whole."""
    if not hasattr(like, "full_tensor") or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    whole = whole.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The tensors, those that are divided put together in main memory, one after the other.

    It takes all ranks; those that do not `keep` the tensors get none.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor().cpu() if hasattr(tensor, "full_tensor") else tensor
        if keep:
            found[name] = whole
    return found
