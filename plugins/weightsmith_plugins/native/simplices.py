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
            became[place] |= _project(row_at(addresses[place], length, unit), total, room, of_magnitudes)
    return became


@_kernel
def _project(row: Any, total: float, room: float, of_magnitudes: bool) -> int:
    """What becomes of a unit."""
    size = _sum(row, True)
    if not size < np.inf:
        return LEFT
    signed = size if of_magnitudes else _sum(row, False)
    is_inside = size <= total * (1 + room) if of_magnitudes else abs(signed - total) <= total * room
    if is_inside and (of_magnitudes or not _has_negative(row)):
        return 0
    peak = np.float64(_largest(row, of_magnitudes))
    theta = _threshold(row, peak, signed / len(row) - peak, total, of_magnitudes)
    if not theta < 0:
        return LEFT
    for place in range(len(row)):
        over = (np.float64(_seen(row[place], of_magnitudes)) - peak) - theta
        nearest = np.float32(over if over > 0 else 0.0)
        row[place] = np.copysign(nearest, row[place]) if of_magnitudes else nearest
    return WRITTEN


@_kernel
def _threshold(row: Any, peak: float, mean: float, total: float, of_magnitudes: bool) -> float:
    """θ, of values less the largest of them, of which it takes the mean; 0 where none is found. The first steps are
    taken in float32, in which rounding may lead above θ; the tangent from there leads below it again."""
    theta = least = max(mean - total / len(row), -total)
    if total * len(row) < _LARGEST:
        rough, highest = np.float32(theta), np.float32(peak)
        for _ in range(_MOST_STEPS):
            over, above = _over(row, highest, rough, of_magnitudes)
            further = rough + np.float32((np.float64(over) - total) / above)
            if not further > rough or over - total <= _ROUGHLY * total:
                break
            rough = further
        theta = np.float64(rough)
    for _ in range(_MOST_STEPS):
        over, above = _over(row, peak, theta, of_magnitudes)
        if abs(over - total) <= _ACCURATELY * total:
            return theta
        theta = max(theta + (over - total) / above, least) if above else least
    return 0.0


_MOST_STEPS, _ROUGHLY, _ACCURATELY = 100, 1e-4, 2.0**-30
_LARGEST = float(np.finfo(np.float32).max)


@_reordered
def _over(row: Any, peak: Any, theta: Any, of_magnitudes: bool) -> tuple[Any, Any]:
    """By how much the values above a threshold are above it, together, in the threshold's precision; and how many there
    are."""
    nothing = theta - theta
    over, above = nothing, np.int32(0)
    for place in range(len(row)):
        value = _above(_seen(row[place], of_magnitudes), peak, theta)
        over += value if value > 0 else nothing
        above = np.int32(above + np.int32(value > 0))
    return over, above


@_kernel
def _above(value: Any, peak: Any, theta: Any) -> Any:
    """In this order, in which the largest value does not swamp the threshold: compiled without leave to change it."""
    return (value - peak) - theta


@_kernel
def _seen(value: Any, of_magnitudes: bool) -> Any:
    return np.abs(value) if of_magnitudes else value


@_reordered
def _sum(row: Any, of_magnitudes: bool) -> float:
    """In float64, in which no sum of float32 numbers leaves the range."""
    total = 0.0
    for place in range(len(row)):
        total += np.float64(_seen(row[place], of_magnitudes))
    return total


@_kernel
def _largest(row: Any, of_magnitudes: bool) -> Any:
    """By their bits as signed integers, which are in the order of the numbers once those of negative ones are turned
    over, but for the sign. LLVM makes no vectors of floats' largest."""
    bits, largest = row.view(np.int32), _LEAST
    for place in range(len(bits)):
        number = bits[place]
        turned = np.int32(number & _MAGNITUDE) if of_magnitudes else np.int32(number ^ ((number >> 31) & _MAGNITUDE))
        largest = max(largest, turned)
    return np.int32(largest ^ ((largest >> 31) & _MAGNITUDE)).view(np.float32)


_LEAST, _MAGNITUDE = np.int32(-(2**31)), np.int32(2**31 - 1)


@_kernel
def _has_negative(row: Any) -> bool:
    negative = np.int32(0)
    for place in range(len(row)):
        negative = np.int32(negative + np.int32(row[place] < 0))
    return bool(negative > 0)


def refuse_trouble(name: str) -> None:
    """Try it: of (20, −19, 18, 0.25, …) the ball of size 6 has (3, −2, 1, 0, …) nearest, the simplex (4, 0, 2, 0, …).

    Raises:
        ArithmeticError: it finds others.
    """
    with torch.inference_mode(False):
        ball = torch.tensor([[20.0, -19.0, 18.0, *[0.25] * 20]], dtype=torch.float32, device="cpu")
        simplex = ball.clone()
        onto_simplices_([ball], 6.0, 0.0, of_magnitudes=True, by_rows=[True])
        onto_simplices_([simplex], 6.0, 0.0, of_magnitudes=False, by_rows=[True])
    found, zeros = [*ball.tolist(), *simplex.tolist()], [0.0] * 20
    if found != [[3.0, -2.0, 1.0, *zeros], [4.0, 0.0, 2.0, *zeros]]:
        raise ArithmeticError(f"{name} made {found} of 20, -19, 18 and 20 times 0.25")
