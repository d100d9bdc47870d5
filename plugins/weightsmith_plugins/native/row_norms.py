"""Norms of units that are rows, by their addresses, for passes that Numba compiles (the extra ``fast``).

Four short rows are summed at a time, so that no addition waits for the one before. Of longer ones, what is read in four
places at a time comes from memory sooner, four rows or the quarters of each; but not on AMD's Zen, which reads one
place twice as fast as four. Where fewer rows are left, the last stands for those that are missing: each is summed
alike, wherever it stands.

Squares are found and added in float64, in which none leaves the range of numbers; or in float32, which is faster, up to
1,024 of them, and these sums in float64: then they may leave the range together (of torch's, those of all), but not the
square of a unit's only value. Read in one place, what is to be added in float32 is added in float64, which is faster
there, and becomes float32 then, so that it leaves the range as it does elsewhere.

As of :mod:`weightsmith_plugins.native.pointers`, Numba does not see when these functions change.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite.binding import get_host_cpu_name

from weightsmith_plugins.native.compiling import compiled
from weightsmith_plugins.native.pointers import values_at

__all__ = ["IN_FLOAT32", "IN_FLOAT64", "MOST_UNITS", "find_norms", "find_norms_of_both", "sum_of_squares", "units_of"]

_kernel = functools.partial(compiled, error_model="numpy")
_reordered = functools.partial(_kernel, fastmath={"reassoc", "contract"})  # so that several values are added at once

IN_FLOAT32, IN_FLOAT64 = np.empty(0, np.float32), np.empty(0, np.float64)
"""What squares are added in: ``precision``."""

MOST_UNITS = 2**6
"""Room for the norms of the units that are looked at together."""

_READS_ONE_PLACE = get_host_cpu_name().startswith("znver")
"""Whether the processor is fastest so: Numba keeps what it compiled for each kind of processor."""

_FEW, _LONG = (2**11, 2**8) if _READS_ONE_PLACE else (2**13, 2**12)
"""Values that stay in the cache until they are written; and values of a row, from which on it is read by itself."""


@_kernel
def units_of(size: int, units: int) -> tuple[int, int]:
    """How many values a unit of a weight has, and how many units are looked at, and then written, together."""
    length = size // max(1, units)
    return length, min(MOST_UNITS, max(1 if length >= _LONG else 4, _FEW // max(1, length)))


@_kernel
def find_norms(address: int, length: int, start: int, end: int, norms: Any, precision: Any) -> None:
    """Those of the units from one up to another, of a tensor that begins at an address."""
    row = 4 * length
    if length == 1:
        values = values_at(address, start, end)
        for unit in range(end - start):
            norms[unit] = abs(values[unit])
    elif length >= _LONG:
        for unit in range(start, end):
            norms[unit - start] = np.sqrt(sum_of_squares(address + unit * row, length, precision))
    else:
        quarter, last = (end - start + 3) // 4, end - 1
        step, apart = (4, 1) if _READS_ONE_PLACE else (1, quarter)
        for first in range(start, start + step * quarter, step):
            second, third, fourth = min(first + apart, last), min(first + 2 * apart, last), min(first + 3 * apart, last)
            addresses = address + first * row, address + second * row, address + third * row, address + fourth * row
            sums = _sums_of_squares(*addresses, length, precision)
            norms[first - start], norms[second - start] = np.sqrt(sums[0]), np.sqrt(sums[1])
            norms[third - start], norms[fourth - start] = np.sqrt(sums[2]), np.sqrt(sums[3])


@_kernel
def find_norms_of_both(
    address: int, other: int, length: int, start: int, end: int, norms: Any, other_norms: Any, precision: Any
) -> None:
    """Those of two tensors' units."""
    if length == 1 or length >= _LONG:
        find_norms(address, length, start, end, norms, precision)
        find_norms(other, length, start, end, other_norms, precision)
        return
    row, half, last = 4 * length, (end - start + 1) // 2, end - 1
    for first in range(start, start + half):
        second = min(first + half, last)
        addresses = address + first * row, address + second * row, other + first * row, other + second * row
        sums = _sums_of_squares(*addresses, length, precision)
        norms[first - start], norms[second - start] = np.sqrt(sums[0]), np.sqrt(sums[1])
        other_norms[first - start], other_norms[second - start] = np.sqrt(sums[2]), np.sqrt(sums[3])


@_kernel
def sum_of_squares(address: int, length: int, precision: Any) -> float:
    """That of a row, in one place; or by its quarters and what is left."""
    if _READS_ONE_PLACE:
        in_one_place: float = _sum_in_one_place(address, length, precision)
        return in_one_place
    quarter, as_precise = length // 4, precision.dtype.type
    addresses = address, address + 4 * quarter, address + 8 * quarter, address + 12 * quarter
    sums = _sums_of_squares(*addresses, quarter, precision)
    total: float = (sums[0] + sums[1]) + (sums[2] + sums[3])
    for number in values_at(address, 4 * quarter, length):
        value = as_precise(number)
        total += np.float64(value * value)
    return total


@_kernel
def _sum_in_one_place(address: int, length: int, precision: Any) -> float:
    """That of the squares of a row."""
    total = 0.0
    for start in range(0, length, _AT_ONCE):
        total += _block_in_one_place(address + 4 * start, min(_AT_ONCE, length - start), precision)
    return total


@_reordered
def _block_in_one_place(address: int, few: int, precision: Any) -> float:
    """That of up to ``_AT_ONCE`` values. AMD's Zen reads the 32 bytes at once that a vector of float64 takes faster
    than the 64 of one of float32."""
    row, as_precise = values_at(address, 0, few), precision.dtype.type
    total = 0.0
    for place in range(few):
        value = as_precise(row[place])
        total += np.float64(value * value)
    return np.float64(as_precise(total))


@_kernel
def _sums_of_squares(
    first: int, second: int, third: int, fourth: int, length: int, precision: Any
) -> tuple[float, float, float, float]:
    """Those of four rows of one length."""
    a = b = c = d = 0.0
    for start in range(0, length, _AT_ONCE):
        few, skipped = min(_AT_ONCE, length - start), 4 * start
        sums = _block_in_four_places(
            first + skipped, second + skipped, third + skipped, fourth + skipped, few, precision
        )
        a += sums[0]
        b += sums[1]
        c += sums[2]
        d += sums[3]
    return a, b, c, d


_AT_ONCE = 2**10
"""Squares that are added in float32 before they go on in float64."""


@_reordered
def _block_in_four_places(
    first: int, second: int, third: int, fourth: int, few: int, precision: Any
) -> tuple[float, float, float, float]:
    """As :func:`_sums_of_squares`, of up to ``_AT_ONCE`` values. It takes addresses, as a call costs more than its work
    where it takes arrays."""
    rows, more = (
        (values_at(first, 0, few), values_at(second, 0, few)),
        (values_at(third, 0, few), values_at(fourth, 0, few)),
    )
    as_precise = precision.dtype.type
    a = b = c = d = as_precise(0.0)
    for place in range(few):
        of_first, of_second = as_precise(rows[0][place]), as_precise(rows[1][place])
        of_third, of_fourth = as_precise(more[0][place]), as_precise(more[1][place])
        a += of_first * of_first
        b += of_second * of_second
        c += of_third * of_third
        d += of_fourth * of_fourth
    return np.float64(a), np.float64(b), np.float64(c), np.float64(d)
