"""Penalties on the size of weights and of units: what makes them small, or exactly zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Penalty, Site
from weightsmith.kinds.base import as_it_is
from weightsmith.rows import row_lengths
from weightsmith.site import Sharding
from weightsmith.tensors import accurate_dtype, add_, add_signs_, are_large, blocks, unit_norms

from weightsmith_plugins.native.addresses import picked
from weightsmith_plugins.native.compiling import has_own, in_one_pass

__all__ = ["L1", "L2", "ElasticNet", "GroupLasso", "Hoyer", "require_non_negative"]


class L1(Penalty):
    """strength · Σ|w|: pushes small weights to zero.

    Tibshirani (1996), "Regression shrinkage and selection via the lasso".

    Gradient strength · sign(w), 0 at 0; proximal map sign(w) · max(|w| − step · strength, 0), soft thresholding.

    Args:
        strength: cost per unit of |w|, at least 0.

    >>> L1(0.1)(torch.tensor([[1.0, -2.0]]))
    tensor(0.3000)
    """

    sharding: ClassVar[Sharding] = "values"
    unitwise: ClassVar[bool] = True

    strength: float

    def validate(self) -> None:
        require_non_negative(self, "strength", self.strength)

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        return self.strength * weight.abs().sum()

    def gradient(self, weight: Tensor, site: Site) -> Tensor:
        return self.strength * weight.sign()

    def gradient_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        left = in_one_pass("charged_", gradients, weights, signs=self.strength)
        add_signs_(picked(gradients, left), picked(weights, left), self.strength)

    def proximal(self, weight: Tensor, step: Tensor | float, site: Site) -> Tensor:
        return weight.sign() * (weight.abs() - step * self.strength).clamp(min=0)


class L2(Penalty):
    """strength · Σw²: keeps weights small. Hoerl & Kennard (1970), "Ridge regression".

    Gradient 2 · strength · w; proximal map w / (1 + 2 · step · strength). ``mode="decoupled"`` with strength λ/2 is
    AdamW's ``weight_decay=λ``; ``mode="loss"`` with λ/2 is SGD's.

    Args:
        strength: cost per unit of w², at least 0.

    >>> L2(0.1)(torch.tensor([[1.0, -2.0]]))
    tensor(0.5000)
    """

    sharding: ClassVar[Sharding] = "values"
    unitwise: ClassVar[bool] = True

    strength: float

    def validate(self) -> None:
        require_non_negative(self, "strength", self.strength)

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        return self.strength * weight.square().sum()

    def gradient(self, weight: Tensor, site: Site) -> Tensor:
        return (2 * self.strength) * weight

    def gradient_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        add_(gradients, weights, 2 * self.strength)

    def proximal(self, weight: Tensor, step: Tensor | float, site: Site) -> Tensor:
        return weight / (1 + 2 * step * self.strength)


class ElasticNet(Penalty):
    """l1 · Σ|w| + l2 · Σw²: zero for weights that do not matter, small for those that do.

    Zou & Hastie (2005), "Regularization and variable selection via the elastic net". Gradient
    l1 · sign(w) + 2 · l2 · w; proximal map sign(w) · max(|w| − step · l1, 0) / (1 + 2 · step · l2).

    Args:
        l1: cost per unit of |w|, at least 0.
        l2: cost per unit of w², at least 0.

    >>> ElasticNet(0.1, 0.01)(torch.tensor([[1.0, -2.0]]))
    tensor(0.3500)
    """

    sharding: ClassVar[Sharding] = "values"
    unitwise: ClassVar[bool] = True

    l1: float
    l2: float

    def validate(self) -> None:
        require_non_negative(self, "l1", self.l1)
        require_non_negative(self, "l2", self.l2)

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        return self.l1 * weight.abs().sum() + self.l2 * weight.square().sum()

    def gradient(self, weight: Tensor, site: Site) -> Tensor:
        return self.l1 * weight.sign() + (2 * self.l2) * weight

    def gradient_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        left = in_one_pass("charged_", gradients, weights, signs=self.l1, values=2 * self.l2)
        gradients, weights = picked(gradients, left), picked(weights, left)
        add_signs_(gradients, weights, self.l1)
        add_(gradients, weights, 2 * self.l2)

    def proximal(self, weight: Tensor, step: Tensor | float, site: Site) -> Tensor:
        return weight.sign() * (weight.abs() - step * self.l1).clamp(min=0) / (1 + 2 * step * self.l2)


class GroupLasso(Penalty):
    """strength · Σ over units u of √size(u) · ‖w_u‖₂: pushes whole units (rows, filters) to zero.

    Yuan & Lin (2006), "Model selection and estimation in regression with grouped variables". Gradient
    strength · √size · w_u / ‖w_u‖, 0 at a zero unit; proximal map w_u · max(1 − step · strength · √size / ‖w_u‖, 0).

    Args:
        strength: cost per unit of √size · ‖w_u‖₂, at least 0.

    >>> GroupLasso(0.1)(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor(0.7071)
    """

    unitwise: ClassVar[bool] = True

    strength: float

    def validate(self) -> None:
        require_non_negative(self, "strength", self.strength)

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        return self._rate(weight, site) * unit_norms(weight, site.unit_dims).sum().to(weight.dtype)

    def gradient(self, weight: Tensor, site: Site) -> Tensor:
        norms = unit_norms(weight, site.unit_dims)
        return (self._rate(weight, site) * (weight / torch.where(norms == 0, 1, norms))).to(weight.dtype)

    def gradient_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        if not has_own(self, GroupLasso, "_rate"):
            by_rows = row_lengths(sites)
            left = in_one_pass("charged_by_rows_", gradients, weights, rate=self.strength, by_rows=by_rows)
            gradients, weights, sites = picked(gradients, left), picked(weights, left), picked(sites, left)
        if are_large(weights):
            self._singly(self._charge_, as_it_is, gradients, sites, gradients, weights)
        else:
            super().gradient_all_(gradients, weights, sites)

    def _charge_(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        if accurate_dtype(weight.dtype) != weight.dtype:
            return gradient.add_(self.gradient(weight, site))
        norms = unit_norms(weight, site.unit_dims)
        return gradient.addcdiv_(weight, norms.masked_fill_(norms == 0, 1), value=self._rate(weight, site))

    def proximal(self, weight: Tensor, step: Tensor | float, site: Site) -> Tensor:
        norms = unit_norms(weight, site.unit_dims)
        kept = (1 - step * self._rate(weight, site) / torch.where(norms == 0, 1, norms)).clamp(min=0)
        return (weight * kept).to(weight.dtype)

    def _rate(self, weight: Tensor, site: Site) -> float:
        return self.strength * math.sqrt(math.prod(weight.shape[axis] for axis in site.unit_dims))


class Hoyer(Penalty):
    """strength · Σ|w| / √Σw²: pushes weights to zero without shrinking those that stay, whatever their scale.

    Hoyer (2004), "Non-negative matrix factorization with sparseness constraints", arXiv:cs/0408058; Yang, Wen & Li
    (2020), "DeepHoyer", arXiv:1908.09979, whose square is ``squared=True``: strength · (Σ|w|)² / Σw².

    Gradient strength · (sign(w) − w · Σ|w| / Σw²) / √Σw², or 2 · strength · (sign(w) − w · Σ|w| / Σw²) · Σ|w| / Σw²;
    0 at a zero weight. From 1 (one weight left) to √n, or n, for n equal weights, times the strength.

    Args:
        strength: cost per unit of the ratio, at least 0.
        squared: whether to charge the ratio's square. Default false.

    >>> Hoyer(1.0)(torch.tensor([[3.0, 4.0]]))
    tensor(1.4000)
    """

    strength: float
    squared: bool = False

    def validate(self) -> None:
        require_non_negative(self, "strength", self.strength)

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        even, _ = _even(weight)
        total, norm = even.abs().sum(), torch.linalg.vector_norm(even)
        ratio = total / torch.where(norm > 0, norm, 1)
        return (self.strength * (ratio.square() if self.squared else ratio)).to(weight.dtype)

    def gradient(self, weight: Tensor, site: Site) -> Tensor:
        even, peak = _even(weight)
        total, squares = even.abs().sum(), even.square().sum()
        squares = torch.where(squares > 0, squares, 1)
        rate = 2 * total / squares if self.squared else squares.rsqrt()
        slope: Tensor = (self.strength * rate / peak) * (even.sign() - even * (total / squares))
        return slope.to(weight.dtype)

    def gradient_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        self._singly(self._charge_, as_it_is, gradients, sites, gradients, weights)

    def _charge_(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        """As :meth:`gradient`, in place and with little memory. What has squares that may leave the float range, and
        devices for which nothing may wait, go the long way."""
        is_plain = weight.is_cpu and accurate_dtype(weight.dtype) == weight.dtype
        squares = sum(float(part.square().sum()) for (part,) in blocks(weight)) if is_plain else math.nan
        if not _LEAST < squares < _MOST:
            return gradient.add_(self.gradient(weight, site))
        total = sum(float(part.abs().sum()) for (part,) in blocks(weight))
        rate = self.strength * (2 * total / squares if self.squared else 1 / math.sqrt(squares))
        add_signs_([gradient], [weight], rate)
        add_([gradient], [weight], -rate * total / squares)
        return gradient


_LEAST, _MOST = 1e-25, 1e25
"""Sums of squares between which no square that counts leaves the float range."""


def _even(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight divided by its largest magnitude, so that no square is lost, and that magnitude; 1 for zeros."""
    accurate = weight.to(accurate_dtype(weight.dtype))
    peak = accurate.detach().abs().amax() if weight.numel() else accurate.new_ones(())
    peak = torch.where(peak > 0, peak, 1)
    return accurate / peak, peak


def require_non_negative(plugin: Penalty, name: str, value: float) -> None:
    if not value >= 0:
        raise ConfigurationError(f"{plugin!r}: {name} must be at least 0, not {value}")
