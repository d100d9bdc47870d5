"""Weights of which every process holds a part: torch's ``DTensor``, as its ``fully_shard`` makes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

__all__ = [
    "Part",
    "follow",
    "gather",
    "is_sharded",
    "own_part",
    "part_of",
    "put_back",
    "reshard",
    "sharded_modules",
    "spread",
]


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor alone."""
    return isinstance(tensor, DTensor)


def gather(tensor: Tensor) -> Tensor:
    """The whole tensor, on every process: an all-gather of a sharded one, differentiable; another as it is. Every
    process that holds a part must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """The values that this process holds, sharing memory with the tensor."""
    if not isinstance(tensor, DTensor):
        return tensor
    here: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return here


def put_back(tensor: Tensor, whole: Tensor) -> None:
    """Write a whole value in the tensor's place, each process its own part. Nothing is sent."""
    if isinstance(tensor, DTensor):
        own_part(tensor).copy_(own_part(spread(whole.detach(), tensor)))
    else:
        tensor.copy_(whole)


def spread(whole: Tensor, like: Tensor) -> Tensor:
    """A whole value, which every process has, sharded as another tensor is; differentiable. Nothing is sent."""
    if not isinstance(like, DTensor):
        return whole
    mesh, everywhere = like.device_mesh, [Replicate()] * like.device_mesh.ndim
    return DTensor.from_local(whole, mesh, everywhere, run_check=False).redistribute(placements=like.placements)


@dataclass(frozen=True, eq=False)
class Part:
    """The part of a sharded weight that this process holds: some indices of one axis.

    Attributes:
        shape: of the whole weight.
        axis: along which it is sharded.
        start: the first index of that axis that is here.
        size: how many are here; 0 where there are more processes than indices.
        group: the processes that hold the other parts.
        like: the sharded weight.
    """

    shape: torch.Size
    axis: int
    start: int
    size: int
    group: dist.ProcessGroup
    like: DTensor

    def of(self, whole: Tensor) -> Tensor:
        """What of a tensor of the weight's shape is here; a view."""
        return whole.narrow(self.axis, self.start, self.size)

    def gather(self, here: Tensor) -> Tensor:
        """The whole of a tensor of which every process has the part that it has of the weight."""
        return gather(self.joined(here))

    def joined(self, here: Tensor) -> DTensor:
        """The parts as one sharded tensor. Its size along :attr:`axis` is the weight's; its other sizes are its own."""
        shape = torch.Size([*here.shape[: self.axis], self.shape[self.axis], *here.shape[self.axis + 1 :]])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            here.contiguous(), self.like.device_mesh, self.like.placements, shape=shape, stride=stride, run_check=False
        )

    def total(self, here: Tensor) -> Tensor:
        """The sum over the processes, in a new tensor."""
        return self._reduced(here, dist.ReduceOp.SUM)

    def most(self, here: Tensor) -> Tensor:
        """The largest over the processes, element by element, in a new tensor."""
        return self._reduced(here, dist.ReduceOp.MAX)

    def _reduced(self, here: Tensor, operation: Any) -> Tensor:
        reduced = here.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(reduced, operation, group=self.group)
        return reduced


def part_of(tensor: Tensor) -> Part | None:
    """How a tensor is sharded, if it is along one axis, in pieces that follow one another; ``None`` for a whole one and
    for one that lies otherwise, which can only be gathered."""
    if not isinstance(tensor, DTensor):
        return None
    mesh, placements = tensor.device_mesh, tensor.placements
    sharding = [dim for dim, placement in enumerate(placements) if type(placement) is Shard]
    others = [placement for placement in placements if type(placement) is not Shard]
    if len(sharding) != 1 or not all(isinstance(placement, Replicate) for placement in others):
        return None
    axis = placements[sharding[0]].dim  # type: ignore[attr-defined]
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    return Part(tensor.shape, axis, offset[axis], shape[axis], mesh.get_group(sharding[0]), tensor)


# -------------------------------------------------------------------- torch's fully_shard


def reshard(models: Iterable[nn.Module]) -> None:
    """Let modules that ``fully_shard`` made hold their parts again, where a forward pass without a backward pass left
    them whole."""
    for module in sharded_modules(models):
        module.reshard()


def sharded_modules(models: Iterable[nn.Module]) -> list[FSDPModule]:
    """The modules that ``fully_shard`` made."""
    return [module for model in models for module in model.modules() if isinstance(module, FSDPModule)]


def follow(models: Iterable[nn.Module], raw: Tensor, module: nn.Module, leaf: str) -> None:
    """Tell ``fully_shard`` that a parameter has its place elsewhere now: as a parametrization's original.

    Its modules remember where to put the whole parameter for a forward pass, and torch has no public way to change
    that.
    """
    for parameter in _sharded_parameters(models):
        if parameter.sharded_param is raw:
            parameter._module_info.module, parameter._module_info.param_name = module, leaf
            parameter.reset_sharded_param()  # registering gives it another memory
            whole = getattr(parameter, "_unsharded_param", None)
            if whole is not None:
                whole.requires_grad_(raw.requires_grad)


def _sharded_parameters(models: Iterable[nn.Module]) -> Iterable[Any]:
    for model in models:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                state: Any = module._get_fsdp_state()
                groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
                yield from (parameter for group in groups if group is not None for parameter in group.fsdp_params)
