"""The weights of a model under the names that its author knows, and what the engine must know of each."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from weightsmith.errors import ConfigurationError, ConflictError
from weightsmith.optimizers import held_by
from weightsmith.shards import gather, is_sharded, put_back, reshard
from weightsmith.tensors import unit_view

__all__ = ["Weight", "inventory", "persistent_buffers", "raw_weights"]


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight of a model.

    Attributes:
        name: the dotted name that the model's author knows, without wrappers: ``"generator.conv1.weight"``.
        aliases: further names of the same tensor, where weights are tied.
        module: the module that owns it.
        leaf: the attribute under which the module computes with it: ``"weight"``.
        raw: the parameters behind it: one, unless a parametrization computes it from several (weight normalisation).
        parametrizations: what the layer computes its weight by from ``raw``, in turn; empty if it computes with ``raw``
            itself.
        endings: what each raw parameter's own name adds to ``name``: nothing for the one that stood there before, then
            such as ``".up"`` for what a parametrization adds.
        holders: for each raw parameter, the name of the optimizer that holds it, or ``None``.
        is_part: whether it is one of several parameters from which a weight is computed.
        is_added: whether it is a parameter that a parametrization adds, whose axes are its own.
        is_gathered: whether ``raw`` are whole copies, for a while, of what the module holds in parts.
    """

    name: str
    aliases: tuple[str, ...]
    module: nn.Module
    leaf: str
    raw: tuple[nn.Parameter, ...]
    parametrizations: tuple[nn.Module, ...] = ()
    endings: tuple[str, ...] = ("",)
    holders: tuple[str | None, ...] = ()
    is_part: bool = False
    is_added: bool = False
    is_gathered: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def parameter(self) -> nn.Parameter:
        """The one raw parameter. (Weights with several are taken apart by :func:`raw_weights` first.)"""
        (parameter,) = self.raw
        return parameter

    @property
    def parametrized(self) -> bool:
        """Whether the layer computes with a function of the raw parameters instead of with them."""
        return bool(self.parametrizations)

    @property
    def keeps_zeros(self) -> bool:
        """Whether the layer computes with 0 wherever the raw parameter is 0."""
        return all(getattr(part, "keeps_zeros", False) for part in self.parametrizations)

    @property
    def optimizer(self) -> str | None:
        """The name of the optimizer that holds it, or ``None``."""
        return next((holder for holder in self.holders if holder is not None), None)

    @property
    def layout(self) -> nn.Module | None:
        """The module whose type says what the axes mean; ``None`` for a parameter whose axes are its own."""
        return None if self.is_added else self.module

    @property
    def trainable(self) -> bool:
        return any(parameter.requires_grad for parameter in self.raw)

    def effective(self) -> Tensor:
        """What the layer computes with: the parameter itself, or the value of its parametrization (with its graph).

        Looking changes nothing: torch's spectral normalisation, which turns its power iteration by one whenever it is
        computed in training mode, is asked in evaluation mode. Of sharded parameters, the whole value is computed, on
        every process.
        """
        if not self.parametrized:
            return self.parameter
        training = [part for whole in self.parametrizations for part in whole.modules() if part.training]
        try:
            for part in training:
                part.training = False
            value: Tensor = self._computed() if self._is_apart() else getattr(self.module, self.leaf)
        finally:
            for part in training:
                part.training = True
        return value

    def _is_apart(self) -> bool:
        """Whether the module does not hold the whole of the parameters that stand in the weight's place."""
        return self.is_gathered or any(map(is_sharded, self.raw))

    def _computed(self) -> Tensor:
        """What the parametrizations give for the whole parameters, as torch computes it."""
        first, *rest = self.parametrizations
        value: Tensor = first(*(gather(raw) for raw in self._originals()))
        for part in rest:
            value = part(value)
        return value

    def _originals(self) -> list[Tensor]:
        """The parameters that stand in the weight's place, without those that parametrizations add."""
        pairs = zip(self.raw, self.endings, strict=True)
        return [raw for raw, ending in pairs if not ending or ending.startswith(".original")]

    def effective_units(self) -> Tensor:
        """The effective weight, as its plugins see it (:func:`~weightsmith.tensors.unit_view`)."""
        return unit_view(self.effective(), self.layout)

    def assign(self, units: Tensor) -> None:
        """Give the effective weight a value, in the shape of :meth:`effective_units`; torch sends that of a
        parametrized weight through the right inverses."""
        if self.is_gathered and self.parametrized:
            value: Any = units.reshape(self.effective().shape)
            for part in reversed(self.parametrizations):
                value = part.right_inverse(value)  # type: ignore[operator]
            for original, given in zip(self._originals(), [value] if isinstance(value, Tensor) else value, strict=True):
                original.copy_(given)
        elif self.parametrized:
            setattr(self.module, self.leaf, units.reshape(self.effective().shape))
        else:
            put_back(self.parameter, units.reshape(self.parameter.shape))

    def misfit(self, value: Tensor) -> str:
        """How far the effective weight is from a value that was assigned to it, in words; empty if only by rounding.

        A parametrization can give the values of its set and no others: spectral normalisation only those of norm 1.
        """
        effective, value = gather(self.effective().detach()).double(), value.double().reshape(self.effective().shape)
        if not value.numel():
            return ""
        off, room = (effective - value).abs().amax(), 1e-3 * value.abs().amax()
        return "" if off <= room else f"it gives one that is off by up to {off:.3g}, with values up to {room * 1e3:.3g}"

    def units(self) -> Tensor:
        """The raw parameter, as its plugins see it (:func:`~weightsmith.tensors.unit_view`)."""
        return unit_view(self.parameter, self.layout)


def inventory(models: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> list[Weight]:
    """Every weight of the models once, in the models' order; a model named ``""`` lends its weights no prefix.

    Raises:
        ConflictError: two optimizers hold one weight.
        ConfigurationError: an optimizer holds a parameter that a model has replaced since.
    """
    reshard(models.values())  # a forward pass may have left whole weights in the place of parts
    found: dict[tuple[int, ...], Weight] = {}
    for prefix, model in models.items():
        for weight in _walk(prefix, model):
            key = tuple(map(id, weight.raw))
            first = found.get(key)
            found[key] = weight if first is None else replace(first, aliases=(*first.aliases, weight.name))
    owners = _owners(optimizers, found)
    return [replace(weight, holders=tuple(owners.get(id(p)) for p in weight.raw)) for weight in found.values()]


def raw_weights(weights: Sequence[Weight]) -> list[Weight]:
    """The same weights, those that are computed from several parameters replaced by these."""
    parts = [part for weight in weights for part in _parts(weight)]
    return list({id(part.parameter): part for part in reversed(parts)}.values())[::-1]  # each parameter once


def _parts(weight: Weight) -> list[Weight]:
    if len(weight.raw) == 1:
        return [weight]
    return [
        replace(
            weight,
            name=weight.name + ending,
            aliases=tuple(alias + ending for alias in weight.aliases),
            raw=(parameter,),
            endings=("",),
            holders=(holder,),
            parametrizations=(),
            is_part=True,
            is_added=bool(ending) and not ending.startswith(".original"),
        )
        for parameter, ending, holder in zip(weight.raw, weight.endings, _holders(weight), strict=True)
    ]


def _holders(weight: Weight) -> tuple[str | None, ...]:
    return weight.holders or (None,) * len(weight.raw)


def unwrapped(module: nn.Module) -> nn.Module:
    """The user's own module inside what parallelism and compilation wrapped around it, told by type."""
    while True:
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            module = module.module
        elif _is_compiled(module):
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def _is_compiled(module: nn.Module) -> bool:
    # Nothing was compiled if torch's compiler was never imported; importing it here would cost seconds.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return compiler is not None and isinstance(module, compiler.OptimizedModule)


def persistent_buffers(models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """What the models save beside their weights, such as the running statistics of batch norm, by its author's name."""
    return {
        dotted + leaf: buffer
        for prefix, model in models.items()
        for dotted, module in _modules(prefix, model)
        for leaf, buffer in module._buffers.items()
        if buffer is not None and leaf not in module._non_persistent_buffers_set
    }


def _modules(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The user's own modules, each with what its weights' names begin with; torch's parametrizations are none."""
    module = unwrapped(module)
    dotted = f"{prefix}." if prefix else ""
    yield dotted, module
    lists = _parametrization_lists(module)
    for name, child in module._modules.items():
        if child is not None and not (name == "parametrizations" and lists):
            yield from _modules(dotted + name, child)


def _walk(prefix: str, model: nn.Module) -> Iterator[Weight]:
    for dotted, module in _modules(prefix, model):
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                yield Weight(dotted + leaf, (), module, leaf, (parameter,))
        for leaf, parts in _parametrization_lists(module).items():
            raw = _originals(parts)
            if raw:
                raw |= _added(parts)
                yield Weight(dotted + leaf, (), module, leaf, tuple(raw.values()), tuple(parts), tuple(raw))


def _originals(parametrizations: Any) -> dict[str, nn.Parameter]:
    """What stood in the weight's place, by the ending of its name: one parameter, or several after a right inverse that
    takes the weight apart, as torch's weight normalisation does."""
    found = {key: p for key, p in parametrizations._parameters.items() if p is not None}
    return {"" if key == "original" else f".{key}": p for key, p in found.items()}


def _added(parametrizations: Any) -> dict[str, nn.Parameter]:
    """The parameters of the parametrizations themselves, by the ending of their names; the first of a name keeps it."""
    found: dict[str, nn.Parameter] = {}
    for place, part in enumerate(parametrizations):
        for key, parameter in part.named_parameters():
            found[f".{place}.{key}" if f".{key}" in found else f".{key}"] = parameter
    return found


def _parametrization_lists(module: nn.Module) -> Mapping[str, Any]:
    """Attribute to torch's parametrizations of it; empty for a user's own folder that happens to have their name."""
    found = module._modules.get("parametrizations")
    if isinstance(found, nn.ModuleDict) and all(isinstance(v, parametrize.ParametrizationList) for v in found.values()):
        return dict(found.items())
    return {}


def _owners(optimizers: Mapping[str, Optimizer], found: Mapping[tuple[int, ...], Weight]) -> dict[int, str]:
    names = {id(parameter): weight.name for weight in found.values() for parameter in weight.raw}
    owners: dict[int, str] = {}
    strangers: list[str] = []
    for optimizer_name, optimizer in optimizers.items():
        for parameter in held_by(optimizer):
            owner = owners.setdefault(id(parameter), optimizer_name)
            if owner != optimizer_name:
                raise ConflictError(
                    f"two optimizers, {owner!r} and {optimizer_name!r}, hold the weight "
                    f"{names.get(id(parameter), '(in no model)')!r}: give each weight to one optimizer"
                )
            if id(parameter) not in names:
                strangers.append(f"{optimizer_name!r}")
    orphans = [w.name for w in found.values() for p in w.raw if p.requires_grad and id(p) not in owners]
    if strangers and orphans:
        raise ConfigurationError(
            f"optimizer {strangers[0]} holds {len(strangers)} parameter(s) that are in no model, while it lacks "
            f"{orphans[0]!r}: was that weight replaced after the optimizer was built? Build the optimizer afterwards"
        )
    return owners


def is_lazy(parameter: Tensor) -> bool:
    """Whether the parameter has no shape yet (``nn.LazyLinear`` before its first batch)."""
    return isinstance(parameter, UninitializedParameter)
