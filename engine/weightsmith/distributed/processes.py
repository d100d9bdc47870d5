"""Who the processes are that train together, and what they settle among themselves."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor

from weightsmith.errors import ConfigurationError

__all__ = [
    "LateMaximum",
    "any_process",
    "first_does",
    "from_first",
    "gathered_objects",
    "in_common",
    "is_distributed",
    "is_first",
    "mean_over_processes",
    "rank",
    "refuse_disagreement",
    "told_by_any",
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


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean over all processes, element by element; itself, if there are no others."""
    return total_over_processes(value.detach()) / world_size()


def refuse_disagreement(what: str, given: Any, todo: str) -> None:
    """Raise where processes were given different things that must be the same, for they would wait for each other.
    Every process must ask.

    Args:
        what: what was given, in words.
        given: what this process was given; it must compare equal.
        todo: what to do, in words.

    Raises:
        ConfigurationError: they were, on all processes.
    """
    if not is_distributed():
        return
    told = gathered_objects(given)
    for number, other in enumerate(told):
        if other != told[0]:
            raise ConfigurationError(
                f"{what} must be the same on all processes, and is {told[0]!r} on process 0 and {other!r} on process "
                f"{number}: {todo}"
            )


def told_by_any(words: str | None) -> str | None:
    """What the first of the processes that have something to tell says, on all of them."""
    if not is_distributed():
        return words
    told = [(number, said) for number, said in enumerate(gathered_objects(words)) if said is not None]
    if not told:
        return None
    return words if words is not None else f"{told[0][1]} (on process {told[0][0]})"


# -------------------------------------------------------------------- work that succeeds on all of them or on none


def in_common(work: Callable[[], T]) -> T:
    """Do something on every process, and go on only if it went well on all of them.

    Raises:
        Exception: what it raised here; else what it raised on the first process on which it did.
    """
    if not is_distributed():
        return work()
    result, error = _attempted(work)
    errors = gathered_objects(_portable(error))
    if error is not None:
        raise error
    _raise_first(errors)
    found: T = result
    return found


def first_does(work: Callable[[], T]) -> T:
    """Do something on the first process alone, and have on every one what it gives, or raises."""
    if not is_distributed():
        return work()
    result: Any
    result, error = _attempted(work) if is_first() else (None, None)
    result, theirs = from_first((result, _portable(error)))
    if error is not None:
        raise error
    _raise_first([theirs])
    found: T = result
    return found


def _attempted(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _raise_first(errors: list[Exception | None]) -> None:
    for number, error in enumerate(errors):
        if error is not None:
            error.add_note(f"raised on process {number}")
            raise error


def _portable(error: Exception | None) -> Exception | None:
    """An exception as it can be sent to another process."""
    if error is None:
        return None
    try:
        found: Exception = pickle.loads(pickle.dumps(error))
        return found
    except Exception:  # whatever it keeps that cannot be sent
        return RuntimeError(f"{type(error).__name__}: {error}")


# -------------------------------------------------------------------- a number that nobody waits for


class LateMaximum:
    """The largest of the numbers that processes have, known one turn late, so that nobody waits for it: what is handed
    in at one call of :meth:`exchange` comes back at the next.

    The message of a few bytes travels between main memories, whatever the device of the run, which then never waits
    for an accelerator to read it. Every process must make one, and exchange as often as the others.
    """

    def __init__(self) -> None:
        has_gloo = "gloo" in str(dist.get_backend())
        self._group = None if has_gloo else dist.new_group(backend="gloo")
        self._number = torch.zeros(1, dtype=torch.int64)
        self._work: Any = None

    def exchange(self, number: int) -> int:
        """Hand in a number, and have the largest that was handed in the time before; 0 at first."""
        found = self.wait()
        self._number.fill_(number)
        self._work = dist.all_reduce(self._number, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return found

    def wait(self) -> int:
        """The largest that was handed in last; 0 if none was since it was asked for."""
        if self._work is None:
            return 0
        self._work.wait()
        self._work = None
        return int(self._number)
