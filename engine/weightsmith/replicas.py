"""Models of which every process holds a copy: begun alike, given one gradient, and seen to stay alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from weightsmith.distributed import is_distributed, world_size
from weightsmith.errors import ReplicaDriftError
from weightsmith.optimizers import held_by
from weightsmith.shards import is_sharded, own_part

__all__ = ["Replicas", "drifted", "inside"]

_BUCKET = 25 * 2**20
"""Bytes that travel in one message, as in ``DistributedDataParallel``."""


class Replicas:
    """Keeps the copies of a run's models alike; those weights left aside that are sharded.

    Gradients are averaged when an accumulation window closes: by ``DistributedDataParallel`` itself, during its last
    backward pass, where it wraps the only model; else here, after it. The running statistics of batch norm are averaged
    at the end of the iteration: until then the backward passes of other optimizers may need them as they are.

    Args:
        models: the models, by name.
        optimizers: the optimizers, by name.
    """

    def __init__(self, models: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> None:
        self._models = models
        self._optimizers = optimizers
        self._is_needed = is_distributed()
        self._wrapped = [model for model in models.values() if isinstance(model, DistributedDataParallel)]
        self._known = [_trained(model) for model in self._wrapped]
        self._is_wrapping_all = len(models) == 1
        """Whether a wrapper sees all that is trained as it is trained."""
        self._passed = False
        """Whether a forward pass, since it was last asked, went through what the wrapper synchronises."""
        self._have_statistics_moved = False
        """Whether the running statistics are to be averaged."""
        for model in self._wrapped:
            model.register_forward_pre_hook(self._note_pass)
        if self._is_needed:
            self._begin_alike()

    def _begin_alike(self) -> None:
        """Give every copy the values of the first."""
        with torch.no_grad():
            for tensor in _entries(self._models.values()):
                for group in _copying_groups(tensor):
                    own = own_part(tensor)
                    sent = own.contiguous()
                    dist.broadcast(sent, group=group, group_src=0)
                    own.copy_(sent)

    def _note_pass(self, module: Any, _: Any) -> None:
        self._passed = self._passed or (bool(module.require_backward_grad_sync) and torch.is_grad_enabled())

    @property
    def has_wrappers(self) -> bool:
        """Whether ``DistributedDataParallel`` wraps a model."""
        return bool(self._wrapped)

    def mistrust_wrappers(self) -> None:
        """From now on, average all gradients here: a layer computes with another function of its weight than when the
        model was wrapped."""
        self._is_wrapping_all = False

    def begin_iteration(self, *, ends_window: bool) -> None:
        """Before a step: whether the backward pass to come ends the window of the only optimizer."""
        if not self._wrapped:
            return
        self._passed = False
        fits = self._is_wrapping_all and self._known == [_trained(model) for model in self._wrapped]
        for model in self._wrapped:
            model.require_backward_grad_sync = ends_window and fits

    def average_gradients(self, optimizer: Optimizer) -> None:
        """Give every copy the mean of all copies' gradients. A weight that no copy has a gradient of keeps none."""
        if not self._is_needed or self._passed:
            return
        self._have_statistics_moved = True
        whole = [parameter for parameter in held_by(optimizer) if parameter.requires_grad and not is_sharded(parameter)]
        if not whole:
            return
        flags = torch.tensor([float(parameter.grad is not None) for parameter in whole], device=whole[0].device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in whole]
        _average([*gradients, flags])
        for parameter, gradient, share in zip(whole, gradients, flags.tolist(), strict=True):
            parameter.grad = gradient if share else None

    def average_statistics(self) -> None:
        """After a step, or after the windows that an epoch's end closes: average the running statistics of batch norm,
        if gradients were averaged here."""
        if self._have_statistics_moved:
            self._have_statistics_moved = False
            with torch.no_grad():
                _average(list(_running_statistics(self._models.values())))

    def refuse_drift(self) -> None:
        """At the end of an epoch, raise where the copies are not alike any more.

        Raises:
            ReplicaDriftError: they are not; names the first weight.
        """
        if not self._is_needed:
            return
        names = drifted(self._models, self._optimizers)
        if names:
            others = f", nor are {len(names) - 1} others" if names[1:] else ""
            raise ReplicaDriftError(
                f"{names[0]} is not the same on all processes{others}: each acts on its own numbers. A handler or "
                "plugin that draws random numbers of its own, or looks at its batch, must do so alike on all of them "
                "(site.generator does)"
            )


def drifted(models: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> list[str]:
    """What differs between processes that should hold copies: weights, and what optimizers remember of them; in words.

    Each tensor is summed up in two whole numbers, of which the largest and the least over all processes are compared:
    32 bytes a tensor, and one pass over what is in memory.
    """
    groups: dict[Any, dict[str, Tensor]] = {}
    for name, tensor in _named(models, optimizers) if is_distributed() else ():
        for group in _copying_groups(tensor):
            groups.setdefault(group, {})[name] = own_part(tensor)
    found: list[str] = []
    for group, tensors in groups.items():
        sums = torch.stack([checksum(tensor) for tensor in tensors.values()])
        extremes = torch.cat([sums, -sums])
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
        most, least = extremes.chunk(2)
        differs = (most != -least).any(dim=1).tolist()
        found += [name for name, is_other in zip(tensors, differs, strict=True) if is_other]
    return found


def checksum(tensor: Tensor) -> Tensor:
    """Two whole numbers that are alike for tensors that are alike bit for bit, and else hardly ever: the sum of the
    bits of all values, and their sum weighted by place.

    >>> one = torch.tensor([1.0, 2.0])
    >>> torch.equal(checksum(one), checksum(one.clone())), torch.equal(checksum(one), checksum(one.flip(0)))
    (True, False)
    """
    values = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    bits = values.contiguous().reshape(-1).view(_WHOLE[values.itemsize])
    found = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    for number, block in enumerate(torch.split(bits, _BLOCK)):
        wide = block.long()
        places = torch.arange(1, len(block) + 1, device=tensor.device) + number * _BLOCK
        found += torch.stack([wide.sum(), wide.dot(places)])
    return found


_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCK = 2**20


def _named(models: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> Iterator[tuple[str, Tensor]]:
    for name, model in models.items():
        for key, weight in inside(model).named_parameters():
            yield f"the weight {f'{name}.{key}' if name else key!r}", weight
    for name, optimizer in optimizers.items():
        for place, held in enumerate(held_by(optimizer)):
            for key, value in optimizer.state.get(held, {}).items():
                if isinstance(value, Tensor):
                    yield f"{key!r}, which the optimizer {name!r} remembers of its parameter {place},", value


def _average(tensors: Sequence[Tensor]) -> None:
    """The means over the processes, in place: in few large messages."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        flat.div_(world_size())
        for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    kinds: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in kinds.values():
        bucket: list[Tensor] = []
        for tensor in alike:
            if bucket and sum(each.nbytes for each in bucket) + tensor.nbytes > _BUCKET:
                yield bucket
                bucket = []
            bucket.append(tensor)
        yield bucket


def inside(model: nn.Module) -> nn.Module:
    """The model that ``DistributedDataParallel`` wraps, under whose names it is saved; another as it is."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _trained(model: nn.Module) -> frozenset[int]:
    return frozenset(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


def _entries(models: Iterable[nn.Module]) -> Iterator[Tensor]:
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            yield tensor.detach()


def _copying_groups(tensor: Tensor) -> list[Any]:
    """The groups of processes that hold the same of a tensor: all, for a whole one; for a sharded one those along which
    it is copied, if there are any."""
    if not isinstance(tensor, DTensor):
        return [None]
    return [
        tensor.device_mesh.get_group(i) for i, where in enumerate(tensor.placements) if isinstance(where, Replicate)
    ]


def _running_statistics(models: Iterable[nn.Module]) -> Iterator[Tensor]:
    for model in models:
        for module in model.modules():
            if isinstance(module, _NormBase) and module.training and module.running_mean is not None:
                yield module.running_mean
                if module.running_var is not None:
                    yield module.running_var
