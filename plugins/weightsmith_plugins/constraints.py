"""Sets that weights are kept in."""

from __future__ import annotations

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Constraint, Site
from weightsmith.tensors import unit_norms, unit_peaks

__all__ = ["Clamp", "MaxNorm", "NonNegative", "UnitNorm"]


class Clamp(Constraint):
    """low ≤ w ≤ high; the nearest point is min(max(w, low), high).

    With ``mode="forward"`` the layer computes with ``weight.clamp(low, high)``: as in PyTorch, a raw weight outside
    gets no gradient.

    Args:
        low: the least value; ``None`` for no bound.
        high: the largest value; ``None`` for no bound.

    >>> Clamp(-1.0, 1.0)(torch.tensor([[-3.0, 0.5]]))
    tensor([[-1.0000,  0.5000]])
    """

    low: float | None = None
    high: float | None = None

    def validate(self) -> None:
        if self.low is None and self.high is None:
            raise ConfigurationError(f"{self!r}: give low, high or both")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ConfigurationError(f"{self!r}: low must not be above high")

    def project(self, weight: Tensor, site: Site) -> Tensor:
        return weight.clamp(self.low, self.high)

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0  # clamping is exact


class NonNegative(Constraint):
    """w ≥ 0; the nearest point is max(w, 0).

    >>> NonNegative()(torch.tensor([[-3.0, 0.5]]))
    tensor([[0.0000, 0.5000]])
    """

    def project(self, weight: Tensor, site: Site) -> Tensor:
        return weight.clamp(min=0)

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0  # clamping is exact


class MaxNorm(Constraint):
    """‖w_u‖₂ ≤ limit for every unit u; the nearest point is w_u · min(1, limit / ‖w_u‖).

    Srebro & Shraibman (2005), "Rank, trace-norm and max-norm"; Srivastava et al. (2014) for dropout networks.

    Args:
        limit: the largest norm, above 0.

    >>> MaxNorm(1.0)(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """

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


def _even(weight: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    """The weight with every unit's largest magnitude brought to 1, and these magnitudes: so the squares of tiny and
    huge units stay in the float range. A zero unit stays zero."""
    peaks = unit_peaks(weight, site.unit_dims)
    return weight / torch.where(peaks > 0, peaks, 1.0), peaks
