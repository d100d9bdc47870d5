"""Norms of units that are rows, by their addresses, for passes that Numba compiles (the extra ``fast``).

From memory four rows that are read beside each other come in four fifths of the time that they take one after another.
Where fewer are left, the last stands for those that are missing, so that each is summed alike wherever it stands.

As of :mod:`weightsmith_plugins.native.pointers`, Numba does not see when these functions change.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from weightsmith_plugins.native.compiling import compiled
from weightsmith_plugins.native.pointers import row_at

__all__ = ["MOST_UNITS", "find_norms", "find_norms_of_both", "sum_of_squares", "units_of"]

_kernel = functools.partial(compiled, error_model="numpy")
_in_vectors = functools.partial(_kernel, fastmath={"reassoc", "contract"})
"""So that several values are added at once."""

MOST_UNITS, _FEW = 2**6, 2**13
"""Units, and values, that stay in the cache from one time to the next."""


@_kernel
def units_of(size: int, units: int) -> tuple[int, int]:
    """How many values a unit of a weight has, and how many units stay in the cache while they are read and written."""
    length = size // max(1, units)
    return length, min(MOST_UNITS, max(4, _FEW // max(1, length)))


@_kernel
def find_norms(address: int, length: int, start: int, end: int, norms: Any, are_exact: bool) -> None:
    """Those of the units from one up to another; with squares in float64, where none leaves the range of numbers, or
    as :func:`_norms`."""
    quarter, last = (end - start + 3) // 4, end - 1
    for first in range(start, start + quarter):
        second, third, fourth = (
            min(first + quarter, last),
            min(first + 2 * quarter, last),
            min(first + 3 * quarter, last),
        )
        rows = row_at(address, length, first), row_at(address, length, second)
        others = row_at(address, length, third), row_at(address, length, fourth)
        found = _exact_norms(*rows, *others) if are_exact else _norms(*rows, *others)
        norms[first - start], norms[second - start], norms[third - start], norms[fourth - start] = found


@_kernel
def find_norms_of_both(
    address: int, other: int, length: int, start: int, end: int, norms: Any, other_norms: Any
) -> None:
    """As :func:`_norms`, of two tensors' units."""
    half, last = (end - start + 1) // 2, end - 1
    for first in range(start, start + half):
        second = min(first + half, last)
        rows = row_at(address, length, first), row_at(address, length, second)
        others = row_at(other, length, first), row_at(other, length, second)
        found = _norms(*rows, *others)
        norms[first - start], norms[second - start] = found[0], found[1]
        other_norms[first - start], other_norms[second - start] = found[2], found[3]


@_kernel
def sum_of_squares(row: Any) -> float:
    """As those of :func:`_norms`."""
    total, quarter = 0.0, len(row) // 4
    for start in range(0, quarter, _AT_ONCE):
        end = min(quarter, start + _AT_ONCE)
        first, second = row[start:end], row[quarter + start : quarter + end]
        third, fourth = row[2 * quarter + start : 2 * quarter + end], row[3 * quarter + start : 3 * quarter + end]
        sums = _sums_of_squares(first, second, third, fourth)
        total += (sums[0] + sums[1]) + (sums[2] + sums[3])
    for place in range(4 * quarter, len(row)):
        total += np.float64(row[place] * row[place])
    return total


@_in_vectors
def _exact_norms(first: Any, second: Any, third: Any, fourth: Any) -> tuple[float, float, float, float]:
    a = b = c = d = 0.0
    for place in range(len(first)):
        of_first, of_second = np.float64(first[place]), np.float64(second[place])
        of_third, of_fourth = np.float64(third[place]), np.float64(fourth[place])
        a += of_first * of_first
        b += of_second * of_second
        c += of_third * of_third
        d += of_fourth * of_fourth
    return np.sqrt(a), np.sqrt(b), np.sqrt(c), np.sqrt(d)


@_kernel
def _norms(first: Any, second: Any, third: Any, fourth: Any) -> tuple[float, float, float, float]:
    """With squares in float32, of which up to 1,024 are added before these sums are in float64: together they may leave
    the range of numbers (of torch's, those of all), but not that of a single value."""
    if len(first) == 1:
        return _size(first), _size(second), _size(third), _size(fourth)
    a = b = c = d = 0.0
    for start in range(0, len(first), _AT_ONCE):
        end = start + _AT_ONCE
        sums = _sums_of_squares(first[start:end], second[start:end], third[start:end], fourth[start:end])
        a += sums[0]
        b += sums[1]
        c += sums[2]
        d += sums[3]
    return np.sqrt(a), np.sqrt(b), np.sqrt(c), np.sqrt(d)


_AT_ONCE = 2**10


@_kernel
def _size(row: Any) -> float:
    found: float = np.float64(abs(row[0]))
    return found


@_in_vectors
def _sums_of_squares(first: Any, second: Any, third: Any, fourth: Any) -> tuple[float, float, float, float]:
    a = b = c = d = np.float32(0.0)
    for place in range(len(first)):
        a += first[place] * first[place]
        b += second[place] * second[place]
        c += third[place] * third[place]
        d += fourth[place] * fourth[place]
    return np.float64(a), np.float64(b), np.float64(c), np.float64(d)
