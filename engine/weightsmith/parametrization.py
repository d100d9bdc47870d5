"""Plugins inside torch's parametrizations: a layer that computes with a function of its raw parameter."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from weightsmith.errors import ConfigurationError, PluginContractError
from weightsmith.faults import blaming
from weightsmith.shards import gather, is_sharded, put_back, spread
from weightsmith.site import Site
from weightsmith.tensors import unit_view
from weightsmith.weights import Weight

if TYPE_CHECKING:
    from weightsmith.binding import Binding

__all__ = ["Map", "Parametrized", "refuse_remove", "register", "remove"]

Map: TypeAlias = Callable[..., Any]
"""A function ``(plugin, tensor, site) -> tensor`` of the same shape, or the tensor and a dict of entries with it."""


class Parametrized(nn.Module):
    """One plugin's function of one raw parameter, as torch's parametrizations call it. Its parameters are those that
    the plugin trains besides.

    Attributes:
        binding: the plugin's.
        remembering: whether the entries that the function returns are kept.
    """

    def __init__(
        self, binding: Binding, site: Site, forward: Map, right_inverse: Map, parameters: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.binding = binding
        self.remembering = False
        self._site = site
        self._forward = forward
        self._right_inverse = right_inverse
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value.detach().clone()))

    @property
    def keeps_zeros(self) -> bool:
        """Whether the plugin says that zeros stay zeros."""
        return getattr(self.binding.plugin, "keeps_zeros", False)

    def forward(self, raw: Tensor) -> Tensor:
        if is_sharded(raw):  # outside the forward pass of a sharded layer, which has the whole
            return spread(self(gather(raw)), raw)
        return self._mapped(self._forward, raw, remember=self.remembering)[0]

    def right_inverse(self, value: Tensor) -> Tensor:
        if is_sharded(value):
            return spread(self.right_inverse(gather(value)), value)
        tensor, entries = self._mapped(self._right_inverse, value)
        with torch.no_grad():
            for name, entry in entries.items():
                self.get_parameter(name).copy_(entry)
        return tensor

    def _mapped(self, function: Map, tensor: Tensor, **settings: bool) -> tuple[Tensor, dict[str, Tensor]]:
        site = self._site._having(self._parameters) if self._parameters else self._site  # type: ignore[arg-type]  # none is None
        with blaming(self.binding.plugin, f"in the forward pass, weight {site.name!r}"):
            mapped = function(self.binding.current(), unit_view(tensor, site.module), site, **settings)
            result, entries = mapped if isinstance(mapped, tuple) else (mapped, {})
            self._refuse_misfit(result, tensor)
            return result.reshape(tensor.shape), entries

    def _refuse_misfit(self, result: Any, tensor: Tensor) -> None:
        seen = unit_view(tensor, self._site.module).shape
        if not isinstance(result, Tensor) or result.shape != seen:
            got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else repr(result)
            raise PluginContractError(
                f"{type(self.binding.plugin).__name__} gave {got} for a weight of shape {tuple(seen)}: return a tensor "
                "of the same shape"
            )

    def extra_repr(self) -> str:
        return repr(self.binding.plugin)

    def __deepcopy__(self, memo: dict[int, Any]) -> Parametrized:
        # A copied model goes on computing as the original does; it does not copy the run that the plugin belongs to.
        twin = Parametrized(self.binding, self._site, self._forward, self._right_inverse, {})
        twin._parameters.update(copy.deepcopy(self._parameters, memo))
        return twin.train(self.training)


def register(weight: Weight, parametrized: Parametrized) -> None:
    """Put ``parametrized`` behind whatever the weight is already parametrized by. The raw parameter stays the same
    object, so the optimizer goes on with it, and the same value, so nothing pretrained is lost."""
    parametrize.register_parametrization(weight.module, weight.leaf, parametrized)


def refuse_remove(weight: Weight, binding: Binding) -> None:
    """Raise :class:`ConfigurationError` if another parametrization is stacked with the binding's."""
    stacks: Any = weight.module.parametrizations
    stack = stacks[weight.leaf]
    if len(stack) > 1 or stack[0].binding is not binding:
        raise ConfigurationError(
            f"{binding.plugin!r} cannot be detached from weight {weight.name!r}: another parametrization is stacked "
            "with it, and torch removes all or none"
        )


def remove(weight: Weight, order: Sequence[str]) -> None:
    """Undo :func:`register`; the layer keeps the value that it computed with, and its parameters their ``order``, which
    an optimizer made later goes by."""
    with torch.no_grad():
        if is_sharded(weight.raw[0]):  # torch would give it another memory, of which the sharding does not know
            whole = gather(getattr(weight.module, weight.leaf))
            parametrize.remove_parametrizations(weight.module, weight.leaf, leave_parametrized=False)
            put_back(weight.raw[0], whole)
        else:
            parametrize.remove_parametrizations(weight.module, weight.leaf, leave_parametrized=True)
    parameters = weight.module._parameters
    for name in [*order, *(name for name in parameters if name not in order)]:
        if name in parameters:
            parameters[name] = parameters.pop(name)


@contextlib.contextmanager
def remembering(parametrized: Parametrized) -> Iterator[None]:
    """Keep the entries that the plugin's forward returns, while the context lasts."""
    parametrized.remembering = True
    try:
        yield
    finally:
        parametrized.remembering = False
