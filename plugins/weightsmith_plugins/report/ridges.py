"""From distributions over the epochs to ridges: densities on one axis, in units of the weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from weightsmith_plugins.series import Array, Distribution

__all__ = ["Ridge", "Ridges", "at_zero", "axis_of", "density", "evenly", "ridges"]

T = TypeVar("T")

MOST = 25
"""Ridges in one plot, if not said otherwise."""

BINS = 150
_NEAR = 1e-12
"""How far from zero a value still counts as being there: the edges of TensorBoard's buckets that are nearest to it."""

_FEWEST = 0.005
"""The share from which on values at zero stand apart: they would be one spike that dwarfs the rest."""

_TAIL = 0.002
"""The share of an epoch's values that may lie beyond either end of the axis."""

_FURTHEST = 4.0
"""How many times as far the axis reaches for a few epochs as four in five of them need."""


@dataclass(frozen=True, eq=False)
class Ridge:
    """One epoch's.

    Attributes:
        step: the epoch, or the update.
        densities: share of the values per unit of the weight, without those at zero if they stand apart; shape
            ``(bins,)``.
        at_zero: the share of the values at zero, if they stand apart, else 0.
        outside: the share of the values beyond the axis.
    """

    step: int
    densities: Array
    at_zero: float
    outside: float


@dataclass(frozen=True, eq=False)
class Ridges:
    """Of one weight.

    Attributes:
        edges: of the bins, of equal width; shape ``(bins + 1,)``.
        ridges: one for each epoch that was chosen, the oldest first.
        minimum, maximum: of all values in these epochs; NaN if there are none.
    """

    edges: Array
    ridges: tuple[Ridge, ...]
    minimum: float
    maximum: float

    @property
    def centres(self) -> Array:
        """The middles of the bins; shape ``(bins,)``."""
        middles: Array = (self.edges[1:] + self.edges[:-1]) / 2
        return middles


def ridges(distributions: Sequence[Distribution], most: int = MOST, bins: int = BINS) -> Ridges:
    """The ridges of one weight's distributions, by ascending steps.

    Args:
        most: how many are chosen at most, evenly, the first and the last among them.
        bins: of the common axis.
    """
    chosen = evenly(distributions, most)
    edges = np.linspace(*axis_of(chosen), bins + 1)
    ends = [end for one in chosen if one.count for end in (one.minimum, one.maximum) if math.isfinite(end)]
    return Ridges(
        edges,
        tuple(_ridge(one, edges) for one in chosen),
        min(ends, default=math.nan),
        max(ends, default=math.nan),
    )


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly, the first and the last among them.

    >>> evenly(range(100), 4)
    [0, 33, 66, 99]
    """
    if len(items) <= most:
        return list(items)
    places = np.linspace(0, len(items) - 1, most).round().astype(int)
    return [items[place] for place in places]


def at_zero(distribution: Distribution) -> float:
    """How many values are zero, or less than 1e-12 from it: TensorBoard's buckets do not tell them apart."""
    return max(float(distribution.zeros or 0), float(distribution.counts[_nearest(distribution)].sum()))


def density(distribution: Distribution, edges: Array, *, smooth: bool = True) -> Array:
    """The share of the values per unit of the weight, in bins of equal width: the area under it is the share that lies
    between the outer edges, without those at zero if they stand apart.

    A bucket's values are spread evenly over it, within the least and the largest value. Smoothing is a Gaussian of half
    the width that Silverman's rule gives (*Density Estimation for Statistics and Data Analysis*, 1986), reflected at
    the ends of the axis, so that the area stays.

    Args:
        edges: ascending; shape ``(bins + 1,)``.
        smooth: whether to smooth; without it, a histogram.

    Returns:
        Shape ``(bins,)``; 0 where there are no values.
    """
    width = edges[1] - edges[0]
    if not distribution.count:
        return np.zeros(len(edges) - 1)
    low, high, counts = _buckets(distribution)
    shares = np.diff(_share_below(edges, low, high, counts)) / distribution.count
    if smooth and counts.any():
        shares = _smoothed(shares, _bandwidth(low, high, counts) / width)
    densities: Array = shares / width
    return densities


def axis_of(distributions: Sequence[Distribution]) -> tuple[float, float]:
    """Where the axis that all epochs share begins and ends: it holds all but the tails of every epoch, and does not
    follow a few epochs that are far wider than the others."""
    spans = np.array([_quantiles(one) for one in distributions if one.count])
    spans = spans[np.isfinite(spans).all(1)] if len(spans) else spans
    if not len(spans):
        return -1.0, 1.0
    middle = float(np.median(spans))
    reach = np.abs(spans - middle).max(1)
    usual = np.quantile(reach[reach > 0], 0.8, method="lower") if (reach > 0).any() else 0.0
    furthest = _FURTHEST * float(usual)
    low, high = max(spans.min(), middle - furthest), min(spans.max(), middle + furthest)
    least, most = min(one.minimum for one in distributions), max(one.maximum for one in distributions)
    if most - least <= 1.5 * (high - low):
        low, high = least, most
    margin = 0.1 * (high - low) or 0.1 * abs(low) or 1.0
    return float(low - margin), float(high + margin)


def _ridge(one: Distribution, edges: Array) -> Ridge:
    if not one.count:
        return Ridge(one.step, density(one, edges), 0.0, 0.0)
    apart = at_zero(one) / one.count if _stand_apart(one) else 0.0
    low, high, counts = _buckets(one)
    below, above = _share_below(edges[[0, -1]], low, high, counts)
    outside = (counts.sum() - (above - below)) / one.count
    return Ridge(one.step, density(one, edges), apart, float(outside) if outside > 1e-9 else 0.0)


def _stand_apart(one: Distribution) -> bool:
    return at_zero(one) >= _FEWEST * one.count


def _nearest(one: Distribution) -> NDArray[np.bool_]:
    """Which buckets lie within 1e-12 of zero."""
    near: NDArray[np.bool_] = (one.starts >= -_NEAR) & (one.limits <= _NEAR)
    return near


def _buckets(one: Distribution) -> tuple[Array, Array, Array]:
    """Left edges, right edges and counts, within the least and the largest value, without what stands apart at zero."""
    low, high = np.fmax(one.starts, one.minimum), np.fmin(one.limits, one.maximum)
    high = np.maximum(high, np.nextafter(low, np.inf))  # a constant's bucket has no width
    counts = one.counts.copy()
    if _stand_apart(one):
        rest = at_zero(one) - counts[_nearest(one)].sum()  # of zeros in wider buckets
        counts[_nearest(one)] = 0
        holds_zero = (one.starts <= 0) & (one.limits > 0)
        counts[holds_zero] = np.maximum(0, counts[holds_zero] - rest)
    return low, high, counts


def _share_below(edges: Array, low: Array, high: Array, counts: Array) -> Array:
    """How many values lie below each edge."""
    points = np.stack([low, high], axis=1).ravel()
    sums = np.cumsum(counts)
    below: Array = np.interp(edges, points, np.stack([sums - counts, sums], axis=1).ravel(), left=0.0)
    return below


def _quantiles(one: Distribution) -> tuple[float, float]:
    """Between which all but the tails lie; what stands apart at zero left out."""
    low, high, counts = _buckets(one)
    held = counts > 0
    if not held.any():
        return 0.0, 0.0
    low, high, counts = low[held], high[held], counts[held]
    sums = np.cumsum(counts)
    reached = np.stack([sums - counts, sums], axis=1).ravel()
    points = np.stack([low, high], axis=1).ravel()
    first, last = np.interp([_TAIL * sums[-1], (1 - _TAIL) * sums[-1]], reached, points)
    return float(first), float(last)


def _bandwidth(low: Array, high: Array, counts: Array) -> float:
    """Half of Silverman's, in units of the weight."""
    middles, total = (low + high) / 2, counts.sum()
    mean = (middles * counts).sum() / total
    deviation = math.sqrt(((middles - mean) ** 2 * counts).sum() / total)
    sums = np.cumsum(counts)
    first, last = np.interp([0.25 * total, 0.75 * total], sums - counts / 2, middles)
    spread = min(deviation, (last - first) / 1.34) or deviation
    return float(0.5 * 0.9 * spread * total**-0.2)


def _smoothed(shares: Array, deviation: float) -> Array:
    """Convolved with a Gaussian of this standard deviation, in bins, at least one of them."""
    deviation = min(max(1.0, deviation), len(shares) / 8)
    reach = min(math.ceil(4 * deviation), len(shares))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    return np.convolve(np.pad(shares, reach, mode="symmetric"), kernel / kernel.sum(), mode="valid")
