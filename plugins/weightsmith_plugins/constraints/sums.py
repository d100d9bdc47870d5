"""Bounds on the sum, of values or of magnitudes, of every unit."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Constraint, Site
from weightsmith.kinds.base import as_it_is
from weightsmith.rows import row_lengths
from weightsmith.tensors import (
    accurate_dtype,
    are_large,
    blocks,
    from_unit_matrices,
    row_length,
    unit_matrices,
    unit_norms,
)

from weightsmith_plugins.native.addresses import is_watched, picked
from weightsmith_plugins.native.compiling import in_one_pass

__all__ = ["L1Ball", "Simplex", "ZeroMean"]


class ZeroMean(Constraint):
    """mean(w_u) = 0 for every unit u; the nearest point is w_u − mean(w_u).

    Qiao et al. (2019), "Micro-batch training with batch-channel normalization and weight standardization",
    arXiv:1903.10520, without its division by the standard deviation.

    >>> ZeroMean()(torch.tensor([[1.0, 3.0]]))
    tensor([[-1.,  1.]])
    """

    convex: ClassVar[bool] = True
    unitwise: ClassVar[bool] = True

    def project(self, weight: Tensor, site: Site) -> Tensor:
        return (weight - self._excess(weight, site)).to(weight.dtype)

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        self._unitwise(self._centre_, as_it_is, weights, sites, weights)

    def _centre_(self, weight: Tensor, site: Site) -> Tensor:
        """As :meth:`project`, in place. If the first unit's mean says that the weight is outside, no unit is looked at
        more closely: the means of those that are inside are no more than rounding."""
        is_plain = site.unit_dims[:1] == (1,) and weight.is_cpu and accurate_dtype(weight.dtype) == weight.dtype
        if not (is_plain and are_large([weight])):
            return weight.sub_(self._excess(weight, site))
        sums, size = weight.sum(dim=site.unit_dims, keepdim=True), weight[0].numel()
        reach = torch.linalg.vector_norm(weight[0]).item() * math.sqrt(size) * torch.finfo(weight.dtype).eps
        if abs(sums[0].item()) <= 100 * reach:
            return weight.sub_(self._excess(weight, site))
        return weight.sub_(sums, alpha=1 / size)

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0

    def tangent(self, velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
        return self.project(velocity, site)

    def _excess(self, weight: Tensor, site: Site) -> Tensor:
        """The mean of every unit, but 0 where it is no more than the rounding of the unit's values leaves."""
        if not site.unit_dims:
            return weight
        means = weight.mean(dim=site.unit_dims, keepdim=True, dtype=accurate_dtype(weight.dtype))
        if torch.is_grad_enabled() and weight.requires_grad:
            return means
        return means.masked_fill_(means.abs() <= _mean_rounding(weight, site), 0)


class SumBound(Constraint, abstract=True):
    """What sets share in which the sum of every unit is bounded. A unit that is inside to within rounding stays bit for
    bit as it is."""

    convex: ClassVar[bool] = True
    unitwise: ClassVar[bool] = True
    _of_magnitudes: ClassVar[bool]
    """Whether it is the sum of magnitudes, which may be less; else that of values, of which none is below 0."""

    @property
    @abstractmethod
    def _bound(self) -> float:
        """Of the sum; above 0."""

    def project(self, weight: Tensor, site: Site) -> Tensor:
        values = weight.to(_precision(weight))
        magnitudes = values.abs() if self._of_magnitudes else values
        nearest = _to_simplex(magnitudes, self._bound, site, weight.dtype)
        nearest = (values.sign() * nearest if self._of_magnitudes else nearest).to(weight.dtype)
        if torch.is_grad_enabled() and weight.requires_grad and not self._of_magnitudes:
            return nearest  # the set has no inside, in which a gradient reaches the raw weight as it is
        return torch.where(self._is_inside(magnitudes, site, _sum_rounding(weight)), weight, nearest)

    def _is_inside(self, values: Tensor, site: Site, rounding: float) -> Tensor:
        """Of every unit, with the axes inside it kept."""
        sums = values.sum(dim=site.unit_dims, keepdim=True)
        if self._of_magnitudes:
            return sums <= self._bound * (1 + rounding)
        is_positive = values.amin(dim=site.unit_dims, keepdim=True) >= 0
        return ((sums - self._bound).abs() <= self._bound * rounding) & is_positive

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        which = {"of_magnitudes": self._of_magnitudes, "by_rows": row_lengths(sites)}
        room = 0.999 * _ROUNDING * torch.finfo(torch.float32).eps  # so that what is let stay is inside
        left = in_one_pass("onto_simplices_", weights, total=self._bound, room=room, **which)
        weights, sites = picked(weights, left), picked(sites, left)
        if weights:
            self._unitwise(self._project_, as_it_is, weights, sites, weights)

    def _project_(self, weight: Tensor, site: Site) -> Tensor:
        """As :meth:`project`, in place; on a CPU some rows after others, which the cache then holds for all passes."""
        are_rows = weight.is_cpu and weight.ndim > 1 and row_length(weight, site.unit_dims) > 0
        for (part,) in blocks(weight, by_rows=True) if are_rows else [(weight,)]:
            part.copy_(self.project(part, site))
        return weight

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0


class L1Ball(SumBound):
    """Σ|w| ≤ radius for every unit; the nearest point is sign(w) · max(|w| − θ, 0), with θ such that the sum is radius.

    Duchi et al. (2008), "Efficient projections onto the l1-ball for learning in high dimensions": sparse units. What
    changes a unit's sum by no more than its rounding stays, so that tiny updates may leave tiny values for its zeros.

    Args:
        radius: the largest sum of magnitudes, above 0.

    >>> L1Ball(1.0)(torch.tensor([[1.5, -1.0], [0.3, 0.4]]))
    tensor([[ 0.7500, -0.2500],
            [ 0.3000,  0.4000]])
    """

    _of_magnitudes: ClassVar[bool] = True

    radius: float

    def validate(self) -> None:
        if not self.radius > 0:
            raise ConfigurationError(f"{self!r}: radius must be above 0")

    @property
    def _bound(self) -> float:
        return self.radius

    @property
    def allows_zeros(self) -> bool:
        return True


class Simplex(SumBound):
    """w ≥ 0 and Σw = total for every unit: mixing weights. The nearest point is max(w − θ, 0), with θ such that the sum
    is total.

    Duchi et al. (2008), "Efficient projections onto the l1-ball for learning in high dimensions", figure 1. What
    changes a unit's sum by no more than its rounding stays, as of :class:`L1Ball`.

    Args:
        total: the sum of every unit, above 0. Default 1.

    >>> Simplex()(torch.tensor([[0.5, 1.5, -1.0]]))
    tensor([[0., 1., 0.]])
    """

    _of_magnitudes: ClassVar[bool] = False

    total: float = 1.0

    def validate(self) -> None:
        if not 0 < self.total < math.inf:
            raise ConfigurationError(f"{self!r}: total must be above 0, and finite")

    @property
    def _bound(self) -> float:
        return self.total


def _to_simplex(values: Tensor, total: float, site: Site, dtype: torch.dtype) -> Tensor:
    """max(values − θ, 0) for every unit, with θ such that the sum is ``total`` to within the rounding of a dtype."""
    is_as_precise = values.dtype == dtype
    rows = unit_matrices(values, site.unit_dims)[0]
    rows = rows - rows.amax(dim=1, keepdim=True)  # so that huge values do not swamp the total
    accuracy = (4 if is_as_precise else 1 / 64) * torch.finfo(dtype).eps
    over = (rows - _thresholds(rows, total, accuracy)).clamp(min=0)
    for _ in range(2 if is_as_precise else 0):  # θ is as coarse as the largest value: what is over it, finer
        above = over > 0
        off = (over.detach().sum(dim=1, keepdim=True) - total) / above.sum(dim=1, keepdim=True)
        over = torch.where(above, (over - off).clamp(min=0), over)
    return from_unit_matrices(over, values, site.unit_dims)


def _thresholds(rows: Tensor, total: float, accuracy: float) -> Tensor:
    """θ of every row, with Σ max(row − θ, 0) = total, of rows whose largest value is 0; shape ``(rows, 1)``."""
    found = _thresholds_by_newton(rows.detach(), total, accuracy) if rows.is_cpu and not is_watched() else None
    if found is None:
        return _thresholds_by_sorting(rows, total)
    if torch.is_grad_enabled() and rows.requires_grad:
        above = rows > found
        means = torch.where(above, rows, 0.0).sum(dim=1, keepdim=True) / above.sum(dim=1, keepdim=True)
        found = found + (means - means.detach())  # θ is the mean of those above it, less a constant
    return found


def _thresholds_by_sorting(rows: Tensor, total: float) -> Tensor:
    """Duchi et al. (2008), figure 1. On a GPU nothing waits for it."""
    least = -min(total, torch.finfo(rows.dtype).max)  # no θ is below it, and sums of what is might overflow
    ordered = rows.clamp(min=least).sort(dim=1, descending=True).values
    counts = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    thetas = (ordered.cumsum(dim=1) - total) / counts
    last = ((ordered > thetas).sum(dim=1, keepdim=True) - 1).clamp(min=0)
    return thetas.gather(1, last)


@torch.no_grad()
def _thresholds_by_newton(rows: Tensor, total: float, accuracy: float) -> Tensor | None:
    """The sum falls with θ, and its tangents are below it, as it is convex: so each of Newton's steps leads to θ or
    below it, and mostly 4 to 10 are enough, several times as fast as sorting. Condat (2016), "Fast projection onto the
    simplex and the l1 ball", section 3.1. Most are taken in float32. ``None`` if they lead nowhere, or a number is not
    finite.
    """
    thetas = least = ((rows.sum(dim=1, keepdim=True) - total) / rows.shape[1]).clamp(min=-total)
    if total * rows.shape[1] < torch.finfo(torch.float32).max:
        thetas, _ = _climbed(least.float(), least.float(), rows.float(), total, _ROUGHLY)
    thetas, is_there = _climbed(thetas.to(rows.dtype), least, rows, total, accuracy)
    return thetas if is_there else None


_ROUGHLY = 1e-4


def _climbed(thetas: Tensor, least: Tensor, rows: Tensor, total: float, accuracy: float) -> tuple[Tensor, bool]:
    """Where Newton's steps lead, none of them below the least, and whether the sums are right there."""
    over = torch.empty_like(rows)  # once: to get new memory takes longer than to fill it
    off = torch.full_like(thetas, math.inf)
    for _ in range(_MOST_STEPS):
        torch.sub(rows, thetas, out=over).clamp_(min=0)
        excess = over.sum(dim=1, keepdim=True).sub_(total)
        off = excess.abs()
        if (off <= accuracy * total).all():
            return thetas, True
        above = over.sign_().sum(dim=1, keepdim=True)
        before, thetas = thetas, torch.maximum(thetas + excess / above, least)
        if torch.equal(before, thetas):
            break
    return thetas, bool((off <= _ALMOST * total).all())


_MOST_STEPS, _ALMOST = 32, 1e-6


def _precision(weight: Tensor) -> torch.dtype:
    """In what a sum is found. Where a few values are much larger than the many others, float32 is too coarse."""
    return torch.float64 if weight.is_cpu else accurate_dtype(weight.dtype)


def _sum_rounding(weight: Tensor) -> float:
    """How far a sum may be off, relative to it, by the rounding of its terms, and of adding them up where that is done
    in their own precision."""
    return (8.0 if _precision(weight) == weight.dtype else _ROUNDING) * torch.finfo(weight.dtype).eps


_ROUNDING = 0.75


def _mean_rounding(weight: Tensor, site: Site) -> Tensor:
    """How far a mean may be off by the rounding of its terms, 16 units at their root mean square by √size, and of
    adding them up, 0.3 units (a third more than was seen of up to 3 million terms). The root mean square is that of
    about 64 values of each unit: a pass over all would cost more than the projection."""
    axis = site.unit_dims[0]
    per_place = math.prod(weight.shape[other] for other in site.unit_dims[1:])
    some = weight.narrow(axis, 0, min(weight.shape[axis], max(1, 64 // max(1, per_place))))
    norms = unit_norms(some, site.unit_dims)
    size, seen = weight.numel() // norms.numel(), some.numel() // norms.numel()
    return norms.mul_((16 / math.sqrt(size) + 0.3) / math.sqrt(seen) * torch.finfo(weight.dtype).eps)
