"""Norms of units brought within bounds, in one pass over the memory of many weights, compiled by Numba (the extra
``fast``)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import carray, types
from numba.extending import intrinsic
from torch import Tensor, nn

from weightsmith_plugins.compiling import compiled
from weightsmith_plugins.constraints.norms import LEAST, MOST

__all__ = ["bound_norms_", "can_bound", "refuse_trouble"]


def bound_norms_(
    weights: Sequence[Tensor], by_rows: Sequence[object], low: float, high: float, room: float
) -> list[int]:
    """Scale every unit whose norm is outside to the nearest norm inside: w_u · min(max(‖w_u‖, low), high) / ‖w_u‖.

    Squares are summed in float64, where none leaves the range of numbers. What comes out depends on nothing but the
    unit's own values, not on how many threads there are.

    Args:
        weights: of any shape, dtype and device.
        by_rows: of each, whether its units are its rows.
        low: the least norm.
        high: the largest.
        room: how far outside, relative to it, a norm may be.

    Returns:
        The places of those that are left to do otherwise: what :func:`can_bound` excludes, and what has a unit that is
        zero and must become longer, or whose norm is not finite, or too far away.
    """
    can = can_bound(weights)
    are_all = all(by_rows) and all(can)
    pairs = enumerate(zip(by_rows, can, strict=True))
    here = range(len(weights)) if are_all else [place for place, both in pairs if all(both)]
    some = weights if are_all else [weights[place] for place in here]
    try:
        addresses = np.array(list(map(Tensor.data_ptr, some)), np.int64)
    except RuntimeError:  # inside a transformation of torch.func, where nothing has an address
        return list(range(len(weights)))
    sizes, units = _sizes_and_units(tuple(map(_SHAPE, some)))
    found = _on_threads(addresses, sizes, units, float(low), float(high), float(room))
    torch.autograd.graph.increment_version([some[i] for i in np.flatnonzero(found & _SCALED).tolist()])
    if are_all and not (found & _LEFT).any():
        return []
    done = {here[i] for i in np.flatnonzero(~found & _LEFT).tolist()}
    return [place for place in range(len(weights)) if place not in done]


_SHAPE = attrgetter("shape")
_SCALED, _LEFT = 1, 2


def can_bound(weights: Sequence[Tensor]) -> list[bool]:
    """Whether each is float32, its values one after another in main memory, and torch would let it be written."""
    asks = _ASKS if torch.is_grad_enabled() else _ASKS[:-1]
    if all(wanted.issuperset(map(ask, weights)) for ask, wanted in asks):
        return [True] * len(weights)
    answers = [map(wanted.__contains__, map(ask, weights)) for ask, wanted in asks]
    return [all(row) for row in zip(*answers, strict=True)]


_ASKS: tuple[tuple[Callable[[Tensor], object], set[object]], ...] = (
    (type, {Tensor, nn.Parameter}),
    (attrgetter("dtype"), {torch.float32}),
    (attrgetter("is_cpu"), {True}),
    (attrgetter("layout"), {torch.strided}),
    (Tensor.is_contiguous, {True}),
    (Tensor.is_inference, {False}),
    (attrgetter("requires_grad"), {False}),
)


@functools.lru_cache(maxsize=256)
def _sizes_and_units(shapes: tuple[torch.Size, ...]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many values each has, and how many units: a vector is one."""
    sizes = [shape.numel() for shape in shapes]
    return np.array(sizes, np.int64), np.array([shape[0] if len(shape) > 1 else 1 for shape in shapes], np.int64)


def _on_threads(addresses: Any, sizes: Any, units: Any, *bounds: float) -> npt.NDArray[np.uint8]:
    """Divided among as many threads as torch has, of every weight a share of its units for each."""
    threads = torch.get_num_threads()
    if threads == 1 or sizes.sum() <= _ONE_THREAD:
        return _bound_all(addresses, sizes, units, *bounds, 0, 1)  # type: ignore[no-any-return]

    def share(number: int) -> Any:
        return _bound_all(addresses, sizes, units, *bounds, number, threads)

    with ThreadPoolExecutor(threads) as pool:
        shares: npt.NDArray[np.uint8] = functools.reduce(np.bitwise_or, pool.map(share, range(threads)))
    return shares


_ONE_THREAD = 2**19
"""Values, up to which starting threads costs more than they save."""


def refuse_trouble() -> None:
    """Raise what Numba raises, if it fails."""
    memory = np.array([3, 4, 0, 0], np.float32)
    address, size = (np.array([number], np.int64) for number in (memory.__array_interface__["data"][0], memory.size))
    found = _bound_all(address, size, np.array([2], np.int64), 0.0, 1.0, 0.0, 0, 1)
    if found[0] != _SCALED or not np.allclose(memory, [0.6, 0.8, 0, 0]):
        raise ArithmeticError(f"(3, 4) was to be scaled to (0.6, 0.8), and became {memory[:2]}")


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
def _bound(values: Any, length: int, low: float, high: float, room: float) -> int:
    """What became of units of so many values, one after another."""
    found = 0
    for start in range(0, len(values), length):
        row = values[start : start + length]
        norm = _norm(row)
        wanted = min(max(norm, low), high)
        if abs(norm - wanted) <= room * wanted:
            continue
        factor = wanted / norm if norm > 0.0 else np.inf
        if LEAST < factor < MOST:
            _scale(row, np.float32(factor))
            found |= _SCALED
        else:
            found |= _LEFT
    return found


@compiled
def _bound_all(
    addresses: Any, sizes: Any, units: Any, low: float, high: float, room: float, share: int, shares: int
) -> npt.NDArray[np.uint8]:
    """What became of each weight: of its units, of those of one share."""
    found = np.zeros(len(addresses), np.uint8)
    for place in range(len(addresses)):
        if sizes[place] == 0:
            continue
        if addresses[place] == 0:  # what has no memory
            found[place] = _LEFT
            continue
        length = sizes[place] // units[place]
        first, last = units[place] * share // shares, units[place] * (share + 1) // shares
        values = carray(_float32_at(addresses[place] + 4 * first * length), ((last - first) * length,))
        found[place] = _bound(values, length, low, high, room)
    return found
