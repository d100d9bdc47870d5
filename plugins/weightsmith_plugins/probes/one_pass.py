"""What a distribution tells of a tensor's values, in one pass over them, compiled by Numba (the extra ``fast``)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weightsmith_plugins.native.compiling import compiled
from weightsmith_plugins.native.pointers import fetch
from weightsmith_plugins.probes.buckets import BITS, NEAR_ZERO, Summary, lookup

__all__ = ["in_one_pass"]


def in_one_pass(flat: Tensor) -> Summary:
    """As :func:`~weightsmith_plugins.probes.distributions.in_several_passes`, of float32 or float64 numbers in main
    memory."""
    table, *constants = _constants(flat.dtype)
    values, places = flat.numpy(), np.zeros(2 * table.buckets + 1, dtype=np.int64)
    of_a_block = np.empty(min(len(values), _BLOCK), np.uint16)
    bits, address = values.view(table.entries.dtype), flat.data_ptr()
    found = _look(values, bits, address, table.entries, *constants, of_a_block, places)
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
    masks = np.array([table.others, bits.magnitude, bits.exponent], dtype=table.entries.dtype)
    sign = 8 * table.entries.itemsize - 1
    ordering = np.array([sign, bits.magnitude], dtype=f"i{table.entries.itemsize}")
    return table, *masks, ordering, NEAR_ZERO.start, 2 * table.buckets - NEAR_ZERO.stop


@functools.partial(compiled, fastmath={"reassoc", "contract"})  # so that several values are added at once
def _sums(values: npt.NDArray[Any]) -> tuple[float, float]:
    total = squares = 0.0
    for place in range(len(values)):  # over places: LLVM makes no vectors of a loop over values
        accurate = np.float64(values[place])
        total += accurate
        squares += accurate * accurate
    return total, squares


@compiled
def _ends(values: npt.NDArray[Any], ordering: npt.NDArray[Any]) -> tuple[float, float]:
    """The least and the largest, of which none is NaN: by their bits as signed integers, which are in the order of the
    numbers once those of negative ones are turned over, but for the sign. LLVM makes no vectors of floats' least."""
    shift, magnitude = ordering
    bits, as_narrow = values.view(ordering.dtype), ordering.dtype.type  # else Numba makes 64 bits of 32
    least = most = as_narrow(bits[0] ^ ((bits[0] >> shift) & magnitude))
    for place in range(len(bits)):
        turned = as_narrow(bits[place] ^ ((bits[place] >> shift) & magnitude))
        least, most = min(least, turned), max(most, turned)
    ends = np.empty(2, ordering.dtype)
    ends[0], ends[1] = least ^ ((least >> shift) & magnitude), most ^ ((most >> shift) & magnitude)
    found = ends.view(values.dtype)
    return found[0], found[1]


@compiled
def _count(bits: Any, following: int, entries: Any, others: Any, found: Any, places: Any) -> None:
    """See :class:`~weightsmith_plugins.probes.buckets.Lookup`. The place of each is found first, in vectors. While
    they are counted, the next block comes from memory, from the address ``following``."""
    rest = entries.dtype.type((1 << others) - 1)  # unsigned, as places then are: Numba asks whether others are below 0
    for place in range(len(bits)):
        number = bits[place]
        found[place] = (entries[number >> others] + (number & rest)) >> others
    together = len(bits) // _LINE * _LINE
    for first in range(0, together, _LINE):
        fetch(following + bits.itemsize * first)
        for place in range(first, first + _LINE):
            places[found[place]] += 1
    for place in range(together, len(bits)):
        places[found[place]] += 1


_LINE = 16
"""Numbers, of float32 64 bytes: what comes from memory at once."""


@compiled
def _pairs(places: Any, first: int, second: int) -> int:
    """What is counted at two places and those that follow them: near zero."""
    found: int = places[first] + places[first + 1] + places[second] + places[second + 1]
    return found


@compiled
def _zeros_and_subnormals(bits: Any, magnitude: Any, exponent: Any) -> tuple[Any, Any]:
    """Of a block."""
    zeros = tiny = np.int32(0)
    for place in range(len(bits)):
        number = bits[place]
        zeros = np.int32(zeros + np.int32((number & magnitude) == 0))
        tiny = np.int32(tiny + np.int32((number & exponent) == 0))
    return zeros, tiny - zeros


@compiled
def _look(
    values: Any,
    bits: Any,
    address: int,
    entries: Any,
    others: Any,
    magnitude: Any,
    exponent: Any,
    ordering: Any,
    positive: int,
    negative: int,
    of_a_block: Any,
    places: Any,
) -> tuple[float, float, float, float, int, int]:
    """Count what falls into each place; and find the least and the largest finite value, their sum, that of their
    squares, and how many are zero and subnormal; block by block, while they are in the processor's cache. Were the
    places made here, it would take half as long again. ``address`` is where the values
    begin, and ``of_a_block`` has room for the places of a block."""
    least, most, total, squares, zeros, subnormal = np.inf, -np.inf, 0.0, 0.0, 0, 0
    for start in range(0, len(values), _BLOCK):
        block, numbers = values[start : start + _BLOCK], bits[start : start + _BLOCK]
        near, nonfinite = _pairs(places, positive, negative), places[-1]
        sums = _sums(block)  # first, as it waits least for what comes from memory
        following = address + bits.itemsize * (start + len(block))
        _count(numbers, following, entries, others, of_a_block, places)
        if _pairs(places, positive, negative) > near:
            some = _zeros_and_subnormals(numbers, magnitude, exponent)
            zeros += some[0]
            subnormal += some[1]
        if places[-1] > nonfinite:
            block = block[np.isfinite(block)]
            sums = _sums(block)
        if len(block):
            ends = _ends(block, ordering)
            total += sums[0]
            squares += sums[1]
            least, most = min(least, ends[0]), max(most, ends[1])
    return least, most, total, squares, zeros, subnormal


_BLOCK = 2**12
