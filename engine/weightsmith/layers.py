"""The layers of a plugin's weights, where they compute with its function of a weight in the weight's place."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weightsmith.errors import ConfigurationError, PluginContractError, UnsupportedWeightError
from weightsmith.optimizers import join, leave
from weightsmith.parametrization import Map, Parametrized, refuse_remove, register, remembering, remove
from weightsmith.shards import follow, gather
from weightsmith.targets import Target
from weightsmith.tensors import unit_view
from weightsmith.weights import Weight

if TYPE_CHECKING:
    from weightsmith.binding import Binding

__all__ = ["ParametrizedLayers"]


class Registration(NamedTuple):
    """One weight whose layer computes with a plugin's function of it.

    Attributes:
        weight: the weight, as it was before.
        parametrized: the function.
        was_trained: whether the raw parameter was trained before.
        order: the names of the layer's parameters before, in their order.
    """

    weight: Weight
    parametrized: Parametrized
    was_trained: bool
    order: tuple[str, ...]


class ParametrizedLayers:
    """Of one binding. Nothing happens until :meth:`compute_with` says by which function, and :meth:`register`."""

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self._maps: tuple[Map, Map] | None = None
        self._adds = False
        self._registered: dict[str, Registration] = {}

    def compute_with(self, forward: Map, right_inverse: Map, *, adds: bool = False) -> None:
        """Let the layers compute with ``forward(plugin, raw, site)`` in place of the raw parameter, once it acts.

        Args:
            forward: the function.
            right_inverse: its right inverse.
            adds: whether the plugin's ``parameters`` are to be trained besides.

        Raises:
            UnsupportedWeightError: the weight is tied: other layers would go on with the raw parameter.
            ConfigurationError: no optimizer's group is there for what is trained besides.
        """
        for weight in self._binding.weights:
            if weight.aliases:
                raise UnsupportedWeightError(
                    f"{self._binding.plugin!r}: weight {weight.name!r} is tied to {weight.aliases[0]!r}, whose layer "
                    "would go on with the raw parameter: use mode='project', or leave it out with `where`"
                )
            if adds:
                self._home(weight)
        self._maps, self._adds = (forward, right_inverse), adds

    def weights(self) -> list[Weight]:
        """The weights whose layers will compute, or do compute, with something else."""
        return self._binding.weights if self._maps is not None else []

    def foreseen(self, weight: Weight) -> Weight:
        """One of these weights as it will be."""
        assert self._maps is not None
        coming = Parametrized(self._binding, self._binding.site_of(weight), *self._maps, {})
        return replace(weight, parametrizations=(*weight.parametrizations, coming))

    def added(self) -> set[int]:
        """The ids of the parameters that are trained besides, and go with it."""
        return {id(p) for registration in self._registered.values() for p in registration.parametrized.parameters()}

    def register(self) -> None:
        """Carry out :meth:`compute_with`."""
        if self._maps is None:
            return
        targets = self._binding.all_targets()
        added = [self._added(target) for target in targets]  # whatever fails, fails before anything is changed
        for target, parameters in zip(targets, added, strict=True):
            weight, site = target.weight, target.site
            if not weight.raw[0].numel():
                continue
            parametrized = Parametrized(self._binding, site, *self._maps, parameters)
            registration = Registration(weight, parametrized, weight.trainable, tuple(weight.module._parameters))
            gradient = weight.raw[0].grad  # of a window that is open: registering a sharded weight drops it
            register(weight, parametrized)
            self._binding.trainer._replicas.mistrust_wrappers()
            follow(self._binding.trainer.models.values(), weight.raw[0], *_home_of_raw(weight))
            weight.raw[0].grad = gradient
            self._registered[weight.name] = registration
            if parameters:
                optimizer, group = self._home(weight)
                join(optimizer, group, parametrized.parameters())
            if not getattr(self._binding.plugin, "trains_raw", True):
                for parameter in weight.raw:
                    parameter.requires_grad_(False)
                    parameter.grad = None

    def _added(self, target: Target) -> dict[str, Tensor]:
        """What the plugin trains besides this weight."""
        if not self._adds:
            return {}
        plugin: Any = self._binding.current()
        with torch.no_grad():
            added = plugin.parameters(self._whole(target.weight), target.site)
        if not (isinstance(added, dict) and all(isinstance(value, Tensor) for value in added.values())):
            raise PluginContractError(
                f"{type(plugin).__name__}.parameters returned {added!r}: return a dict of name to tensor"
            )
        return added

    @staticmethod
    def _whole(weight: Weight) -> Tensor:
        return unit_view(gather(weight.effective().detach()), weight.layout)

    def _home(self, weight: Weight) -> tuple[Optimizer, int]:
        """The optimizer, and its group, for what is trained besides a weight."""
        optimizers = self._binding.trainer.optimizers
        if weight.optimizer is not None:
            optimizer = optimizers[weight.optimizer]
            raw = set(map(id, weight.raw))
            held = [any(id(p) in raw for p in group["params"]) for group in optimizer.param_groups]
            return optimizer, held.index(True)
        groups = [(optimizer, i) for optimizer in optimizers.values() for i in range(len(optimizer.param_groups))]
        if len(groups) > 1:
            raise ConfigurationError(
                f"{self._binding.plugin!r}: no optimizer holds weight {weight.name!r}, so which of the {len(groups)} "
                "groups of parameters is to train what the plugin adds? Give the weight to one; frozen weights may be "
                "in it too"
            )
        return groups[0]

    def remember_forward(self, target: Target) -> None:
        """Let the plugin renew its memory by a forward pass of the weight as it is now."""
        registration = self._registered.get(target.weight.name)
        if registration is not None:
            with remembering(registration.parametrized):
                target.weight.effective()

    def refuse_release(self) -> None:
        """Raise where :meth:`release` would have to take something else away."""
        for registration in self._registered.values():
            refuse_remove(registration.weight, self._binding)

    def release(self) -> None:
        """Undo :meth:`register`: the layers keep the values that they computed with."""
        for weight, parametrized, was_trained, order in reversed(self._registered.values()):
            for optimizer in self._binding.trainer.optimizers.values():
                leave(optimizer, parametrized.parameters())
            remove(weight, order)
            self._binding.trainer._replicas.mistrust_wrappers()
            weight.raw[0].requires_grad_(was_trained)
            follow(self._binding.trainer.models.values(), weight.raw[0], weight.module, weight.leaf)
        self._registered.clear()


def _home_of_raw(weight: Weight) -> tuple[nn.Module, str]:
    """Where a parametrized weight's raw parameter stands."""
    stacks: Any = weight.module.parametrizations
    return stacks[weight.leaf], "original"
