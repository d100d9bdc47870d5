"""What a distribution tells of a tensor's values, in one pass over them, compiled by Numba (the extra ``fast``)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import carray
from torch import Tensor

from weightsmith_plugins.native.compiling import compiled
from weightsmith_plugins.native.pointers import fetch, room_for
from weightsmith_plugins.probes.buckets import BITS, NEAR_ZERO, Summary, lookup

__all__ = ["in_one_pass"]


def in_one_pass(flat: Tensor) -> Summary:
    """As :func:`~weightsmith_plugins.probes.distributions.in_several_passes`, of float32 or float64 numbers in main
    memory."""
    table, *constants = _constants(flat.dtype)
    values, places = flat.numpy(), np.zeros(2 * table.buckets + 1, dtype=np.int64)
    unsigned, signed = (values.view(f"{kind}{flat.element_size()}") for kind in "ui")
    found = _look(values, unsigned, signed, flat.data_ptr(), table.entries, *constants, places)
    return Summary(_folded(places), *found)


@compiled
def _folded(places: Any) -> Any:
    """As :meth:`~weightsmith_plugins.probes.buckets.Lookup.folded`."""
    buckets = len(places) // 2
    counts = np.empty(buckets + 1, np.int64)
    for bucket in range(buckets):
        counts[bucket] = places[bucket] + places[2 * buckets - 1 - bucket]
    counts[buckets] = places[2 * buckets]
    return counts


@functools.cache
def _constants(dtype: torch.dtype) -> tuple[Any, ...]:
    table, bits = lookup(dtype), BITS[dtype]
    masks = np.array([bits.magnitude, bits.exponent], dtype=table.entries.dtype)
    return table, *masks, NEAR_ZERO.start, 2 * table.buckets - NEAR_ZERO.stop


@functools.partial(compiled, fastmath={"reassoc", "contract"})  # so that several values are added at once
def _sums(values: npt.NDArray[Any]) -> tuple[float, float]:
    total = squares = 0.0
    for place in range(len(values)):  # over places: LLVM makes no vectors of a loop over values
        accurate = np.float64(values[place])
        total += accurate
        squares += accurate * accurate
    return total, squares


@compiled
def _ends(values: npt.NDArray[Any], unsigned: Any, signed: Any) -> tuple[float, float]:
    """The least and the largest, of which none is NaN, by their bits: as signed integers those of positive numbers are
    the largest, in the numbers' order; as unsigned ones those of negative numbers, against it. Where all are of one
    sign, the end that is nearer to zero takes another look. LLVM makes no vectors of floats' least."""
    as_unsigned, as_signed = unsigned.dtype.type, signed.dtype.type  # else Numba makes 64 bits of 32
    lowest, highest = unsigned[0], signed[0]
    for place in range(len(unsigned)):
        lowest, highest = as_unsigned(max(lowest, unsigned[place])), as_signed(max(highest, signed[place]))
    ends = np.empty(2, unsigned.dtype)
    ends[0], ends[1] = lowest, as_unsigned(highest)
    are_all_negative, are_all_positive = highest < 0, as_signed(lowest) >= 0
    if are_all_negative or are_all_positive:
        ends[int(are_all_negative)] = _nearest_to_zero(unsigned)
    found = ends.view(values.dtype)
    return found[0], found[1]


@compiled
def _nearest_to_zero(unsigned: Any) -> Any:
    """Of numbers of one sign."""
    as_unsigned, nearest = unsigned.dtype.type, unsigned[0]
    for place in range(len(unsigned)):
        nearest = as_unsigned(min(nearest, unsigned[place]))
    return nearest


@compiled
def _count(unsigned: Any, following: int, entries: Any, places: Any) -> None:
    """Of a block of at most ``_BLOCK`` numbers: see :class:`~weightsmith_plugins.probes.buckets.Lookup`. Their places
    are found first, in vectors, which LLVM makes as ``found`` overlaps nothing and the shift is a constant. While they
    are counted, the next block comes from memory, from the address ``following``."""
    others, as_unsigned = np.iinfo(unsigned.dtype).bits - 16, unsigned.dtype.type
    rest = as_unsigned((1 << others) - 1)  # unsigned, as places then are: Numba asks whether others are below 0
    found = carray(room_for(_BLOCK), (_BLOCK,))
    for place in range(len(unsigned)):
        number = unsigned[place]
        found[place] = as_unsigned(entries[as_unsigned(number >> others)] + as_unsigned(number & rest)) >> others
    together = len(unsigned) // _LINE * _LINE
    for first in range(0, together, _LINE):
        fetch(following + unsigned.itemsize * first)
        if unsigned.itemsize > 4:
            fetch(following + unsigned.itemsize * first + 64)
        for place in range(first, first + _LINE):
            places[found[place]] += 1
    for place in range(together, len(unsigned)):
        places[found[place]] += 1


_BLOCK = 2**12
"""Numbers that stay, with their places, in the processor's nearest cache."""
_LINE = 16
"""Numbers: of float32 64 bytes, which come from memory at once, of float64 twice that."""


@compiled
def _pairs(places: Any, first: int, second: int) -> int:
    """What is counted at two places and those that follow them: near zero."""
    found: int = places[first] + places[first + 1] + places[second] + places[second + 1]
    return found


@compiled
def _zeros_and_subnormals(unsigned: Any, magnitude: Any, exponent: Any) -> tuple[Any, Any]:
    """Of a block."""
    zeros = tiny = np.int32(0)
    for place in range(len(unsigned)):
        number = unsigned[place]
        zeros = np.int32(zeros + np.int32((number & magnitude) == 0))
        tiny = np.int32(tiny + np.int32((number & exponent) == 0))
    return zeros, tiny - zeros


@compiled
def _look(
    values: Any,
    unsigned: Any,
    signed: Any,
    address: int,
    entries: Any,
    magnitude: Any,
    exponent: Any,
    positive: int,
    negative: int,
    places: Any,
) -> tuple[float, float, float, float, int, int]:
    """Count what falls into each place; and find the least and the largest finite value, their sum, that of their
    squares, and how many are zero and subnormal; block by block, while they are in the processor's cache. Were the
    places made here, it would take half as long again. ``unsigned`` and ``signed`` are the bits of the values, which
    begin at ``address``."""
    least, most, total, squares, zeros, subnormal = np.inf, -np.inf, 0.0, 0.0, 0, 0
    for start in range(0, len(values), _BLOCK):
        block, numbers = values[start : start + _BLOCK], unsigned[start : start + _BLOCK]
        near, nonfinite = _pairs(places, positive, negative), places[-1]
        sums = _sums(block)  # first, as it waits least for what comes from memory
        following = address + unsigned.itemsize * (start + len(block))
        _count(numbers, following, entries, places)
        if _pairs(places, positive, negative) > near:
            some = _zeros_and_subnormals(numbers, magnitude, exponent)
            zeros += some[0]
            subnormal += some[1]
        if places[-1] > nonfinite:
            block = block[np.isfinite(block)]
            sums = _sums(block)
        if len(block):
            ends = _ends(block, block.view(unsigned.dtype), block.view(signed.dtype))
            total += sums[0]
            squares += sums[1]
            least, most = min(least, ends[0]), max(most, ends[1])
    return least, most, total, squares, zeros, subnormal
