"""Weights that start from what the network does with a batch of data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from weightsmith import ConfigurationError, Initializer, Site, Trainer
from weightsmith.binding import Binding
from weightsmith.distributed import is_distributed, total_over_processes
from weightsmith.evaluation import evaluating
from weightsmith.importing import looked_up
from weightsmith.shards import gather, reshard
from weightsmith.targets import Target
from weightsmith.tensors import accurate_dtype, unit_view
from weightsmith.weights import Weight

from weightsmith_plugins.initializers.structured import Orthogonal

__all__ = ["LSUV"]


class LSUV(Initializer):
    """Layer-sequential unit variance: orthogonal weights, then layer by layer, in the order in which the forward pass
    reaches them, w ← w / √Var(outputs of the layer), until that variance is 1.

    Mishkin & Matas (2016), "All you need is a good init", arXiv:1511.06422, algorithm 1. The model runs in evaluation
    mode, without gradients; its state is as before afterwards.

    Args:
        batch: the import path of a function that returns the model's inputs, or the path of a ``.pt`` file that holds
            them as one tensor; default the inputs of the first batch of the data that the trainer runs on, of all
            processes together.
        tolerance: how far from 1 the variance may stay, above 0. Default 0.01.
        max_passes: forward passes per layer at the most. Default 10.

    Shapes: weights with two axes or more.

    Raises:
        ConfigurationError: the forward pass reaches a selected layer never, or its outputs do not vary, or there is no
            batch to take.
    """

    batch: str | None = None
    tolerance: float = 0.01
    max_passes: int = 10

    def validate(self) -> None:
        if not self.tolerance > 0:
            raise ConfigurationError(f"{self!r}: tolerance must be above 0")
        if not self.max_passes >= 1:
            raise ConfigurationError(f"{self!r}: max_passes must be at least 1")

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        """The orthogonal start, before the data is looked at."""
        return Orthogonal().draw(weight, site)

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        super().act(binding)
        trainer = binding.trainer
        inputs = self._inputs(trainer)
        with evaluating(trainer.models):
            for target in self._in_order(binding, trainer.model, inputs):
                self._normalise(target, trainer.model, inputs)

    def _normalise(self, target: Target, model: nn.Module, inputs: Any) -> None:
        weight, site = target
        layers = _layers(model, weight)
        for _ in range(self.max_passes):
            outputs = [out.flatten().to(accurate_dtype(out.dtype)) for _, out in _outputs(layers, model, inputs)]
            variance = self._variance(torch.cat(outputs))
            if not variance > 0:
                raise ConfigurationError(f"{self!r}: the outputs of the layer with weight {site.name!r} do not vary")
            if (variance - 1).abs() <= self.tolerance:
                return
            whole = unit_view(gather(weight.effective()), weight.layout)
            weight.assign(whole / variance.sqrt())
            reshard([model])

    def _variance(self, outputs: Tensor) -> Tensor:
        """Over the batches of all processes, where each has its own."""
        if self.batch is not None or not is_distributed():
            return outputs.var()
        count, total = total_over_processes(torch.stack([outputs.new_tensor(len(outputs)), outputs.sum()]))
        variance: Tensor = total_over_processes((outputs - total / count).square().sum()) / (count - 1)
        return variance

    def _in_order(self, binding: Binding, model: nn.Module, inputs: Any) -> list[Target]:
        """The selected weights, as the forward pass reaches their layers."""
        places: dict[int, int] = {}
        targets = [(target, _layers(model, target.weight)) for target in binding.targets()]
        for layer, _ in _outputs([layer for _, layers in targets for layer in layers], model, inputs):
            places.setdefault(id(layer), len(places))
        for target, layers in targets:
            if not any(id(layer) in places for layer in layers):
                raise ConfigurationError(f"{self!r}: the forward pass does not reach the layer of {target.site.name!r}")
        targets.sort(key=lambda pair: min(places.get(id(layer), len(places)) for layer in pair[1]))
        return [target for target, _ in targets]

    def _inputs(self, trainer: Trainer) -> Any:
        if self.batch is None:
            return trainer.to_device(_inputs_of(self._first_batch(trainer)))
        if self.batch.endswith(".pt"):
            return trainer.to_device(torch.load(self.batch, weights_only=True))
        return trainer.to_device(looked_up(self.batch)())

    def _first_batch(self, trainer: Trainer) -> Any:
        data: Any = trainer.state.dataloader
        with torch.random.fork_rng(devices=[]):  # so that the run draws its batches as if none had been taken
            batches = None if data is None else iter(data)
            if batches is None or batches is data:
                raise ConfigurationError(
                    f"{self!r}: the run's data can be gone through only once, so no batch can be taken from it: "
                    "give batch=…"
                )
            return next(batches)


def _layers(model: nn.Module, weight: Weight) -> list[nn.Module]:
    """The layers that compute with the weight: several, where it is tied."""
    sharing = [module for module in model.modules() if any(p is weight.raw[0] for p in module._parameters.values())]
    return [weight.module, *(m for m in sharing if m is not weight.module and not isinstance(m, ParametrizationList))]


def _outputs(layers: list[nn.Module], model: nn.Module, inputs: Any) -> list[tuple[nn.Module, Tensor]]:
    """What the layers put out, call by call, while the model computes."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(layer: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append((layer, _first_tensor(output)))

    handles = [layer.register_forward_hook(note) for layer in dict.fromkeys(layers)]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _first_tensor(output: Any) -> Tensor:
    """The output itself, or the first of several (a recurrent layer gives its states besides)."""
    return next(_tensors(output))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from _tensors(item)


def _inputs_of(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (tuple, list)) else batch
