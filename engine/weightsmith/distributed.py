"""Several processes that train together: who they are, and what they settle among themselves.

Over ``torch.distributed`` by way of ``ignite.distributed``. With one process nothing here sends or waits.
"""

from __future__ import annotations

from typing import Any, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist

__all__ = [
    "any_process",
    "from_first",
    "gathered_objects",
    "is_distributed",
    "is_first",
    "rank",
    "total_over_processes",
    "world_size",
]

T = TypeVar("T")


def world_size() -> int:
    """How many processes train together."""
    return int(idist.get_world_size())


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(idist.get_rank())


def is_distributed() -> bool:
    """Whether there are others."""
    return world_size() > 1


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def from_first(value: T) -> T:
    """What the first process has, on every one. It is pickled between processes of one run, which trust each other."""
    if not is_distributed():
        return value
    held: list[Any] = [value]
    dist.broadcast_object_list(held, src=0)
    found: T = held[0]
    return found


def gathered_objects(value: T) -> list[T]:
    """What every process has, in the order of their ranks, on each of them. Pickled, as by :func:`from_first`."""
    if not is_distributed():
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def total_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in a new tensor; itself, if there are no others."""
    if not is_distributed():
        return tensor
    summed = tensor.to(idist.device(), copy=True)
    dist.all_reduce(summed)
    return summed.to(tensor.device)


def any_process(flag: bool) -> bool:
    """Whether it is so on any process."""
    if not is_distributed():
        return flag
    together = torch.tensor(int(flag), dtype=torch.int32, device=idist.device())
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return bool(together.item())
