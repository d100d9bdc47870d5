"""Gradients held under a limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor
from weightsmith import ConfigurationError, GradientEditor, Site
from weightsmith.joint import joint_norm
from weightsmith.kinds import WeightPlugin
from weightsmith.kinds.base import as_it_is
from weightsmith.rows import row_lengths
from weightsmith.site import Sharding
from weightsmith.tensors import are_large, clamp_, global_norm, scale_, unit_norms

from weightsmith_plugins.native.addresses import picked
from weightsmith_plugins.native.compiling import compiled_function, has_own, in_one_pass

__all__ = ["AdaptiveClip", "ClipNorm", "ClipUnitNorm", "ClipValue", "require_positive"]


class ClipNorm(GradientEditor):
    """g ← g · min(1, max_norm / ‖g‖), with ‖g‖ over all selected weights together.

    Pascanu et al. (2013), "On the difficulty of training recurrent neural networks", arXiv:1211.5063. Under the limit
    the gradient stays bit for bit as it is. ``torch.nn.utils.clip_grad_norm_`` divides by ‖g‖ + 1e-6 instead, so that
    the two drift apart slowly.

    Args:
        max_norm: the largest norm, above 0.

    >>> ClipNorm(1.0)(torch.tensor([3.0, 4.0]), torch.zeros(2))
    tensor([0.6000, 0.8000])
    """

    sharding: ClassVar[Sharding] = "joint"

    max_norm: float

    def validate(self) -> None:
        require_positive(self, "max_norm", self.max_norm)

    def edit(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        return gradient * self._factor([gradient], [site]).to(gradient.dtype)

    def edit_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        if not gradients:
            return
        factor = self._factor(gradients, sites)
        if not (factor.is_cpu and factor == 1.0):  # elsewhere nothing waits to know
            scale_(gradients, factor)

    def _factor(self, gradients: Sequence[Tensor], sites: Sequence[Site]) -> Tensor:
        return (self.max_norm / joint_norm(gradients, sites, _norm)).clamp(max=1.0)


class ClipUnitNorm(GradientEditor):
    """g_u ← g_u · min(1, max_norm / ‖g_u‖) for every unit u; a bias is one unit. As ``clipnorm`` of Keras's optimizers,
    for units instead of whole weights.

    Args:
        max_norm: the largest norm, above 0.

    >>> ClipUnitNorm(1.0)(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), torch.zeros(2, 2))
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """

    unitwise: ClassVar[bool] = True

    max_norm: float

    def validate(self) -> None:
        require_positive(self, "max_norm", self.max_norm)

    def edit(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        return (gradient * self._factors(gradient, site)).to(gradient.dtype)

    def edit_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        if not has_own(self, ClipUnitNorm, "_factors"):
            left = in_one_pass("clipped_", gradients, limit=self.max_norm, by_rows=row_lengths(sites))
            gradients, sites = picked(gradients, left), picked(sites, left)
        self._unitwise(self._clip_, as_it_is, gradients, sites, gradients)

    def _clip_(self, gradient: Tensor, site: Site) -> Tensor:
        return gradient.mul_(self._factors(gradient, site))

    def _factors(self, gradient: Tensor, site: Site) -> Tensor:
        return unit_norms(gradient, site.unit_dims).div_(self.max_norm).clamp_(min=1.0).reciprocal_()


class ClipValue(GradientEditor):
    """g ← min(max(g, −limit), limit), value by value. ``torch.nn.utils.clip_grad_value_``.

    Args:
        limit: the largest magnitude, above 0.

    >>> ClipValue(1.0)(torch.tensor([-3.0, 0.5]), torch.zeros(2))
    tensor([-1.0000,  0.5000])
    """

    sharding: ClassVar[Sharding] = "values"

    limit: float

    def validate(self) -> None:
        require_positive(self, "limit", self.limit)

    def edit(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        return gradient.clamp(-self.limit, self.limit)

    def edit_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        if are_large(gradients):  # small ones are elsewhere at each update, which costs more than a pass saves
            gradients = picked(gradients, in_one_pass("clamped_", gradients, low=-self.limit, high=self.limit))
        clamp_(gradients, -self.limit, self.limit)


class AdaptiveClip(GradientEditor):
    """g_u ← g_u · min(1, ratio · max(‖w_u‖, eps) / ‖g_u‖) for every unit u: no step larger than a share of its weight.

    Brock et al. (2021), "High-performance large-scale image recognition without normalization", arXiv:2102.06171.

    Args:
        ratio: largest ‖g_u‖ / ‖w_u‖, above 0. Default 0.01.
        eps: the norm that a smaller unit is taken to have, so that zero units can still learn; above 0. Default 1e-3.

    >>> AdaptiveClip(0.1)(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([[0.1200, 0.1600]])
    """

    unitwise: ClassVar[bool] = True

    ratio: float = 0.01
    eps: float = 1e-3

    def validate(self) -> None:
        require_positive(self, "ratio", self.ratio)
        require_positive(self, "eps", self.eps)

    def edit(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        return (gradient * self._factors(gradient, weight, site)).to(gradient.dtype)

    def edit_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        if not has_own(self, AdaptiveClip, "_factors"):
            settings = {"ratio": self.ratio, "least": self.eps, "by_rows": row_lengths(sites)}
            left = in_one_pass("clipped_adaptively_", gradients, weights, **settings)
            gradients, weights, sites = picked(gradients, left), picked(weights, left), picked(sites, left)
        self._unitwise(self._clip_, as_it_is, gradients, sites, gradients, weights)

    def _clip_(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        return gradient.mul_(self._factors(gradient, weight, site))

    def _factors(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        limits = self.ratio * unit_norms(weight, site.unit_dims).clamp(min=self.eps)
        norms = unit_norms(gradient, site.unit_dims)
        return limits.div_(norms).clamp_(max=1.0)


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """As :func:`~weightsmith.tensors.global_norm`, in one compiled pass where there is one."""
    norm_of = compiled_function("norm_of", gradients)
    norm: Tensor | None = None if norm_of is None else norm_of(gradients)
    return global_norm(gradients) if norm is None else norm


def require_positive(plugin: WeightPlugin, name: str, value: float) -> None:
    if not value > 0:
        raise ConfigurationError(f"{plugin!r}: {name} must be above 0, not {value}")
