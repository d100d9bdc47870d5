"""How weights start. Each draws a new weight from the one that is there; a layer's fans follow its units."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from weightsmith import ConfigurationError, Initializer, Site
from weightsmith.tensors import accurate_dtype, fans, unit_axis

__all__ = ["Constant", "KaimingNormal", "Orthogonal", "Scale"]


class Constant(Initializer):
    """Every weight is ``value``.

    Args:
        value: the number. Default 0.

    >>> Constant(0.5)(torch.zeros(2, 2))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """

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

    factor: float

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return weight * self.factor


class KaimingNormal(Initializer):
    """w ~ N(0, gain² / fan), which keeps the variance of activations (or gradients) through rectified layers.

    He et al. (2015), "Delving deep into rectifiers", arXiv:1502.01852. gain = √(2 / (1 + a²)) for (leaky) ReLU.

    Args:
        mode: ``"fan_in"`` (default) keeps the variance forward, ``"fan_out"`` backward.
        nonlinearity: what follows the layer, a name that ``torch.nn.init.calculate_gain`` knows. Default
            ``"leaky_relu"``.
        negative_slope: the slope a of a leaky ReLU; 0 (default) is ReLU.

    Shapes: weights with two axes or more.

    >>> drawn = KaimingNormal()(torch.empty(256, 128))
    >>> abs(drawn.std().item() - (2 / 128) ** 0.5) < 0.005
    True
    """

    mode: Literal["fan_in", "fan_out"] = "fan_in"
    nonlinearity: str = "leaky_relu"
    negative_slope: float = 0.0

    def validate(self) -> None:
        if self.mode not in ("fan_in", "fan_out"):
            raise ConfigurationError(f"{self!r}: mode must be 'fan_in' or 'fan_out'")
        try:
            self._gain()
        except ValueError as error:
            raise ConfigurationError(f"{self!r}: {error}") from None

    def _gain(self) -> float:
        return nn.init.calculate_gain(self.nonlinearity, self.negative_slope)  # type: ignore[arg-type]

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        _require_matrix(self, weight, site)
        fan_in, fan_out = fans(weight, site.unit_dims)
        fan = fan_in if self.mode == "fan_in" else fan_out
        return _normal(weight, site) * (self._gain() / math.sqrt(max(fan, 1)))


class Orthogonal(Initializer):
    """Rows (or columns, if there are more rows than columns) orthonormal, times ``gain``; uniformly distributed.

    Saxe et al. (2014), "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
    arXiv:1312.6120. A convolution's filters are taken as rows. The unit axis of a transposed convolution counts rows.

    Args:
        gain: the scale. Default 1.
        gates: into how many blocks along axis 0 the weight of a recurrent layer falls, each drawn on its own;
            ``"auto"`` (default) reads the module: 4 for LSTM, 3 for GRU, else 1.

    Shapes: weights with two axes or more; axis 0 divisible by ``gates``.

    >>> drawn = Orthogonal()(torch.empty(3, 5))
    >>> torch.allclose(drawn @ drawn.T, torch.eye(3), atol=1e-6)
    True
    """

    gain: float = 1.0
    gates: int | str = "auto"

    def validate(self) -> None:
        if self.gates != "auto" and not (isinstance(self.gates, int) and self.gates >= 1):
            raise ConfigurationError(f"{self!r}: gates must be 'auto' or a whole number of at least 1")

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        _require_matrix(self, weight, site)
        gates = self.gates if isinstance(self.gates, int) else site.gates
        if weight.shape[0] % gates:
            raise ConfigurationError(
                f"{self!r}: weight {site.name!r} has {weight.shape[0]} rows, not {gates} equal gates"
            )
        if gates > 1:
            return torch.cat([self._block(gate, 0, site) for gate in weight.chunk(gates)])
        return self._block(weight, unit_axis(weight, site.unit_dims), site)

    def _block(self, block: Tensor, rows: int, site: Site) -> Tensor:
        by_rows = block.movedim(rows, 0)
        # In float32 at least, for which QR is defined.
        drawn = torch.empty(by_rows.shape, dtype=accurate_dtype(block.dtype), device=block.device)
        nn.init.orthogonal_(drawn, self.gain, generator=site.generator)
        return drawn.movedim(0, rows).to(block.dtype)


def _normal(weight: Tensor, site: Site) -> Tensor:
    """Standard normal numbers, drawn in float32 at least, and in index order whatever the weight's memory layout."""
    dtype = accurate_dtype(weight.dtype)
    return torch.randn(weight.shape, generator=site.generator, dtype=dtype, device=weight.device).to(weight.dtype)


def _require_matrix(plugin: Initializer, weight: Tensor, site: Site) -> None:
    if weight.ndim < 2:
        raise ConfigurationError(
            f"{plugin!r}: weight {site.name!r} of shape {tuple(weight.shape)} has no fans: "
            "select weights with two axes or more"
        )
