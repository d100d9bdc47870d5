"""Weights of few bits: trained as if quantized, and then quantized."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from weightsmith import ConfigurationError, Parametrization, Site, Trainer
from weightsmith.parametrization import Parametrized
from weightsmith.tensors import accurate_dtype, unit_dims, unit_peaks

__all__ = ["FakeQuantize", "to_int8"]


class FakeQuantize(Parametrization):
    """The layer computes with s · clamp(round(w / s), −q, q), q = 2^(bits − 1) − 1: the weight as it will be with so
    few bits. The gradient goes straight through, and is 0 where the clamp acts.

    Jacob et al. (2018), "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
    arXiv:1712.05877; Bengio, Léonard & Courville (2013), arXiv:1308.3432, for the gradient. Symmetric, without a zero
    point, as weights are quantized for integer matrix products. :func:`to_int8` makes integers of it.

    Args:
        bits: bits per value, the sign among them, at least 2; a schedule may lower it, rounded. Default 8.
        per_unit: whether every unit has a scale s of its own, or the weight one. Default true.
        observer: how s is found from the weight, anew in every forward pass: ``"minmax"`` (default), max|w| / q; or
            ``"mse"``, the one of 32 fractions of that with the least squared error.

    >>> FakeQuantize(2)(torch.tensor([[0.9, -1.0, 0.4]]))
    tensor([[ 1., -1.,  0.]])
    """

    bits: int = 8
    per_unit: bool = True
    observer: str = "minmax"

    def validate(self) -> None:
        if not self.bits >= 2:
            raise ConfigurationError(f"{self!r}: bits must be at least 2")
        if self.observer not in ("minmax", "mse"):
            raise ConfigurationError(f"{self!r}: observer must be 'minmax' or 'mse'")

    def forward(self, weight: Tensor, site: Site) -> Tensor:
        accurate = weight.to(accurate_dtype(weight.dtype))
        scale, most = self.scale(accurate, site.unit_dims), self._most()
        clamped = torch.clamp(accurate, -most * scale, most * scale)
        rounded = (clamped / scale).round() * scale
        return (clamped + (rounded - clamped).detach()).to(weight.dtype)

    def right_inverse(self, weight: Tensor, site: Site) -> Tensor:
        return weight

    @torch.no_grad()
    def scale(self, weight: Tensor, dims: tuple[int, ...]) -> Tensor:
        """s, with the axes over which it is shared kept; above 0."""
        if not self.per_unit:
            dims = tuple(range(weight.ndim))
        peaks = unit_peaks(weight, dims)
        widest = torch.where(peaks > 0, peaks, 1) / self._most()
        return widest if self.observer == "minmax" else self._least_error(weight, widest, dims)

    def _least_error(self, weight: Tensor, widest: Tensor, dims: tuple[int, ...]) -> Tensor:
        best, least = widest, torch.full_like(widest, torch.inf)
        for part in range(32, 0, -1):
            scale = widest * (part / 32)
            error = (weight - (weight / scale).round().clamp(-self._most(), self._most()) * scale).square()
            error = error.sum(dim=dims, keepdim=True) if dims else error
            best = torch.where(error < least, scale, best)
            least = torch.minimum(error, least)
        return best

    def _most(self) -> int:
        return int(2 ** (round(self.bits) - 1)) - 1


def to_int8(trainer: Trainer) -> nn.Module:
    """A copy of a trainer's model whose fake-quantized layers hold their weights as 8-bit integers.

    By the dynamic quantization of the installed torch (``torch.ao.nn.quantized.dynamic``): activations are quantized as
    they come, which torch calls inaccurate for convolutions: compare before you rely on it. The integers times their
    scales are exactly the weights that the model was trained with. For the CPU, in evaluation only; the other layers
    stay as they are.

    Raises:
        ConfigurationError: no layer is fake-quantized to 8 bits or fewer, or one is neither linear nor a convolution
            with zero padding.
    """
    model = copy.deepcopy(trainer.model).cpu().eval()
    found = [(name, layer, plugin) for name, layer in model.named_modules() if (plugin := _quantizer(layer))]
    if not found:
        raise ConfigurationError("to_int8: no layer has its weight under a FakeQuantize with 8 bits or fewer")
    with warnings.catch_warnings():  # deprecated in favour of a package of its own, but there in every torch so far
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated")
        warnings.filterwarnings("ignore", message="torch.quantize_per")
        warnings.filterwarnings("ignore", message=".*has poor numerical accuracy")
        for name, layer, plugin in found:
            integers = _integers(name, layer, plugin)
            if not name:
                return integers
            model.set_submodule(name, integers)
    return model


def _quantizer(layer: nn.Module) -> Any:
    """The plugin that quantizes a layer's weight; it may be at another number of bits by now."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    for parametrization in layer.parametrizations["weight"]:  # type: ignore[index]
        if isinstance(parametrization, Parametrized) and isinstance(parametrization.binding.plugin, FakeQuantize):
            plugin = parametrization.binding.current()
            return plugin if round(plugin.bits) <= 8 else None
    return None


def _integers(name: str, layer: Any, plugin: FakeQuantize) -> nn.Module:
    from torch.ao.nn.quantized import dynamic

    kinds: dict[type[nn.Module], Any] = {
        nn.Conv1d: dynamic.Conv1d,
        nn.Conv2d: dynamic.Conv2d,
        nn.Conv3d: dynamic.Conv3d,
    }
    kind = nn.Conv1d
    if not isinstance(layer, nn.Linear):
        kind = next((kind for kind in kinds if isinstance(layer, kind)), None)  # type: ignore[assignment]
        if kind is None or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise ConfigurationError(
                f"to_int8: {name or 'the model'!r} is a {layer}: only linear layers and convolutions with zero padding "
                "can be made of integers"
            )
    raw = layer.parametrizations["weight"].original.detach()
    dims = unit_dims(raw.ndim, layer)
    scales = plugin.scale(raw, dims).expand(raw.shape[0], *[1] * (raw.ndim - 1)).flatten().double()
    zeros = torch.zeros(raw.shape[0], dtype=torch.long)
    quantized = torch.quantize_per_channel(layer.weight.detach().float(), scales, zeros, 0, torch.qint8)
    bias = None if layer.bias is None else layer.bias.detach().float()
    if isinstance(layer, nn.Linear):
        make: Any = dynamic.Linear
        integers: Any = make(layer.in_features, layer.out_features, bias is not None)
    else:
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        integers = kinds[kind](*sizes, layer.groups, bias is not None)
    integers.set_weight_bias(quantized, bias)
    made: nn.Module = integers
    return made
