"""The nearest points whose sums are bounded, of all units at once, compiled by Numba (the extra ``fast``)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weightsmith_plugins.native.addresses import LEFT, WRITTEN, pass_that_tells
from weightsmith_plugins.native.compiling import compiled
from weightsmith_plugins.native.pointers import row_at, share_of

__all__ = ["onto_simplices_", "refuse_trouble"]

_kernel = functools.partial(compiled, error_model="numpy")
_reordered = functools.partial(_kernel, fastmath={"reassoc", "contract"})  # so that several values are added at once
_ordered = functools.partial(_kernel, fastmath={"nnan", "nsz"})  # so that several are compared at once


def onto_simplices_(
    weights: Sequence[Tensor], total: float, room: float, *, of_magnitudes: bool, by_rows: Sequence[object]
) -> Sequence[int]:
    """Put in the place of every unit the nearest point of Σw = total, w ≥ 0: max(w − θ, 0). Or, of magnitudes, that of
    Σ|w| ≤ total: sign(w) · max(|w| − θ, 0).

    Newton's steps find θ from below, as in :mod:`weightsmith_plugins.constraints.sums`, of values less the largest.

    Args:
        weights: of any shape, dtype and device.
        total: the bound of the sum.
        room: how far off, relative to it, a sum may be.
        of_magnitudes: which of the two.
        by_rows: of each, whether its units are its rows.

    Returns:
        The places of those that are left to torch: what
        :func:`~weightsmith_plugins.native.addresses.memory_of` leaves out; and those that have a unit that is not
        finite, or for which no θ is found.
    """
    settings = [float(total), float(room), bool(of_magnitudes)]
    return pass_that_tells(_project_all, weights, settings=settings, by_rows=by_rows)


@_kernel
def _project_all(
    table: Any, total: float, room: float, of_magnitudes: bool, share: int, shares: int
) -> npt.NDArray[np.uint8]:
    sizes, units, addresses = table[0], table[1], table[2]
    became = np.zeros(len(addresses), np.uint8)
    for place in range(len(addresses)):
        length = sizes[place] // max(1, units[place])
        first, last = share_of(units[place] if length else 0, share, shares)
        for unit in range(first, last):
            row = row_at(addresses[place], length, unit)
            if of_magnitudes:
                became[place] |= _onto_ball(row, total, room)
            else:
                became[place] |= _onto_simplex(row, total, room)
    return became


@_kernel
def _onto_ball(row: Any, total: float, room: float) -> int:
    size = _size(row)
    if size <= total * (1 + room):
        return 0
    if not size < np.inf:
        return LEFT
    peak = np.float64(_largest_magnitude(row))
    theta = _threshold(row, peak, size / len(row) - peak, total, True)
    if not theta < 0:
        return LEFT
    for place in range(len(row)):
        over = (np.float64(np.abs(row[place])) - peak) - theta
        row[place] = np.copysign(np.float32(over if over > 0 else 0.0), row[place])
    return WRITTEN


@_kernel
def _onto_simplex(row: Any, total: float, room: float) -> int:
    size, magnitudes = _sum(row), _size(row)
    if not magnitudes < np.inf:
        return LEFT
    if abs(size - total) <= total * room and _smallest(row) >= 0:
        return 0
    peak = np.float64(_largest(row))
    theta = _threshold(row, peak, size / len(row) - peak, total, False)
    if not theta < 0:
        return LEFT
    for place in range(len(row)):
        over = (np.float64(row[place]) - peak) - theta
        row[place] = np.float32(over if over > 0 else 0.0)
    return WRITTEN


@_kernel
def _threshold(row: Any, peak: float, mean: float, total: float, of_magnitudes: bool) -> float:
    """θ, of values less the largest of them, of which it takes the mean; 0 where none is found. The last steps are
    taken in float64: the first of them leads to below θ again, wherever rounding led before."""
    rough, highest = np.float32(max(mean - total / len(row), -total)), np.float32(peak)
    while True:
        over, above = _over_magnitudes(row, highest, rough) if of_magnitudes else _over(row, highest, rough)
        further = rough + np.float32((np.float64(over) - total) / above)
        if not further > rough:
            break
        rough = further
    theta, is_below = np.float64(rough), False
    while True:
        exact, many = _over_exactly(row, peak, theta, of_magnitudes)
        if not many > 0:
            return 0.0
        next_ = theta + (exact - total) / many
        if is_below and not next_ > theta:
            return theta
        theta, is_below = next_, True


@_reordered
def _over_exactly(row: Any, peak: float, theta: float, of_magnitudes: bool) -> tuple[float, float]:
    over = above = 0.0
    for place in range(len(row)):
        value = (np.float64(np.abs(row[place]) if of_magnitudes else row[place]) - peak) - theta
        over += value if value > 0 else 0.0
        above += 1.0 if value > 0 else 0.0
    return over, above


@_reordered
def _over(row: Any, peak: Any, theta: Any) -> tuple[Any, Any]:
    """By how much the values above a threshold are above it, together; and how many there are."""
    over, above = np.float32(0), np.int32(0)
    for place in range(len(row)):
        value = (row[place] - peak) - theta
        over += value if value > 0 else np.float32(0)
        above = np.int32(above + np.int32(value > 0))
    return over, above


@_reordered
def _over_magnitudes(row: Any, peak: Any, theta: Any) -> tuple[Any, Any]:
    over, above = np.float32(0), np.int32(0)
    for place in range(len(row)):
        value = (np.abs(row[place]) - peak) - theta
        over += value if value > 0 else np.float32(0)
        above = np.int32(above + np.int32(value > 0))
    return over, above


@_reordered
def _sum(row: Any) -> float:
    total = 0.0
    for place in range(len(row)):
        total += np.float64(row[place])
    return total


@_reordered
def _size(row: Any) -> float:
    """The sum of magnitudes."""
    total = 0.0
    for place in range(len(row)):
        total += np.float64(np.abs(row[place]))
    return total


@_ordered
def _largest(row: Any) -> Any:
    largest = row[0]
    for place in range(len(row)):
        largest = row[place] if row[place] > largest else largest
    return largest


@_ordered
def _largest_magnitude(row: Any) -> Any:
    largest = np.abs(row[0])
    for place in range(len(row)):
        largest = np.abs(row[place]) if np.abs(row[place]) > largest else largest
    return largest


@_ordered
def _smallest(row: Any) -> Any:
    smallest = row[0]
    for place in range(len(row)):
        smallest = row[place] if row[place] < smallest else smallest
    return smallest


def refuse_trouble(name: str) -> None:
    """Try it: of (0.5, −1.5, 0) the ball of size 1 has (0, −1, 0) nearest, and the simplex (1, 0, 0) of (1, −1.5, 0.0).

    Raises:
        ArithmeticError: it finds others.
    """
    with torch.inference_mode(False):
        ball = torch.tensor([[0.5, -1.5, 0.0]], dtype=torch.float32, device="cpu")
        simplex = torch.tensor([[1.5, -1.5, 0.5]], dtype=torch.float32, device="cpu")
        onto_simplices_([ball], 1.0, 0.0, of_magnitudes=True, by_rows=[True])
        onto_simplices_([simplex], 1.0, 0.0, of_magnitudes=False, by_rows=[True])
    if ball.tolist() != [[0.0, -1.0, 0.0]] or simplex.tolist() != [[1.0, 0.0, 0.0]]:
        raise ArithmeticError(f"{name} made {ball.tolist()} and {simplex.tolist()}, and not [0, -1, 0] and [1, 0, 0]")
