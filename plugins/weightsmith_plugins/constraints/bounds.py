"""Bounds on every value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Constraint, Site
from weightsmith.site import Sharding
from weightsmith.tensors import clamp_

from weightsmith_plugins.native.addresses import picked
from weightsmith_plugins.native.compiling import in_one_pass

__all__ = ["Clamp", "NonNegative"]


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

    sharding: ClassVar[Sharding] = "values"
    convex: ClassVar[bool] = True
    unitwise: ClassVar[bool] = True

    low: float | None = None
    high: float | None = None

    def validate(self) -> None:
        if self.low is None and self.high is None:
            raise ConfigurationError(f"{self!r}: give low, high or both")
        if any(end is not None and math.isnan(end) for end in (self.low, self.high)):
            raise ConfigurationError(f"{self!r}: low and high must not be NaN: give a number, or None for no bound")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ConfigurationError(f"{self!r}: low must not be above high")
        if self.low == math.inf or self.high == -math.inf:
            raise ConfigurationError(f"{self!r}: no finite number is inside: give None for no bound")

    @property
    def allows_zeros(self) -> bool:
        return (self.low is None or self.low <= 0) and (self.high is None or self.high >= 0)

    def project(self, weight: Tensor, site: Site) -> Tensor:
        return weight.clamp(self.low, self.high)

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        if self.low is not None and self.high is not None:  # for one of them torch takes one call
            weights = picked(weights, in_one_pass("clamped_", weights, low=self.low, high=self.high))
        clamp_(weights, self.low, self.high)

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0  # clamping is exact

    def tangent(self, velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
        below = (weight <= self.low) & (velocity < 0) if self.low is not None else torch.zeros_like(weight).bool()
        above = (weight >= self.high) & (velocity > 0) if self.high is not None else torch.zeros_like(weight).bool()
        return velocity.masked_fill(below | above, 0)


class NonNegative(Constraint):
    """w ≥ 0; the nearest point is max(w, 0).

    >>> NonNegative()(torch.tensor([[-3.0, 0.5]]))
    tensor([[0.0000, 0.5000]])
    """

    sharding: ClassVar[Sharding] = "values"
    convex: ClassVar[bool] = True
    unitwise: ClassVar[bool] = True

    @property
    def allows_zeros(self) -> bool:
        return True

    def project(self, weight: Tensor, site: Site) -> Tensor:
        return weight.clamp(min=0)

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        clamp_(weights, 0.0, None)

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0  # clamping is exact

    def tangent(self, velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
        return velocity.masked_fill((weight <= 0) & (velocity < 0), 0)
