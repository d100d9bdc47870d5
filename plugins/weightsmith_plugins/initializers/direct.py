"""Weights set directly: to a value, to given values, scaled, or drawn from a distribution that you choose."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from weightsmith import ConfigurationError, Initializer, Site
from weightsmith.site import Sharding
from weightsmith.tensors import accurate_dtype

__all__ = ["Constant", "Normal", "Ones", "Scale", "TruncatedNormal", "Uniform", "Values", "Zeros"]


class Zeros(Initializer):
    """Every weight is 0.

    >>> Zeros()(torch.ones(1, 2))
    tensor([[0., 0.]])
    """

    sharding: ClassVar[Sharding] = "values"

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return torch.zeros_like(weight)


class Ones(Initializer):
    """Every weight is 1.

    >>> Ones()(torch.zeros(1, 2))
    tensor([[1., 1.]])
    """

    sharding: ClassVar[Sharding] = "values"

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return torch.ones_like(weight)


class Constant(Initializer):
    """Every weight is ``value``.

    Args:
        value: the number. Default 0.

    >>> Constant(0.5)(torch.zeros(2, 2))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """

    sharding: ClassVar[Sharding] = "values"

    value: float = 0.0

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return torch.full_like(weight, self.value)


class Scale(Initializer):
    """w ← factor · w, with the weight that the model was made with, or that an earlier initializer drew.

    Args:
        factor: the number to multiply by.

    >>> Scale(10.0)(torch.ones(1, 3))
    tensor([[10., 10., 10.]])
    """

    sharding: ClassVar[Sharding] = "values"

    factor: float

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return weight * self.factor


class Values(Initializer):
    """The weight is what you give.

    Args:
        values: nested lists of numbers, or the path of a ``.npy`` file, or of a ``.pt`` file that holds one tensor
            (read with ``weights_only``: no code in it can run). Of the weight's shape.

    Raises:
        ConfigurationError: the shape is another, or the file cannot be read.

    >>> Values([[1, 2], [3, 4]])(torch.zeros(2, 2))
    tensor([[1., 2.],
            [3., 4.]])
    """

    values: Any

    def misfit(self, weight: Tensor, site: Site) -> str:
        shape = self._given().shape
        return "" if shape == weight.shape else f"the values have {tuple(shape)}"

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return self._given().to(weight.device, weight.dtype)

    def _given(self) -> Tensor:
        if not isinstance(self.values, str):
            return torch.tensor(self.values, dtype=torch.float64)
        try:
            if self.values.endswith(".npy"):
                return torch.from_numpy(np.load(self.values, allow_pickle=False))
            found = torch.load(self.values, weights_only=True)
        except Exception as error:
            raise ConfigurationError(f"{self!r}: cannot read the values: {error}") from error
        if not isinstance(found, Tensor):
            raise ConfigurationError(f"{self!r}: the file holds a {type(found).__name__}, not one tensor")
        return found


class Uniform(Initializer):
    """w ~ U(low, high).

    Args:
        low: least value. Default 0.
        high: value that is not reached, above ``low``. Default 1.

    >>> drawn = Uniform(-1.0, 1.0)(torch.empty(50, 50))
    >>> bool((drawn >= -1).all() and (drawn < 1).all())
    True
    """

    low: float = 0.0
    high: float = 1.0

    def validate(self) -> None:
        if not self.low < self.high:
            raise ConfigurationError(f"{self!r}: low must be below high")

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return nn.init.uniform_(blank(weight), self.low, self.high, site.generator).to(weight.dtype)


class Normal(Initializer):
    """w ~ N(mean, std²).

    Args:
        mean: of the distribution. Default 0.
        std: standard deviation, at least 0. Default 1.

    >>> abs(Normal(3.0, 0.1)(torch.empty(50, 50)).mean().item() - 3) < 0.02
    True
    """

    mean: float = 0.0
    std: float = 1.0

    def validate(self) -> None:
        if not self.std >= 0:
            raise ConfigurationError(f"{self!r}: std must be at least 0")

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return nn.init.normal_(blank(weight), self.mean, self.std, site.generator).to(weight.dtype)


class TruncatedNormal(Initializer):
    """w ~ N(mean, std²), given that low ≤ w ≤ high. As ``torch.nn.init.trunc_normal_``.

    Args:
        mean: of the normal distribution. Default 0.
        std: its standard deviation, above 0, before it is cut. Default 1.
        low: least value. Default -2.
        high: largest value, above ``low``. Default 2.

    >>> TruncatedNormal(std=5.0)(torch.empty(50, 50)).abs().max().item() <= 2
    True
    """

    mean: float = 0.0
    std: float = 1.0
    low: float = -2.0
    high: float = 2.0

    def validate(self) -> None:
        if not self.std > 0:
            raise ConfigurationError(f"{self!r}: std must be above 0")
        if not self.low < self.high:
            raise ConfigurationError(f"{self!r}: low must be below high")
        if self.low > self.mean + 2 * self.std or self.high < self.mean - 2 * self.std:
            raise ConfigurationError(
                f"{self!r}: the mean lies more than 2 std outside [low, high], where drawing is inexact"
            )

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        drawn = nn.init.trunc_normal_(blank(weight), self.mean, self.std, self.low, self.high, site.generator)
        return drawn.to(weight.dtype)


def blank(weight: Tensor) -> Tensor:
    """Room to draw in: float32 at least, and contiguous, so that draws depend on neither dtype nor memory layout."""
    return torch.empty(weight.shape, dtype=accurate_dtype(weight.dtype), device=weight.device)
