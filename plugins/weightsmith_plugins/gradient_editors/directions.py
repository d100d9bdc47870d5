"""Gradients turned into other directions, or scaled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import ConfigurationError, GradientEditor, Selector, Site, matrices
from weightsmith.joint import joint_norms
from weightsmith.kinds.base import as_it_is
from weightsmith.site import Sharding
from weightsmith.tensors import accurate_dtype, from_unit_matrices, normalize_, scale_, sign_, unit_matrices

from weightsmith_plugins.gradient_editors.clipping import require_positive
from weightsmith_plugins.linear_algebra import symmetric_product

__all__ = ["Centralize", "Noise", "Normalize", "Orthogonalize", "ScaleGradient", "Sign"]


class Centralize(GradientEditor):
    """g ← g − mean(g) within every unit, so that each unit's weights keep their mean.

    Yong et al. (2020), "Gradient centralization", arXiv:2004.01461. Selects matrices: a bias has no unit to centralize.

    >>> Centralize()(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2))
    tensor([[-1.,  1.]])
    """

    default_where: ClassVar[Selector] = matrices
    unitwise: ClassVar[bool] = True

    def edit(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        return gradient - gradient.mean(dim=site.unit_dims, keepdim=True) if site.unit_dims else gradient

    def edit_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        self._unitwise(self._centralize_, as_it_is, gradients, sites, gradients)

    def _centralize_(self, gradient: Tensor, site: Site) -> Tensor:
        return gradient.sub_(gradient.mean(dim=site.unit_dims, keepdim=True)) if site.unit_dims else gradient


class Normalize(GradientEditor):
    """g ← norm · g / ‖g‖ for every weight on its own; a zero gradient stays zero.

    Yu et al. (2017), "Block-normalized gradient method", arXiv:1707.04822.

    Args:
        norm: the norm that every gradient gets, above 0. Default 1.

    >>> Normalize()(torch.tensor([3.0, 4.0]), torch.zeros(2))
    tensor([0.6000, 0.8000])
    """

    sharding: ClassVar[Sharding] = "joint"

    norm: float = 1.0

    def validate(self) -> None:
        require_positive(self, "norm", self.norm)

    def edit(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        length = torch.linalg.vector_norm(gradient, dtype=accurate_dtype(gradient.dtype))
        return (gradient * (self.norm / torch.where(length == 0, 1, length))).to(gradient.dtype)

    def edit_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        if all(site.is_whole for site in sites):
            normalize_(gradients, self.norm)
            return
        lengths = joint_norms(gradients, sites)
        for gradient, factor in zip(gradients, torch.where(lengths == 0, 1.0, self.norm / lengths), strict=True):
            gradient.mul_(factor)


class Sign(GradientEditor):
    """g ← sign(g), 0 at 0: only directions count.

    Bernstein et al. (2018), "signSGD: compressed optimisation for non-convex problems", arXiv:1802.04434.

    >>> Sign()(torch.tensor([-3.0, 0.0, 0.1]), torch.zeros(3))
    tensor([-1.,  0.,  1.])
    """

    sharding: ClassVar[Sharding] = "values"

    def edit(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        return gradient.sign()

    def edit_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        sign_(gradients)


class Orthogonalize(GradientEditor):
    """G ← √max(1, rows / columns) · about UVᵀ, where G = UΣVᵀ: all directions of a matrix are learnt at one speed.

    Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks", on the gradient itself (Muon
    orthogonalizes the momentum). Newton–Schulz: X ← aX + b(XXᵀ)X + c(XXᵀ)²X from X = G / ‖G‖ with (a, b, c) = (3.4445,
    −4.7750, 2.0315), which brings the singular values near 1 (0.7 to 1.2 for those that are not tiny). Units are rows;
    each gate of a recurrent layer is a matrix of its own.

    Args:
        steps: iterations, at least 1. Default 5.

    >>> Orthogonalize()(torch.diag(torch.tensor([3.0, 1.0])), torch.zeros(2, 2)).diag() > 0.6
    tensor([True, True])
    """

    default_where: ClassVar[Selector] = matrices

    steps: int = 5

    def validate(self) -> None:
        require_positive(self, "steps", self.steps)

    def edit(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        given = unit_matrices(gradient, site.unit_dims, site.gates).to(accurate_dtype(gradient.dtype)).squeeze(0)
        tall = given.shape[-2] > given.shape[-1]
        turned = given.mT if tall else given
        norms = torch.linalg.vector_norm(turned, dim=(-2, -1), keepdim=True)
        turned = turned / torch.where(norms > 0, norms, 1)
        multiply_add = torch.addmm if turned.ndim == 2 else torch.baddbmm
        for _ in range(self.steps):
            gram = symmetric_product(turned, turned.mT)
            turned = multiply_add(
                turned, multiply_add(gram, gram, gram, beta=-4.7750, alpha=2.0315), turned, beta=3.4445
            )
        scale = math.sqrt(max(1.0, given.shape[-2] / given.shape[-1]))
        return from_unit_matrices(scale * (turned.mT if tall else turned), gradient, site.unit_dims)


class ScaleGradient(GradientEditor):
    """g ← factor · g: another learning rate for the selected weights (under optimizers that see the scale).

    Args:
        factor: what the gradient is multiplied by.

    >>> ScaleGradient(0.5)(torch.tensor([2.0]), torch.zeros(1))
    tensor([1.])
    """

    sharding: ClassVar[Sharding] = "values"

    factor: float

    def edit(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        return gradient * self.factor

    def edit_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        scale_(gradients, self.factor)


class Noise(GradientEditor):
    """g ← g + ε with ε ~ N(0, std²), independent for every value.

    Neelakantan et al. (2015), "Adding gradient noise improves learning for very deep networks", arXiv:1511.06807; their
    decaying std is a schedule.

    Args:
        std: standard deviation of the noise, at least 0.

    >>> Noise(0.0)(torch.tensor([1.0]), torch.zeros(1))
    tensor([1.])
    """

    sharding: ClassVar[Sharding] = "values"

    std: float

    def validate(self) -> None:
        if not self.std >= 0:
            raise ConfigurationError(f"{self!r}: std must be at least 0, not {self.std}")

    def edit(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        return (gradient + self._noise(gradient, site)).to(gradient.dtype)

    def edit_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        for gradient, site in zip(gradients, sites, strict=True):
            gradient.add_(self._noise(gradient, site))

    def _noise(self, gradient: Tensor, site: Site) -> Tensor:
        """Drawn in the order of the axes, however the gradient lies in memory."""
        dtype = accurate_dtype(gradient.dtype)
        drawn = torch.empty(site.shape, dtype=dtype, device=gradient.device)
        return site.part(drawn.normal_(0.0, self.std, generator=site.generator))
