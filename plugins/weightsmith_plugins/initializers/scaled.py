"""Weights whose variance follows the number of inputs and outputs of their layer."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from weightsmith import ConfigurationError, Initializer, Site
from weightsmith.tensors import fans

from weightsmith_plugins.initializers.direct import blank
from weightsmith_plugins.shapes import no_units

__all__ = [
    "KaimingNormal",
    "KaimingUniform",
    "LecunNormal",
    "LecunUniform",
    "MatrixInitializer",
    "VarianceScaling",
    "XavierNormal",
    "XavierUniform",
]

Mode = Literal["fan_in", "fan_out", "fan_avg"]
Distribution = Literal["normal", "uniform", "truncated_normal"]

# The standard deviation of a standard normal number that is cut at ±2.
_CUT_STD = 0.87962566103423978


class MatrixInitializer(Initializer, abstract=True):
    """An initializer of weights whose outputs sum over inputs: not of biases and scales."""

    def misfit(self, weight: Tensor, site: Site) -> str:
        return no_units(weight)


class VarianceScaling(MatrixInitializer):
    """Var(w) = scale / fan: the scheme of which Xavier's, Kaiming's and LeCun's are cases. As Keras and JAX.

    Args:
        scale: of the variance, above 0. Default 1.
        mode: ``"fan_in"`` (default), inputs of one output; ``"fan_out"``, outputs of one input; ``"fan_avg"``,
            their mean.
        distribution: ``"truncated_normal"`` (default), cut at two standard deviations and widened so that the variance
            is exact; ``"normal"``; or ``"uniform"``.

    Shapes: weights with two axes or more.

    >>> import torch
    >>> drawn = VarianceScaling(2.0)(torch.empty(256, 128))
    >>> abs(drawn.var().item() - 2 / 128) < 0.001
    True
    """

    scale: float = 1.0
    mode: Literal["fan_in", "fan_out", "fan_avg"] = "fan_in"
    distribution: Literal["truncated_normal", "normal", "uniform"] = "truncated_normal"

    def validate(self) -> None:
        if not self.scale > 0:
            raise ConfigurationError(f"{self!r}: scale must be above 0")

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return scaled(weight, site, self.scale, self.mode, self.distribution)


class XavierUniform(MatrixInitializer):
    """w ~ U(−a, a) with Var(w) = gain² / fan_avg.

    Glorot & Bengio (2010), "Understanding the difficulty of training deep feedforward neural networks".

    Args:
        gain: factor on the standard deviation, above 0. Default 1.

    Shapes: weights with two axes or more.

    >>> import torch
    >>> XavierUniform()(torch.empty(3, 3)).abs().max().item() <= 1
    True
    """

    gain: float = 1.0

    def validate(self) -> None:
        _require_positive_gain(self, self.gain)

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return scaled(weight, site, self.gain**2, "fan_avg", "uniform")


class XavierNormal(MatrixInitializer):
    """w ~ N(0, gain² / fan_avg). Glorot & Bengio (2010), as :class:`XavierUniform`.

    Args:
        gain: factor on the standard deviation, above 0. Default 1.

    Shapes: weights with two axes or more.

    >>> import torch
    >>> abs(XavierNormal()(torch.empty(200, 100)).std().item() - (2 / 300) ** 0.5) < 0.002
    True
    """

    gain: float = 1.0

    def validate(self) -> None:
        _require_positive_gain(self, self.gain)

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return scaled(weight, site, self.gain**2, "fan_avg", "normal")


class Kaiming(MatrixInitializer, abstract=True):
    """What both of Kaiming's initializers share."""

    mode: Literal["fan_in", "fan_out"] = "fan_in"
    nonlinearity: str = "leaky_relu"
    negative_slope: float = 0.0

    def validate(self) -> None:
        try:
            self._gain()
        except ValueError as error:
            raise ConfigurationError(f"{self!r}: {error}") from None

    def _gain(self) -> float:
        return nn.init.calculate_gain(self.nonlinearity, self.negative_slope)  # type: ignore[arg-type]


class KaimingNormal(Kaiming):
    """w ~ N(0, gain² / fan), which keeps the variance of activations (or gradients) through rectified layers.

    He et al. (2015), "Delving deep into rectifiers", arXiv:1502.01852. gain = √(2 / (1 + a²)) for (leaky) ReLU.

    Args:
        mode: ``"fan_in"`` (default) keeps the variance forward, ``"fan_out"`` backward.
        nonlinearity: what follows the layer, a name that ``torch.nn.init.calculate_gain`` knows. Default
            ``"leaky_relu"``.
        negative_slope: the slope a of a leaky ReLU; 0 (default) is ReLU.

    Shapes: weights with two axes or more.

    >>> import torch
    >>> drawn = KaimingNormal()(torch.empty(256, 128))
    >>> abs(drawn.std().item() - (2 / 128) ** 0.5) < 0.005
    True
    """

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return scaled(weight, site, self._gain() ** 2, self.mode, "normal")


class KaimingUniform(Kaiming):
    """w ~ U(−a, a) with Var(w) = gain² / fan. He et al. (2015), as :class:`KaimingNormal`.

    Args:
        mode: ``"fan_in"`` (default) keeps the variance forward, ``"fan_out"`` backward.
        nonlinearity: what follows the layer, a name that ``torch.nn.init.calculate_gain`` knows. Default
            ``"leaky_relu"``.
        negative_slope: the slope of a leaky ReLU; 0 (default) is ReLU.

    Shapes: weights with two axes or more.

    >>> import torch
    >>> KaimingUniform()(torch.empty(6, 6)).abs().max().item() <= 1
    True
    """

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return scaled(weight, site, self._gain() ** 2, self.mode, "uniform")


class LecunNormal(MatrixInitializer):
    """w normal, cut at two standard deviations, with Var(w) = 1 / fan_in: for self-normalising networks.

    LeCun et al. (1998), "Efficient BackProp"; Klambauer et al. (2017), arXiv:1706.02515. As in Keras and JAX.

    Shapes: weights with two axes or more.

    >>> import torch
    >>> abs(LecunNormal()(torch.empty(200, 100)).std().item() - 0.1) < 0.003
    True
    """

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return scaled(weight, site, 1.0, "fan_in", "truncated_normal")


class LecunUniform(MatrixInitializer):
    """w ~ U(−√(3 / fan_in), √(3 / fan_in)), so that Var(w) = 1 / fan_in. LeCun et al. (1998), "Efficient BackProp".

    Shapes: weights with two axes or more.

    >>> import torch
    >>> LecunUniform()(torch.empty(5, 3)).abs().max().item() <= 1
    True
    """

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return scaled(weight, site, 1.0, "fan_in", "uniform")


def scaled(weight: Tensor, site: Site, scale: float, mode: Mode, distribution: Distribution) -> Tensor:
    """A draw with mean 0 and variance scale / fan."""
    fan_in, fan_out = fans(weight, site.unit_dims)
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    std = math.sqrt(scale / max(fan, 1))
    drawn, generator = blank(weight), site.generator
    if distribution == "uniform":
        nn.init.uniform_(drawn, -math.sqrt(3) * std, math.sqrt(3) * std, generator)
    elif distribution == "normal":
        nn.init.normal_(drawn, 0.0, std, generator)
    else:
        wide = std / _CUT_STD
        nn.init.trunc_normal_(drawn, 0.0, wide, -2 * wide, 2 * wide, generator)
    return drawn.to(weight.dtype)


def _require_positive_gain(plugin: Initializer, gain: float) -> None:
    if not gain > 0:
        raise ConfigurationError(f"{plugin!r}: gain must be above 0")
