"""Edits of the weight after the optimizer's step."""

from __future__ import annotations

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Site, WeightEditor
from weightsmith.tensors import accurate_dtype

__all__ = ["Decay", "GradientStep", "Perturb"]


class GradientStep(WeightEditor):
    """w ← w − rate · g: a plain step along the gradient, beside whatever the optimizer does.

    Args:
        rate: the step's length per unit of gradient.

    >>> GradientStep(0.5)(torch.tensor([1.0]), torch.tensor([1.0]))
    tensor([0.5000])
    """

    rate: float

    def edit(self, weight: Tensor, gradient: Tensor, site: Site) -> Tensor:
        return weight - self.rate * gradient


class Decay(WeightEditor):
    """w ← (1 − rate) · w after every update, independent of the learning rate.

    Hanson & Pratt (1988), "Comparing biases for minimal network construction with back-propagation".

    Args:
        rate: the share that is lost per update, from 0 to 1.

    >>> Decay(0.1)(torch.tensor([1.0]))
    tensor([0.9000])
    """

    rate: float

    def validate(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigurationError(f"{self!r}: rate must be from 0 to 1")

    def edit(self, weight: Tensor, gradient: Tensor, site: Site) -> Tensor:
        return weight * (1 - self.rate)


class Perturb(WeightEditor):
    """w ← w + ε with ε ~ N(0, std²), independent for every weight.

    An, G. (1996), "The effects of adding noise during backpropagation training on a generalization performance".

    Args:
        std: standard deviation of the noise, at least 0.

    >>> Perturb(0.0)(torch.tensor([1.0]))
    tensor([1.])
    """

    std: float

    def validate(self) -> None:
        if not self.std >= 0:
            raise ConfigurationError(f"{self!r}: std must be at least 0")

    def edit(self, weight: Tensor, gradient: Tensor, site: Site) -> Tensor:
        dtype = accurate_dtype(weight.dtype)
        noise = torch.randn(weight.shape, generator=site.generator, dtype=dtype, device=weight.device)
        return weight + (self.std * noise).to(weight.dtype)
