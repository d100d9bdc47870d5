"""Who the processes are that train together, and what they settle among themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor

from weightsmith.errors import ConfigurationError, WeightsmithError

__all__ = [
    "any_process",
    "from_first",
    "gathered_objects",
    "is_distributed",
    "is_first",
    "mean",
    "on_first",
    "own_seed",
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


def on_first(work: Callable[[], T]) -> T:
    """What the first process makes of it, on every one; what it raises there is raised on every one. For whatever reads
    or writes files that they share.

    Raises:
        ConfigurationError, WeightsmithError, RuntimeError: on the others, as the first raised one of the first two, or
            anything else. (There it is what it is.)
    """
    if not is_distributed():
        return work()
    found, error = None, None
    if is_first():
        try:
            found = work()
        except Exception as raised:  # whatever it is: the others wait to hear of it
            error = raised
    found, told = from_first((found, None if error is None else _told(error)))
    if error is not None:
        raise error
    if told is not None:
        kind, message = told
        failure = kind(message)
        vars(failure)["is_of_first"] = True
        raise failure
    return found  # type: ignore[return-value]


def _told(error: Exception) -> tuple[type[Exception], str]:
    """What the others raise in place of the first process's exception, which perhaps cannot be pickled."""
    for kind in (ConfigurationError, WeightsmithError):
        if isinstance(error, kind):
            return kind, str(error)
    return RuntimeError, f"the first process raised {type(error).__name__}: {error}"


def gathered_objects(value: T) -> list[T]:
    """What every process has, in the order of their ranks, on each of them. Pickled, as by :func:`from_first`."""
    if not is_distributed():
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def total_over_processes(tensor: Tensor) -> Tensor:
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


def mean(value: Tensor) -> Tensor:
    """The mean over the processes, element by element, in a new tensor."""
    found = value.detach().clone()
    if is_distributed():
        dist.all_reduce(found)
        found /= world_size()
    return found


def own_seed(seed: int) -> int:
    """The seed of this process's random stream: of the first process the run's own, as where it is alone; of another
    one that is as good as independent of it, and of those of runs with other seeds."""
    if is_first():
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {rank()}".encode()).digest()[:4], "big")
