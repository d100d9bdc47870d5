"""Norms of units brought within bounds, in one pass over the memory of many weights, compiled by Numba (the extra
``fast``)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import carray, types
from numba.extending import intrinsic
from torch import Tensor, nn

from weightsmith_plugins.compiling import compiled

__all__ = ["bound_norms_"]


def bound_norms_(weights: Sequence[Tensor], lengths: Sequence[int], low: float, high: float, room: float) -> list[int]:
    """Scale every unit whose norm is outside to the nearest norm inside: w_u · min(max(‖w_u‖, low), high) / ‖w_u‖.

    Norms are summed in float64, so that no square leaves the range of numbers.

    Args:
        weights: of any shape, dtype and device.
        lengths: how many values a unit of each has, if units are its rows; else 0.
        low: the least norm.
        high: the largest.
        room: how far outside, relative to it, a norm may be.

    Returns:
        The places of those that are left to do otherwise: what is not float32 in rows, one after another in main
        memory; what has a unit that is zero and must become longer, or whose norm is not finite, or too far away; and
        large ones, which torch divides among its threads.
    """
    here = _here(weights, lengths)
    if not here:
        return list(range(len(weights)))
    are_all = len(here) == len(weights)
    some = weights if are_all else [weights[i] for i in here]
    addresses, sizes = np.array(list(map(Tensor.data_ptr, some))), np.array(list(map(Tensor.numel, some)))
    units = np.array(lengths if are_all else [lengths[i] for i in here])
    found = _bound_all(addresses, sizes, units, low, high, room)
    torch.autograd.graph.increment_version(some)
    if are_all and not found.any():
        return []
    done = {here[i] for i in np.flatnonzero(~found).tolist()}
    return [i for i in range(len(weights)) if i not in done]


def _here(weights: Sequence[Tensor], lengths: Sequence[int]) -> Sequence[int]:
    """The places of float32 weights in rows, one after another in main memory, of a size that one thread works on."""
    if all(lengths) and _are_ours(weights):
        return range(len(weights))
    pairs = enumerate(zip(weights, lengths, strict=True))
    return [place for place, (weight, length) in pairs if length and _are_ours([weight])]


def _are_ours(weights: Sequence[Tensor]) -> bool:
    return all(wanted.issuperset(map(ask, weights)) for ask, wanted in _OURS) and _have_one_thread(weights)


_OURS: tuple[tuple[Callable[[Tensor], object], set[object]], ...] = (
    (attrgetter("__class__"), {Tensor, nn.Parameter}),
    (attrgetter("dtype"), {torch.float32}),
    (attrgetter("is_cpu"), {True}),
    (attrgetter("layout"), {torch.strided}),
    (Tensor.is_contiguous, {True}),
)


def _have_one_thread(weights: Sequence[Tensor]) -> bool:
    """Whether torch as well has one thread work on each."""
    return torch.get_num_threads() == 1 or max(map(Tensor.numel, weights), default=0) <= _ONE_THREAD


_ONE_THREAD = 2**15


@intrinsic  # type: ignore[untyped-decorator]
def _float32_at(_: Any, address: Any) -> Any:
    """A pointer to the float32 number at an address."""
    signature = types.CPointer(types.float32)(address)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@functools.partial(compiled, fastmath={"reassoc", "contract"})  # so that several values are added at once
def _norm(row: Any) -> float:
    total = 0.0
    for place in range(len(row)):
        value = np.float64(row[place])
        total += value * value
    norm: float = np.sqrt(total)
    return norm


@compiled
def _scale(row: Any, factor: Any) -> None:
    for place in range(len(row)):
        row[place] *= factor


@compiled
def _bound(weight: Any, length: int, low: float, high: float, room: float) -> bool:
    """Whether a unit is left to do otherwise."""
    is_left = False
    for start in range(0, len(weight), length):
        row = weight[start : start + length]
        norm = _norm(row)
        wanted = min(max(norm, low), high)
        if abs(norm - wanted) <= room * wanted:
            continue
        factor = wanted / norm if norm > 0.0 else np.inf
        if _LEAST < factor < _MOST:
            _scale(row, np.float32(factor))
        else:
            is_left = True
    return is_left


_LEAST, _MOST = 1e-15, 1e15
"""Factors between which no value need leave the float range."""


@compiled
def _bound_all(addresses: Any, sizes: Any, lengths: Any, low: float, high: float, room: float) -> npt.NDArray[np.bool_]:
    found = np.zeros(len(addresses), np.bool_)
    for place in range(len(addresses)):
        weight = carray(_float32_at(addresses[place]), (sizes[place],))
        found[place] = _bound(weight, lengths[place], low, high, room)
    return found
