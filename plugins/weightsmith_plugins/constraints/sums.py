"""Bounds on the sum, of values or of magnitudes, of every unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Constraint, Site
from weightsmith.kinds.base import as_it_is
from weightsmith.tensors import accurate_dtype, are_large, from_unit_matrices, unit_matrices, unit_norms

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
    unitwise: ClassVar[bool] = True

    radius: float

    def validate(self) -> None:
        if not self.radius > 0:
            raise ConfigurationError(f"{self!r}: radius must be above 0")

    @property
    def allows_zeros(self) -> bool:
        return True

    def project(self, weight: Tensor, site: Site) -> Tensor:
        accurate = weight.to(accurate_dtype(weight.dtype))
        inside = unit_norms(accurate, site.unit_dims, order=1.0) <= self.radius * (1 + _sum_rounding(weight))
        shrunk = accurate.sign() * _to_simplex(accurate.abs(), self.radius, site)
        return torch.where(inside, weight, shrunk.to(weight.dtype))

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0


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
    unitwise: ClassVar[bool] = True

    total: float = 1.0

    def validate(self) -> None:
        if not self.total > 0:
            raise ConfigurationError(f"{self!r}: total must be above 0")

    def project(self, weight: Tensor, site: Site) -> Tensor:
        accurate = weight.to(accurate_dtype(weight.dtype))
        projected = _to_simplex(accurate, self.total, site).to(weight.dtype)
        if torch.is_grad_enabled() and weight.requires_grad:
            return projected
        off = (accurate.sum(dim=site.unit_dims, keepdim=True) - self.total).abs()
        inside = (off <= self.total * _sum_rounding(weight)) & (accurate.amin(dim=site.unit_dims, keepdim=True) >= 0)
        return torch.where(inside, weight, projected)

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0


def _to_simplex(values: Tensor, total: float, site: Site) -> Tensor:
    """max(values − θ, 0) for every unit, with θ such that the sum is ``total``."""
    rows = unit_matrices(values, site.unit_dims)[0]
    rows = rows - rows.amax(dim=1, keepdim=True)  # so that huge values do not swamp the total
    ordered = rows.sort(dim=1, descending=True).values
    counts = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    thetas = (ordered.cumsum(dim=1) - total) / counts
    last = ((ordered > thetas).sum(dim=1, keepdim=True) - 1).clamp(min=0)
    return from_unit_matrices((rows - thetas.gather(1, last)).clamp(min=0), values, site.unit_dims)


def _sum_rounding(weight: Tensor) -> float:
    """How far a sum of magnitudes may be off, relative to it, by the rounding of its terms and of adding them up."""
    half = accurate_dtype(weight.dtype) != weight.dtype
    return (0.75 if half else 8.0) * torch.finfo(weight.dtype).eps


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
