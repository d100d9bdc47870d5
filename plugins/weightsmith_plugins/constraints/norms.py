"""Bounds on the norm, the sum or the mean of every unit."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Constraint, Site
from weightsmith.tensors import accurate_dtype, from_unit_matrices, unit_matrices, unit_norms, unit_peaks

__all__ = ["L1Ball", "MaxNorm", "MinMaxNorm", "Simplex", "UnitNorm", "ZeroMean"]


class MaxNorm(Constraint):
    """‖w_u‖₂ ≤ limit for every unit u; the nearest point is w_u · min(1, limit / ‖w_u‖).

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

    def project(self, weight: Tensor, site: Site) -> Tensor:
        even, peaks = _even(weight, site)
        norms = unit_norms(even, site.unit_dims)
        # Inside units are taken as they are, and their norm (0 at a zero unit) stays out of the gradient.
        outside = norms * peaks > self.limit
        scaled = even * (self.limit / torch.where(outside, norms, 1.0))
        return torch.where(outside, scaled.to(weight.dtype), weight)

    def tangent(self, velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
        at_limit = unit_norms(weight, site.unit_dims) >= self.limit * (1 - 1e-5)
        outward = torch.where(at_limit, _along(velocity, weight, site).clamp(min=0), 0)
        return (velocity - outward * _unit(weight, site)).to(velocity.dtype)


class MinMaxNorm(Constraint):
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

    def project(self, weight: Tensor, site: Site) -> Tensor:
        even, peaks = _even(weight, site)
        even = torch.where(peaks > 0, even, 1.0)
        directions = even / unit_norms(even, site.unit_dims)
        norms = unit_norms(even.detach(), site.unit_dims) * peaks
        inside = (norms >= self.low) & (norms <= self.high)
        bounded = directions * norms.clamp(self.low, self.high)
        return torch.where(inside, weight, bounded.to(weight.dtype))


class UnitNorm(Constraint):
    """‖w_u‖₂ = 1 for every unit u; the nearest point is w_u / ‖w_u‖.

    All points of the sphere are equally near to a zero unit: it becomes the unit whose values are all equal,
    1 / √size. With ``mode="forward"`` a zero unit gets no gradient.

    >>> UnitNorm()(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.7071, 0.7071]])
    """

    def project(self, weight: Tensor, site: Site) -> Tensor:
        even, peaks = _even(weight, site)
        even = torch.where(peaks > 0, even, 1.0)
        return (even / unit_norms(even, site.unit_dims)).to(weight.dtype)

    def tangent(self, velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
        return (velocity - _along(velocity, weight, site) * _unit(weight, site)).to(velocity.dtype)


class ZeroMean(Constraint):
    """mean(w_u) = 0 for every unit u; the nearest point is w_u − mean(w_u).

    Qiao et al. (2019), "Micro-batch training with batch-channel normalization and weight standardization",
    arXiv:1903.10520, without its division by the standard deviation.

    >>> ZeroMean()(torch.tensor([[1.0, 3.0]]))
    tensor([[-1.,  1.]])
    """

    convex: ClassVar[bool] = True

    def project(self, weight: Tensor, site: Site) -> Tensor:
        return weight - weight.mean(dim=site.unit_dims, keepdim=True) if site.unit_dims else torch.zeros_like(weight)

    def tolerance(self, projected: Tensor, site: Site) -> Tensor | float:
        # A mean of rounded values is as far from 0 as their rounding errors add up.
        size = projected.numel() // unit_peaks(projected, site.unit_dims).numel()
        return super().tolerance(projected, site) * max(1.0, math.sqrt(size) / 4)

    def tangent(self, velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
        return self.project(velocity, site)


class L1Ball(Constraint):
    """Σ|w| ≤ radius for every unit; the nearest point is sign(w) · max(|w| − θ, 0), with θ such that the sum is radius.

    Duchi et al. (2008), "Efficient projections onto the l1-ball for learning in high dimensions": sparse units.

    Args:
        radius: the largest sum of magnitudes, above 0.

    >>> L1Ball(1.0)(torch.tensor([[1.5, -1.0], [0.3, 0.4]]))
    tensor([[ 0.7500, -0.2500],
            [ 0.3000,  0.4000]])
    """

    convex: ClassVar[bool] = True

    radius: float

    def validate(self) -> None:
        if not self.radius > 0:
            raise ConfigurationError(f"{self!r}: radius must be above 0")

    def project(self, weight: Tensor, site: Site) -> Tensor:
        accurate = weight.to(accurate_dtype(weight.dtype))
        outside = unit_norms(accurate, site.unit_dims, order=1.0) > self.radius
        shrunk = accurate.sign() * (accurate.abs() - _threshold(accurate.abs(), self.radius, site)).clamp(min=0)
        return torch.where(outside, shrunk.to(weight.dtype), weight)


class Simplex(Constraint):
    """w ≥ 0 and Σw = total for every unit: mixing weights. The nearest point is max(w − θ, 0), with θ such that the sum
    is total.

    Duchi et al. (2008), "Efficient projections onto the l1-ball for learning in high dimensions", figure 1.

    Args:
        total: the sum of every unit, above 0. Default 1.

    >>> Simplex()(torch.tensor([[0.5, 1.5, -1.0]]))
    tensor([[0., 1., 0.]])
    """

    convex: ClassVar[bool] = True

    total: float = 1.0

    def validate(self) -> None:
        if not self.total > 0:
            raise ConfigurationError(f"{self!r}: total must be above 0")

    def project(self, weight: Tensor, site: Site) -> Tensor:
        accurate = weight.to(accurate_dtype(weight.dtype))
        return (accurate - _threshold(accurate, self.total, site)).clamp(min=0).to(weight.dtype)


def _threshold(values: Tensor, total: float, site: Site) -> Tensor:
    """θ for every unit, such that Σ max(values − θ, 0) = total."""
    rows = unit_matrices(values, site.unit_dims)[0]
    rows = rows - rows.amax(dim=1, keepdim=True)  # so that huge values do not swamp the total
    ordered = rows.sort(dim=1, descending=True).values
    counts = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    thetas = (ordered.cumsum(dim=1) - total) / counts
    last = ((ordered > thetas).sum(dim=1, keepdim=True) - 1).clamp(min=0)
    theta = thetas.gather(1, last)
    tops = unit_matrices(values, site.unit_dims)[0].amax(dim=1, keepdim=True)
    return from_unit_matrices((theta + tops).expand_as(rows), values, site.unit_dims)


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
    peaks = unit_peaks(weight, site.unit_dims)
    return weight / torch.where(peaks > 0, peaks, 1.0), peaks
