"""Bounds on the norm of every unit."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Constraint, Site
from weightsmith.kinds.base import as_it_is
from weightsmith.rows import row_lengths
from weightsmith.tensors import accurate_dtype, are_large, row_length, unit_norms, unit_peaks

from weightsmith_plugins.native.addresses import are_suited, picked
from weightsmith_plugins.native.compiling import compiled_function, has_own, in_one_pass

__all__ = ["MaxNorm", "MinMaxNorm", "UnitNorm"]


class UnitScaling(Constraint, abstract=True):
    """What sets of units with certain norms share: w_u · bounded(‖w_u‖) / ‖w_u‖ for every unit u. A weight whose units
    have the right norms to within rounding stays bit for bit as it is: in float32, norms are off by up to 5e-7 of the
    bound."""

    unitwise: ClassVar[bool] = True

    @property
    @abstractmethod
    def ends(self) -> tuple[float, float]:
        """The least and the largest norm."""

    def bounded(self, norms: Tensor) -> Tensor:
        """The norms that units of these norms get."""
        low, high = self.ends
        return norms.clamp(low, high) if low < high else torch.full_like(norms, low)

    def project(self, weight: Tensor, site: Site) -> Tensor:
        wide = self._wide(weight, site)
        even, peaks = _even(wide, site)
        # A zero unit has no direction: it takes that of equal values, if it must have one.
        even = torch.where(peaks == 0, 1.0, even)
        inner = unit_norms(even, site.unit_dims)
        norms = _in_range(unit_norms(wide.detach(), site.unit_dims), inner.detach() * peaks)
        wanted = self.bounded(norms)
        scaled = even * (wanted / inner)
        return torch.where(self._stays(norms, wanted, weight), weight, scaled.to(weight.dtype))

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        if not has_own(self, UnitScaling, "bounded"):
            (low, high), room, by_rows = self.ends, _room(torch.float32), row_lengths(sites)
            left = in_one_pass("bound_norms_", weights, low=low, high=high, room=room, reach=MOST, by_rows=by_rows)
            weights, sites = picked(weights, left), picked(sites, left)
        if weights:
            self._unitwise(self._scale_, as_it_is, weights, sites, weights)

    def _scale_(self, weight: Tensor, site: Site) -> Tensor:
        """As :meth:`project`, in place: one pass over the weight for its norms, and one to scale it if need be. Units
        whose squares may leave the float range, and devices for which nothing may wait, go the long way."""
        if not weight.numel():
            return weight
        if not weight.is_cpu:
            return weight.copy_(self.project(weight, site))
        norms, room = unit_norms(weight, site.unit_dims), _room(weight.dtype)
        factors = self.bounded(norms).div_(norms)
        least, most = (extreme.item() for extreme in torch.aminmax(factors))
        if 1 - room <= least and most <= 1 + room:
            return weight
        if not (least > LEAST and most < MOST):
            return weight.copy_(self.project(weight, site))
        # Of a large one it costs more than it saves: the factors of units that are right are rounding as well.
        if not are_large([weight]) or room > 1e-4:
            factors.masked_fill_((factors - 1).abs_() <= room, 1.0)
        return weight.mul_(factors)

    def _wide(self, weight: Tensor, site: Site) -> Tensor:
        """The weight in the precision in which :meth:`project_all_` sums its squares; in a forward pass in its own,
        whether a gradient is asked for or not."""
        is_as_here = self.mode == "project" and not has_own(self, UnitScaling, "bounded")
        may_be = is_as_here and row_length(weight, site.unit_dims)
        is_bound = may_be and compiled_function("bound_norms_", [weight]) is not None and all(are_suited([weight]))
        return weight.double() if is_bound else weight

    def _stays(self, norms: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
        """Whether a unit's norm is right to within the rounding of its values, and of the factor that would mend it:
        what :meth:`project_all_` lets stay is inside."""
        if torch.is_grad_enabled() and weight.requires_grad:
            return norms == wanted if self._has_inside() else torch.zeros_like(norms, dtype=torch.bool)
        return (norms - wanted).abs() <= 1.25 * _room(weight.dtype) * wanted

    def _has_inside(self) -> bool:
        """Whether the set has an inside, in which a gradient reaches the raw weight as it is."""
        return True

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0


class MaxNorm(UnitScaling):
    """‖w_u‖₂ ≤ limit for every unit u; the nearest point is w_u · min(1, limit / ‖w_u‖).

    A unit that is over by no more than rounding (in float32 5e-7 of the limit) stays as it is.

    Srebro & Shraibman (2005), "Rank, trace-norm and max-norm"; Srivastava et al. (2014) for dropout networks.

    Args:
        limit: the largest norm, above 0.

    >>> MaxNorm(1.0)(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """

    convex: ClassVar[bool] = True

    limit: float

    def validate(self) -> None:
        if not self.limit > 0:
            raise ConfigurationError(f"{self!r}: limit must be above 0")

    @property
    def allows_zeros(self) -> bool:
        return True

    @property
    def ends(self) -> tuple[float, float]:
        return 0.0, self.limit

    def tangent(self, velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
        norms = unit_norms(self._wide(weight, site), site.unit_dims)
        at_limit = (norms >= self.limit) | self._stays(norms, torch.full_like(norms, self.limit), weight)
        outward = torch.where(at_limit, _along(velocity, weight, site).clamp(min=0), 0)
        return (velocity - outward * _unit(weight, site)).to(velocity.dtype)


class MinMaxNorm(UnitScaling):
    """low ≤ ‖w_u‖₂ ≤ high for every unit u; the nearest point is w_u · min(max(‖w_u‖, low), high) / ‖w_u‖.

    ``keras.constraints.MinMaxNorm`` with rate 1. To a zero unit all points of norm low are equally near: it becomes the
    unit whose values are all equal. With ``mode="forward"`` a zero unit gets no gradient.

    Args:
        low: the least norm, at least 0.
        high: the largest norm, at least ``low`` and above 0.

    >>> MinMaxNorm(1.0, 2.0)(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    tensor([[1.2000, 1.6000],
            [0.6000, 0.8000]])
    """

    low: float
    high: float

    def validate(self) -> None:
        if not (0 <= self.low <= self.high and self.high > 0):
            raise ConfigurationError(f"{self!r}: needed is 0 <= low <= high, and high above 0")

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    def _has_inside(self) -> bool:
        return self.low < self.high


class UnitNorm(UnitScaling):
    """‖w_u‖₂ = 1 for every unit u; the nearest point is w_u / ‖w_u‖.

    All points of the sphere are equally near to a zero unit: it becomes the unit whose values are all equal,
    1 / √size. With ``mode="forward"`` a zero unit gets no gradient.

    >>> UnitNorm()(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.7071, 0.7071]])
    """

    @property
    def ends(self) -> tuple[float, float]:
        return 1.0, 1.0

    def _has_inside(self) -> bool:
        return False

    def tangent(self, velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
        return (velocity - _along(velocity, weight, site) * _unit(weight, site)).to(velocity.dtype)


LEAST, MOST = 1e-15, 1e15
"""Norms, and factors of norms, between which no square leaves the float range."""


def _in_range(norms: Tensor, careful: Tensor) -> Tensor:
    """The norms as :meth:`UnitScaling._scale_` takes them, in one pass over the weight; where squares may leave the
    float range, the careful ones."""
    return torch.where((norms > LEAST) & (norms < MOST), norms, careful)


@functools.cache
def _room(dtype: torch.dtype) -> float:
    """How far, relative to it, the norm of a unit is off by the rounding of its values and of its own sum."""
    units = {torch.float32: 4.0, torch.float64: 16.0}.get(dtype, 0.75)
    return units * torch.finfo(dtype).eps


def _along(velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
    """How fast every unit's norm grows."""
    product = velocity * _unit(weight, site)
    return product.sum(dim=site.unit_dims, keepdim=True) if site.unit_dims else product


def _unit(weight: Tensor, site: Site) -> Tensor:
    norms = unit_norms(weight, site.unit_dims)
    return weight / torch.where(norms > 0, norms, 1)


def _even(weight: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    """The weight with every unit's largest magnitude brought to 1, and these magnitudes: so the squares of tiny and
    huge units stay in the float range. A zero unit stays zero."""
    accurate = weight.to(accurate_dtype(weight.dtype))
    peaks = unit_peaks(accurate, site.unit_dims)
    return accurate / torch.where(peaks > 0, peaks, 1.0), peaks
