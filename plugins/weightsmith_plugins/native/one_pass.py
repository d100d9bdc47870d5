"""Passes over the memory of many weights at once, compiled by Numba (the extra ``fast``).

Constraints, penalties and gradient editors do the same by torch's functions where one of the weights is not for this.

All are in one file but for what they share, and for the projections onto sums, which share nothing with them: Numba
compiles again what has changed in a function's own file, but not in one whose functions it calls.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weightsmith_plugins.native.addresses import LEFT, WRITTEN, memory_of, on_threads, pass_over, pass_that_tells
from weightsmith_plugins.native.compiling import compiled
from weightsmith_plugins.native.pointers import row_at, share_of, values_at
from weightsmith_plugins.native.row_norms import (
    IN_FLOAT32,
    IN_FLOAT64,
    MOST_UNITS,
    find_norms,
    find_norms_of_both,
    sum_of_squares,
    units_of,
)

__all__ = [
    "bound_norms_",
    "charged_",
    "charged_by_rows_",
    "clamped_",
    "clipped_",
    "clipped_adaptively_",
    "norm_of",
    "refuse_trouble",
]


_kernel = functools.partial(compiled, error_model="numpy")
"""Dividing by 0 gives what it gives torch. Options stand in this file, as Numba does not look at others."""


def _is_too_large(number: float) -> bool:
    """Whether it is finite but beyond the range of float32, which torch refuses."""
    return _LARGEST < abs(number) < math.inf


_LARGEST = torch.finfo(torch.float32).max


# -------------------------------------------------------------------- constraints


def clamped_(weights: Sequence[Tensor], low: float, high: float) -> Sequence[int]:
    """min(max(w, low), high) of every value; NaN stays.

    Args:
        weights: of any shape, dtype and device.
        low: the least value; not NaN.
        high: the largest, no less.

    Returns:
        The places of those that are left to torch: what
        :func:`~weightsmith_plugins.native.addresses.memory_of` leaves out.
    """
    if _is_too_large(low) or _is_too_large(high):
        return range(len(weights))
    return pass_over(_clamp_all, weights, settings=[float(low), float(high)])


@_kernel
def _clamp_all(table: Any, low: float, high: float, share: int, shares: int) -> None:
    sizes, addresses = table[0], table[2]
    for place in range(len(addresses)):
        first, last = share_of(sizes[place], share, shares)
        _clamp(values_at(addresses[place], first, last), np.float32(low), np.float32(high))


@_kernel
def _clamp(values: Any, low: Any, high: Any) -> None:
    for place in range(len(values)):
        value = values[place]
        value = low if value < low else value
        values[place] = high if value > high else value


def bound_norms_(
    weights: Sequence[Tensor], low: float, high: float, room: float, reach: float, *, by_rows: Sequence[object]
) -> Sequence[int]:
    """Scale every unit whose norm is outside to the nearest norm inside: w_u · min(max(‖w_u‖, low), high) / ‖w_u‖.

    Squares are summed in float64, where none leaves the range of numbers. What comes out depends on nothing but the
    unit's own values, not on how many threads there are.

    Args:
        weights: of any shape, dtype and device.
        low: the least norm.
        high: the largest.
        room: how far outside, relative to it, a norm may be.
        reach: the largest factor, and 1 over the least.
        by_rows: of each, whether its units are its rows.

    Returns:
        The places of those that are left to torch: what
        :func:`~weightsmith_plugins.native.addresses.memory_of` leaves out; and those that have a unit that is zero and
        must become longer, or whose norm is not finite, or too far away.
    """
    settings = [float(low), float(high), float(room), float(reach)]
    return pass_that_tells(_bound_all, weights, settings=settings, by_rows=by_rows)


@_kernel
def _bound_all(
    table: Any, low: float, high: float, room: float, reach: float, share: int, shares: int
) -> npt.NDArray[np.uint8]:
    """What became of each weight: of its units, of those of one share. Of a few units first all factors are found, so
    that no sum waits for the root of another. Where many of them are short and scaled, those that stay are scaled by 1,
    which is faster than to ask; not where the processor takes subnormal numbers for 0, as these would not stay."""
    sizes, units, addresses = table[0], table[1], table[2]
    found, norms, factors = np.zeros(len(addresses), np.uint8), np.empty(MOST_UNITS), np.empty(MOST_UNITS)
    are_ones_harmless = np.float32(room * 0.0 + _SUBNORMAL) != 0
    for place in range(len(addresses)):
        length, few = units_of(sizes[place], units[place])
        first, last = share_of(units[place] if length else 0, share, shares)
        for start in range(first, last, few):
            end = min(last, start + few)
            find_norms(addresses[place], length, start, end, norms, IN_FLOAT64)
            became, scaled = _find_factors(norms[: end - start], factors, low, high, room, reach)
            found[place] |= became
            are_all_scaled = are_ones_harmless and length < _SHORT and 4 * scaled > end - start
            for unit in range(start, end if scaled else start):
                if are_all_scaled or factors[unit - start] != 1:
                    _scale(row_at(addresses[place], length, unit), np.float32(factors[unit - start]))
    return found


_SHORT = 2**8
"""Values of a unit, below which a branch that the processor cannot foresee costs more than to scale them."""
_SUBNORMAL = 1e-42
"""In float32."""


@_kernel
def _find_factors(norms: Any, factors: Any, low: float, high: float, room: float, reach: float) -> tuple[int, int]:
    """What units of these norms are to be scaled by, 1 if they stay as they are; what becomes of any of them; and how
    many are scaled."""
    became = scaled = 0
    for unit in range(len(norms)):
        size = norms[unit]
        wanted = min(max(size, low), high)
        factors[unit] = 1.0
        if not abs(size - wanted) <= room * wanted:
            factor = wanted / size
            if 1 / reach < factor < reach:
                factors[unit], became, scaled = factor, became | WRITTEN, scaled + 1
            else:
                became |= LEFT
    return became, scaled


# -------------------------------------------------------------------- penalties


def charged_(
    gradients: Sequence[Tensor], weights: Sequence[Tensor], signs: float, values: float | None = None
) -> Sequence[int]:
    """g ← g + signs · sign(w), and then g ← g + values · w, each rounded once where the processor can: the bits that
    torch gives where it uses what the processor can.

    Args:
        gradients: written in place.
        weights: of the same shapes.
        signs: the factor of signs.
        values: that of values; ``None`` for no such term.

    Returns:
        The places of those that are left to torch: what
        :func:`~weightsmith_plugins.native.addresses.memory_of` leaves out.
    """
    if _is_too_large(signs) or _is_too_large(values or 0.0):
        return range(len(gradients))
    return pass_over(_charge_all, gradients, weights, settings=[float(signs), float(values or 0.0), values is not None])


@_kernel
def _charge_all(table: Any, signs: float, values: float, with_values: bool, share: int, shares: int) -> None:
    sizes, gradients, weights = table[0], table[2], table[3]
    for place in range(len(gradients)):
        first, last = share_of(sizes[place], share, shares)
        gradient, weight = values_at(gradients[place], first, last), values_at(weights[place], first, last)
        if with_values:
            _add_both(gradient, weight, np.float32(signs), np.float32(values))
        else:
            _add_signs(gradient, weight, np.float32(signs))


@_kernel
def _add_signs(gradient: Any, weight: Any, factor: Any) -> None:
    for place in range(len(gradient)):
        gradient[place] += _signed(factor, weight[place])


@functools.partial(_kernel, fastmath={"contract"})  # so that product and sum are rounded once
def _add_both(gradient: Any, weight: Any, of_signs: Any, of_values: Any) -> None:
    for place in range(len(gradient)):
        gradient[place] = (gradient[place] + _signed(of_signs, weight[place])) + of_values * weight[place]


@_kernel
def _signed(factor: Any, number: Any) -> Any:
    """factor · sign(number), without the product."""
    return factor if number > 0 else -factor if number < 0 else factor * np.float32(0)


def charged_by_rows_(
    gradients: Sequence[Tensor], weights: Sequence[Tensor], rate: float, *, by_rows: Sequence[object]
) -> Sequence[int]:
    """g_u ← g_u + rate · √size(u) · w_u / ‖w_u‖ for every row u (a vector is one) that is not zero.

    Args:
        gradients: written in place.
        weights: of the same shapes.
        rate: the factor.
        by_rows: of each, whether its units are its rows.

    Returns:
        As :func:`charged_`.
    """
    return pass_over(_charge_rows, gradients, weights, settings=[float(rate)], by_rows=by_rows)


@_kernel
def _charge_rows(table: Any, rate: float, share: int, shares: int) -> None:
    sizes, units, gradients, weights = table[0], table[1], table[2], table[3]
    norms = np.empty(MOST_UNITS)
    for place in range(len(gradients)):
        length, few = units_of(sizes[place], units[place])
        factor = np.float32(rate * np.sqrt(length))
        first, last = share_of(units[place], share, shares)
        for start in range(first, last, few):
            end = min(last, start + few)
            find_norms(weights[place], length, start, end, norms, IN_FLOAT32)
            for unit in range(start, end):
                size = np.float32(norms[unit - start])
                size = np.float32(1.0) if size == 0 else size
                gradient = row_at(gradients[place], length, unit)
                weight = row_at(weights[place], length, unit)
                _add_direction(gradient, weight, size, factor)


@functools.partial(_kernel, fastmath={"contract"})
def _add_direction(gradient: Any, weight: Any, size: Any, factor: Any) -> None:
    for place in range(len(gradient)):
        gradient[place] += factor * (weight[place] / size)


# -------------------------------------------------------------------- gradient editors


def clipped_(gradients: Sequence[Tensor], limit: float, *, by_rows: Sequence[object]) -> Sequence[int]:
    """Scale every row (a vector is one) whose norm is above a limit to that norm, in place. As
    :func:`charged_by_rows_`."""
    return pass_over(_clip_all, gradients, settings=[float(limit)], by_rows=by_rows)


@_kernel
def _clip_all(table: Any, limit: float, share: int, shares: int) -> None:
    sizes, units, addresses = table[0], table[1], table[2]
    norms = np.empty(MOST_UNITS)
    for place in range(len(addresses)):
        length, few = units_of(sizes[place], units[place])
        first, last = share_of(units[place], share, shares)
        for start in range(first, last, few):
            end = min(last, start + few)
            find_norms(addresses[place], length, start, end, norms, IN_FLOAT32)
            for unit in range(start, end):
                row = row_at(addresses[place], length, unit)
                _clip(row, norms[unit - start], limit)


@_kernel
def _clip(row: Any, norm: float, limit: float) -> None:
    factor = limit / norm
    if not factor >= 1.0:
        _scale(row, np.float32(factor))


def clipped_adaptively_(
    gradients: Sequence[Tensor], weights: Sequence[Tensor], ratio: float, least: float, *, by_rows: Sequence[object]
) -> Sequence[int]:
    """As :func:`clipped_`, with a limit for every row: a ratio of the norm of the weight's row, or of ``least`` if that
    is more."""
    settings = [float(ratio), float(least)]
    return pass_over(_clip_adaptively_all, gradients, weights, settings=settings, by_rows=by_rows)


@_kernel
def _clip_adaptively_all(table: Any, ratio: float, least: float, share: int, shares: int) -> None:
    sizes, units, gradients, weights = table[0], table[1], table[2], table[3]
    norms, sizes_of_units = np.empty(MOST_UNITS), np.empty(MOST_UNITS)
    for place in range(len(gradients)):
        length, few = units_of(sizes[place], units[place])
        first, last = share_of(units[place], share, shares)
        for start in range(first, last, few):
            end = min(last, start + few)
            find_norms_of_both(gradients[place], weights[place], length, start, end, norms, sizes_of_units, IN_FLOAT32)
            for unit in range(start, end):
                size = sizes_of_units[unit - start]
                size = least if size < least else size  # NaN stays
                _clip(row_at(gradients[place], length, unit), norms[unit - start], ratio * size)


def norm_of(gradients: Sequence[Tensor]) -> Tensor | None:
    """The L2 norm of all of them as one long vector; 0-d, the same on any number of threads. ``None`` if
    :func:`~weightsmith_plugins.native.addresses.memory_of` leaves one out."""
    memory = memory_of(gradients)
    if memory is None or len(memory.places) < len(gradients):
        return None
    squares = functools.reduce(np.add, on_threads(functools.partial(_square_all, memory.table), memory.values))
    return torch.tensor(math.sqrt(squares.sum()), dtype=torch.float32, device="cpu")


_PART = 2**16
"""Values, whose squares are added up by one thread."""


@_kernel
def _square_all(table: Any, share: int, shares: int) -> npt.NDArray[np.float64]:
    """The sum of squares of each part, where it is of this share; else 0."""
    sizes, addresses = table[0], table[2]
    found, before = np.zeros(np.sum(-(-sizes // _PART))), 0
    for place in range(len(addresses)):
        count = -(-sizes[place] // _PART)
        for part in range(*share_of(count, share, shares)):
            first, last = part * _PART, min(sizes[place], (part + 1) * _PART)
            found[before + part] = sum_of_squares(addresses[place] + 4 * first, last - first, IN_FLOAT32)
        before += count
    return found


# -------------------------------------------------------------------- what all call


@_kernel
def _scale(row: Any, factor: Any) -> None:
    for place in range(len(row)):
        row[place] *= factor


def refuse_trouble(name: str) -> None:
    """Try a function of this module: each is to make (0.6, -0.8) of (3, -4), and to let zeros stay.

    Raises:
        ArithmeticError: it does not.
    """
    with torch.inference_mode(False):
        rows = torch.tensor([[3.0, -4.0], [0.0, 0.0]], dtype=torch.float32, device="cpu")
        others = torch.tensor([[2.0, -3.0], [0.0, 0.0]], dtype=torch.float32, device="cpu")
        _TRIALS[name](rows, others)
    found = rows.tolist()
    if not np.allclose(found, np.array([[0.6, -0.8], [0.0, 0.0]])):
        raise ArithmeticError(f"{name} made {found[0]} of [3.0, -4.0], and not [0.6, -0.8]")


_TRIALS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "bound_norms_": lambda rows, _: bound_norms_([rows], 0.0, 1.0, 0.0, 1e15, by_rows=[True]),
    "clamped_": lambda rows, _: clamped_([rows], -0.8, 0.6),
    "charged_": lambda rows, others: charged_([rows], [others], -0.8, -0.8),
    "charged_by_rows_": lambda rows, _: charged_by_rows_([rows], [rows.clone()], -4.0 / math.sqrt(2), by_rows=[True]),
    "clipped_": lambda rows, _: clipped_([rows], 1.0, by_rows=[True]),
    "clipped_adaptively_": lambda rows, _: clipped_adaptively_([rows], [rows.clone()], 0.2, 1e-3, by_rows=[True]),
    "norm_of": lambda rows, _: rows.div_(norm_of([rows]) or math.nan),
}
