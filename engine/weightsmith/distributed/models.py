"""What becomes of a model on several processes: copies, or one whose weights are shared out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, overload

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from weightsmith.distributed.processes import is_distributed, world_size

__all__ = ["parallel"]

_LEAST = 2**16
"""Weights that a block must hold to be gathered by itself; what is smaller is gathered with what is around it."""

Name = TypeVar("Name")


@overload
def parallel(model: nn.Module, shard: bool = ...) -> nn.Module: ...
@overload
def parallel(model: Mapping[Name, nn.Module], shard: bool = ...) -> dict[Name, nn.Module]: ...
def parallel(model: nn.Module | Mapping[Any, nn.Module], shard: bool = False) -> nn.Module | dict[Any, nn.Module]:
    """The model as several processes train it; call it before the optimizer is made, with the model on its device. One
    process gets the model itself.

    By default every process has a copy. A model alone is wrapped in ``DistributedDataParallel``, which sends gradients
    while the backward pass goes on: keep a name for the model itself to get at its parts. Of several models, whose
    updates no wrapper could tell apart, the Trainer averages the gradients, and they are left as they are.

    Args:
        model: the model, or several by name.
        shard: share the weights out, by torch's ``fully_shard``, in place: each process keeps a part of every weight,
            and a block is whole only while it computes. Blocks are the children that hold many weights, those of
            lists and sequences one by one; what they hold together with others, as tied weights, stays with the
            model. A block's weights must be used by its own forward pass alone.
    """
    if isinstance(model, nn.Module):
        return _parallel(model, shard, is_alone=True)
    return {name: _parallel(each, shard, is_alone=len(model) == 1) for name, each in model.items()}


def _parallel(model: nn.Module, shard: bool, *, is_alone: bool) -> nn.Module:
    if not is_distributed():
        return model
    if shard:
        return _shared_out(model)
    is_trained = any(parameter.requires_grad for parameter in model.parameters())
    if not is_alone or not is_trained:
        return model
    device = next(model.parameters()).device
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def _shared_out(model: nn.Module) -> nn.Module:
    tensors = [*model.parameters(), *model.buffers()]
    for tensor in tensors:  # else each would keep its part of another model
        dist.broadcast(tensor.detach(), src=0)
    device = tensors[0].device.type if tensors else "cpu"
    mesh = init_device_mesh(device, (world_size(),))
    for block in blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # the outermost too, so that plugins find parts
    return model


def blocks(model: nn.Module, least: int = _LEAST) -> Iterator[nn.Module]:
    """The parts of a model that are worth being gathered by themselves: each holds ``least`` weights or more, and none
    that another holds too.

    >>> model = nn.Sequential(nn.ModuleList([nn.Linear(9, 9), nn.Linear(9, 9)]), nn.Linear(9, 1), nn.Linear(1, 81))
    >>> list(blocks(model, least=90))
    [Linear(in_features=9, out_features=9, bias=True), Linear(in_features=9, out_features=9, bias=True), \
Linear(in_features=1, out_features=81, bias=True)]
    """
    candidates = list(dict.fromkeys(_candidates(model)))
    owners = Counter(id(parameter) for block in candidates for parameter in block.parameters())
    loose = _loose(model, set(candidates))
    for block in candidates:
        own = list(block.parameters())
        is_apart = all(owners[id(parameter)] == 1 and id(parameter) not in loose for parameter in own)
        if is_apart and sum(map(Tensor.numel, own)) >= least:
            yield block


def _candidates(model: nn.Module) -> Iterator[nn.Module]:
    for child in model.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)) or type(child) is nn.Sequential:
            yield from _candidates(child)
        else:
            yield child


def _loose(model: nn.Module, candidates: set[nn.Module]) -> set[int]:
    """The parameters that the modules around the candidates hold themselves."""
    found = {id(parameter) for parameter in model.parameters(recurse=False)}
    for child in model.children():
        if child not in candidates:
            found |= _loose(child, candidates)
    return found
