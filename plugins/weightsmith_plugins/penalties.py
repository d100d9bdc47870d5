"""What weights are charged for. Each says its cost, its gradient and, where known, its proximal map in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Penalty, Site
from weightsmith.tensors import unit_norms

__all__ = ["L1", "L2", "GroupLasso"]


class L1(Penalty):
    """strength · Σ|w|: pushes small weights to zero.

    Tibshirani (1996), "Regression shrinkage and selection via the lasso".

    Gradient strength · sign(w), 0 at 0; proximal map sign(w) · max(|w| − step · strength, 0), soft thresholding.

    Args:
        strength: cost per unit of |w|, at least 0.

    >>> L1(0.1)(torch.tensor([[1.0, -2.0]]))
    tensor(0.3000)
    """

    strength: float

    def validate(self) -> None:
        _require_non_negative(self, self.strength)

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        return self.strength * weight.abs().sum()

    def gradient(self, weight: Tensor, site: Site) -> Tensor:
        return self.strength * weight.sign()

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

    strength: float

    def validate(self) -> None:
        _require_non_negative(self, self.strength)

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        return self.strength * weight.square().sum()

    def gradient(self, weight: Tensor, site: Site) -> Tensor:
        return (2 * self.strength) * weight

    def proximal(self, weight: Tensor, step: Tensor | float, site: Site) -> Tensor:
        return weight / (1 + 2 * step * self.strength)


class GroupLasso(Penalty):
    """strength · Σ over units u of √size(u) · ‖w_u‖₂: pushes whole units (rows, filters) to zero.

    Yuan & Lin (2006), "Model selection and estimation in regression with grouped variables". Gradient
    strength · √size · w_u / ‖w_u‖, 0 at a zero unit; proximal map w_u · max(1 − step · strength · √size / ‖w_u‖, 0).

    Args:
        strength: cost per unit of √size · ‖w_u‖₂, at least 0.

    >>> GroupLasso(0.1)(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor(0.7071)
    """

    strength: float

    def validate(self) -> None:
        _require_non_negative(self, self.strength)

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        return self._rate(weight, site) * unit_norms(weight, site.unit_dims).sum().to(weight.dtype)

    def gradient(self, weight: Tensor, site: Site) -> Tensor:
        norms = unit_norms(weight, site.unit_dims)
        return (self._rate(weight, site) * weight / torch.where(norms > 0, norms, 1)).to(weight.dtype)

    def proximal(self, weight: Tensor, step: Tensor | float, site: Site) -> Tensor:
        norms = unit_norms(weight, site.unit_dims)
        kept = (1 - step * self._rate(weight, site) / torch.where(norms > 0, norms, 1)).clamp(min=0)
        return (weight * kept).to(weight.dtype)

    def _rate(self, weight: Tensor, site: Site) -> float:
        return self.strength * math.sqrt(math.prod(weight.shape[axis] for axis in site.unit_dims))


def _require_non_negative(plugin: Penalty, strength: float) -> None:
    if not strength >= 0:
        raise ConfigurationError(f"{plugin!r}: strength must be at least 0, not {strength}")
