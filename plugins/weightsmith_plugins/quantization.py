"""Weights of few bits: trained as if quantized, and then quantized."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from weightsmith import ConfigurationError, Parametrization, Site, Trainer
from weightsmith.parametrization import Parametrized
from weightsmith.tensors import accurate_dtype, unit_dims, unit_peaks

__all__ = ["FakeQuantize", "to_int8"]

logger = logging.getLogger(__name__)


class FakeQuantize(Parametrization):
    """The layer computes with s · clamp(round(w / s), −q, q), q = 2^(bits − 1) − 1: the weight as it will be with so
    few bits. The gradient goes straight through, and is 0 where the clamp acts, that is where |round(w / s)| > q.

    Jacob et al. (2018), "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
    arXiv:1712.05877; Bengio, Léonard & Courville (2013), arXiv:1308.3432, for the gradient. Symmetric, without a zero
    point, as weights are quantized for integer matrix products. :func:`to_int8` makes integers of it.

    Args:
        bits: bits per value, the sign among them, at least 2; a schedule may lower it, rounded. Default 8.
        per_unit: whether every unit has a scale s of its own, or the weight one. Default true.
        observer: how s is found from the weight, anew in every forward pass: ``"minmax"`` (default), max|w| / q; or
            ``"mse"``, the one of 32 fractions of that with the least squared error. Never below the least normal
            number.

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
        whole = (accurate.detach() / scale).round()
        passed = accurate * (whole.abs() <= most)
        return ((whole.clamp(-most, most) * scale) + (passed - passed.detach())).to(weight.dtype)

    def right_inverse(self, weight: Tensor, site: Site) -> Tensor:
        return weight

    @torch.no_grad()
    def scale(self, weight: Tensor, dims: tuple[int, ...]) -> Tensor:
        """s, with the axes over which it is shared kept; above 0; float32 for half precisions."""
        weight = weight.to(accurate_dtype(weight.dtype))
        if not self.per_unit:
            dims = tuple(range(weight.ndim))
        peaks = unit_peaks(weight, dims)
        widest = _normal(torch.where(peaks > 0, peaks, 1) / self._most())
        return widest if self.observer == "minmax" else self._least_error(weight, widest, dims)

    def _least_error(self, weight: Tensor, widest: Tensor, dims: tuple[int, ...]) -> Tensor:
        best, least = widest, torch.full_like(widest, torch.inf)
        for part in range(32, 0, -1):
            scale = _normal(widest * (part / 32))
            error = (weight - (weight / scale).round().clamp(-self._most(), self._most()) * scale).square()
            error = error.sum(dim=dims, keepdim=True) if dims else error
            best = torch.where(error < least, scale, best)
            least = torch.minimum(error, least)
        return best

    def _most(self) -> int:
        return int(2 ** (round(self.bits) - 1)) - 1


def to_int8(trainer: Trainer) -> nn.Module:
    """A copy of a trainer's model, in float32, whose fake-quantized layers hold their weights as 8-bit integers.

    By the dynamic quantization of the installed torch (``torch.ao.nn.quantized.dynamic``): activations are quantized as
    they come, which torch does badly for convolutions (outputs off by half and more behind a ReLU were seen): compare.
    The integers times their scales are the weights that the model was trained with, to within the rounding of its own
    dtype. For the CPU, in evaluation only.

    Linear layers, and convolutions with zero padding, become integers, subclasses with code of their own excepted.
    Other layers stay as they are; a warning names those of them that are fake-quantized.

    Raises:
        ConfigurationError: no layer can be made of integers of 8 bits or fewer, or another parametrization stands after
            a FakeQuantize, so that the layer computes with something else.
    """
    model = _copied(trainer.model).cpu().eval()
    found = list(_fake_quantized(model))
    problems = {fake.name: problem for fake in found if (problem := fake.problem())}
    if len(problems) == len(found):
        raise ConfigurationError(
            "to_int8: no layer has its weight under a FakeQuantize with 8 bits or fewer"
            + "".join(f"; {name!r} {problem}" for name, problem in problems.items())
        )
    if problems:
        logger.warning("to_int8: these weights stay as they are: %s", problems)
    with warnings.catch_warnings():  # deprecated in favour of a package of its own, but there in every torch so far
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated")
        warnings.filterwarnings("ignore", message="torch.quantize_per")
        warnings.filterwarnings("ignore", message=".*has poor numerical accuracy")
        integers = {fake.layer_name: fake.integers() for fake in found if fake.name not in problems}
    rough = [fake.name for fake in found if fake.name not in problems and not isinstance(fake.layer, nn.Linear)]
    if rough:
        logger.warning("to_int8: torch computes convolutions of integers badly: compare, or leave out %s", rough)
    for name, layer in integers.items():
        if not name:
            return layer
        model.set_submodule(name, layer)
    return model.float()


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy. What layers keep of their last forward pass, as an LSTM does its computed weights, is no leaf of a
    graph, which torch refuses to copy: the copy gets the values."""
    kept = [value for layer in model.modules() for value in vars(layer).values()]
    tensors = [t for value in kept for t in (value if isinstance(value, list) else [value]) if isinstance(t, Tensor)]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in tensors if not tensor.is_leaf})


@dataclass(frozen=True)
class _Fake:
    """A weight under a FakeQuantize.

    Attributes:
        layer_name: its layer's name in the model.
        layer: its layer.
        owner: the module of which that is a part.
        leaf: what the layer calls it.
        place: where in the stack of its parametrizations the FakeQuantize stands.
    """

    layer_name: str
    layer: Any
    owner: nn.Module
    leaf: str
    place: int

    @property
    def name(self) -> str:
        return f"{self.layer_name}.{self.leaf}" if self.layer_name else self.leaf

    @property
    def plugin(self) -> FakeQuantize:
        """As it is now: it may be at another number of bits than at the start."""
        plugin: FakeQuantize = self._stack()[self.place].binding.current()
        return plugin

    def problem(self) -> str:
        """Why the layer stays as it is; empty if it need not."""
        kind = parametrize.type_before_parametrizations(self.layer)
        if round(self.plugin.bits) > 8:
            return f"has {round(self.plugin.bits)} bits"
        if self.leaf != "weight" or kind not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            return f"is in a {kind.__name__}, and only linear layers and convolutions can be made of integers"
        if kind is not nn.Linear and (self.layer.padding_mode != "zeros" or isinstance(self.layer.padding, str)):
            return f"is in a {kind.__name__} whose padding is not a number of zeros"
        if isinstance(self.owner, nn.TransformerEncoderLayer):
            return "is in a TransformerEncoderLayer, which reads the weights of its layers as floats when it evaluates"
        return ""

    @torch.no_grad()
    def integers(self) -> nn.Module:
        """The layer with integers for weights."""
        from torch.ao.nn.quantized import dynamic

        layer = self.layer
        kind = parametrize.type_before_parametrizations(layer)
        scales = self.plugin.scale(self._input(), unit_dims(layer.weight.ndim, layer))
        scales = scales.expand(layer.weight.shape[0], *[1] * (layer.weight.ndim - 1)).flatten().double()
        zeros = torch.zeros_like(scales, dtype=torch.long)
        quantized = torch.quantize_per_channel(layer.weight.float(), scales, zeros, 0, torch.qint8)
        bias = None if layer.bias is None else layer.bias.detach().float()
        make: Any = getattr(dynamic, kind.__name__)
        if kind is nn.Linear:
            made: Any = make(layer.in_features, layer.out_features, bias is not None)
        else:
            made = make(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
                bias is not None,
            )
        made.set_weight_bias(quantized, bias)
        module: nn.Module = made
        return module

    def _stack(self) -> Any:
        return self.layer.parametrizations[self.leaf]

    def _input(self) -> Tensor:
        """What the FakeQuantize is given: the raw parameter, as the parametrizations before it make it."""
        stack = self._stack()
        originals = list(stack.parameters(recurse=False))
        for parametrization in list(stack)[: self.place]:
            originals = [parametrization(*originals)]
        given: Tensor = originals[0]
        return given


def _fake_quantized(model: nn.Module) -> Iterator[_Fake]:
    for name, layer in model.named_modules():
        if not parametrize.is_parametrized(layer):
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        for leaf, stack in layer.parametrizations.items():
            for place, part in enumerate(stack):
                if not (isinstance(part, Parametrized) and isinstance(part.binding.plugin, FakeQuantize)):
                    continue
                fake = _Fake(name, layer, owner, leaf, place)
                if place < len(stack) - 1:
                    raise ConfigurationError(
                        f"to_int8: in the weight {fake.name!r}, {stack[place + 1]} stands after {part}: attach "
                        "FakeQuantize last, so that the layer computes with what it gives"
                    )
                yield fake


def _normal(scale: Tensor) -> Tensor:
    """At least the smallest normal number, so that nothing is divided by 0."""
    return scale.clamp(min=torch.finfo(scale.dtype).tiny)
