"""Trained models with 8-bit integers for weights."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from weightsmith import ConfigurationError, Trainer
from weightsmith.parametrization import Parametrized
from weightsmith.tensors import unit_dims

from weightsmith_plugins.quantization.fake import FakeQuantize

__all__ = ["stored_bytes", "to_int8"]

logger = logging.getLogger(__name__)


def to_int8(trainer: Trainer, batches: Iterable[Any] = ()) -> nn.Module:
    """A copy of a trainer's model, in float32, whose fake-quantized layers hold their weights as 8-bit integers and
    compute with them.

    By the quantization of the installed torch (``torch.ao.nn.quantized``). A linear layer's activations are quantized
    as they come. Those of a convolution, which torch does badly that way, need ranges, which are found on ``batches``:
    7 bits for what goes in and comes out, as torch does it where processors add up in 16. The integers times their
    scales are the weights that the model was trained with, to within the rounding of its own dtype. For the CPU, in
    evaluation only. ``torch.jit.script`` stores such a model whole; its state dict loads into what this function makes
    of a like trainer.

    Linear layers, and convolutions with zero padding, become integers, subclasses with code of their own excepted.
    Other layers stay as they are; a warning names those of them that are fake-quantized.

    Args:
        trainer: its model must take a batch, or the first part of one, as it comes.
        batches: such as the training data's, for the ranges of convolutions: some hundred samples. By default
            convolutions stay as they are.

    Raises:
        ConfigurationError: no layer can be made of integers of 8 bits or fewer, or another parametrization stands after
            a FakeQuantize, so that the layer computes with something else.
    """
    if not isinstance(trainer, Trainer):
        raise ConfigurationError(f"to_int8 takes the Trainer, not a {type(trainer).__name__}")
    model = _copied(trainer.model).cpu().eval()
    found = list(_fake_quantized(model))
    with warnings.catch_warnings():  # deprecated in favour of a package of its own, but there in every torch so far
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated")
        warnings.filterwarnings("ignore", message="torch.quantize_per")
        warnings.filterwarnings("ignore", message="Please use quant_min and quant_max")
        ranges = _ranges(model, [fake.layer for fake in found if not isinstance(fake.layer, nn.Linear)], batches)
        problems = {fake.name: problem for fake in found if (problem := fake.problem(ranges))}
        if len(problems) == len(found):
            raise ConfigurationError(
                "to_int8: no layer has its weight under a FakeQuantize with 8 bits or fewer"
                + "".join(f"; {name!r} {problem}" for name, problem in problems.items())
            )
        if problems:
            logger.warning("to_int8: these weights stay as they are: %s", problems)
        integers = {fake.layer_name: fake.integers(ranges) for fake in found if fake.name not in problems}
    for name, layer in integers.items():
        if not name:
            return layer
        model.set_submodule(name, layer)
    return model.float()


def stored_bytes(model: nn.Module) -> int:
    """How many bytes :func:`torch.save` writes for a model's state dict.

    >>> stored_bytes(nn.Linear(1000, 1000)) > 4_000_000
    True
    """
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"stored_bytes takes a model, not a {type(model).__name__}")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


class _Range:
    """What a layer was seen to get and to give, by torch's own observers."""

    def __init__(self) -> None:
        from torch.ao.quantization import HistogramObserver

        self.inputs, self.outputs = HistogramObserver(reduce_range=True), HistogramObserver(reduce_range=True)
        self.is_seen = False

    def __call__(self, layer: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        self.inputs(given[0].float())
        self.outputs(result.float())
        self.is_seen = True


def _ranges(model: nn.Module, layers: Sequence[nn.Module], batches: Iterable[Any]) -> dict[int, _Range]:
    """The ranges of layers, by the ids of these, as far as the batches reach them."""
    ranges = {id(layer): _Range() for layer in layers}
    device, dtype = torch.device("cpu"), next((p.dtype for p in model.parameters()), torch.float32)
    with contextlib.ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.callback(layer.register_forward_hook(ranges[id(layer)]).remove)
        for batch in batches if layers else ():
            inputs = batch[0] if isinstance(batch, (list, tuple)) else batch
            model(inputs.to(device, dtype) if inputs.is_floating_point() else inputs.to(device))
    return {key: found for key, found in ranges.items() if found.is_seen}


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

    def problem(self, ranges: dict[int, _Range]) -> str:
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
        if kind is not nn.Linear and id(self.layer) not in ranges:
            return f"is in a {kind.__name__} that no batch reached: give to_int8 batches"
        return ""

    @torch.no_grad()
    def integers(self, ranges: dict[int, _Range]) -> nn.Module:
        """The layer with integers for weights."""
        layer = self.layer
        bias = None if layer.bias is None else layer.bias.detach().float()
        if isinstance(layer, nn.Linear):
            return _linear(layer, self._weight(), bias)
        return _convolution(layer, self._weight(), bias, ranges[id(layer)])

    def _weight(self) -> Tensor:
        """The weight, quantized."""
        layer = self.layer
        scales = self.plugin.scale(self._input(), unit_dims(layer.weight.ndim, layer))
        scales = scales.expand(layer.weight.shape[0], *[1] * (layer.weight.ndim - 1)).flatten().double()
        zeros = torch.zeros_like(scales, dtype=torch.long)
        return torch.quantize_per_channel(layer.weight.float(), scales, zeros, 0, torch.qint8)

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


def _linear(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Module:
    from torch.ao.nn.quantized import dynamic

    made = dynamic.Linear(layer.in_features, layer.out_features, bias is not None)  # type: ignore[no-untyped-call]
    made.set_weight_bias(weight, bias)
    return made


def _convolution(layer: Any, weight: Tensor, bias: Tensor | None, seen: _Range) -> nn.Module:
    from torch.ao.nn import quantized

    kind: Any = getattr(quantized, parametrize.type_before_parametrizations(layer).__name__)
    made = kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias is not None,
    )
    made.set_weight_bias(weight, bias)
    (scale, zero), (into, from_) = seen.outputs.calculate_qparams(), seen.inputs.calculate_qparams()
    made.scale, made.zero_point = float(scale), int(zero)
    begin: Any = quantized.Quantize
    return nn.Sequential(begin(into, from_, torch.quint8), made, quantized.DeQuantize())
