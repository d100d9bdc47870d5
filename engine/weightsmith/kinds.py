"""The kinds of plugin. An author writes the mathematics for one tensor; the base does everything else.

Every kind has its pure method, which returns a new tensor and leaves its arguments alone, and a plural form, named
``…_all_``, which works in place on all tensors at once. The plural's default loops over the singular; a plugin overrides
it where its mathematics spans several weights, or for speed. ``project_all_`` of constraints and the like are called
under ``torch.no_grad()``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from ignite.engine import Events
from ignite.engine.events import CallableEventWithFilter, EventEnum, State
from torch import Tensor

from weightsmith.binding import Binding, Target
from weightsmith.errors import ConfigurationError, PluginContractError, UnsupportedWeightError
from weightsmith.events import WeightEvents
from weightsmith.measurements import Measurement
from weightsmith.plugin import Plugin, Subscription
from weightsmith.schedules import Progress, Span, parse_span
from weightsmith.selection import Selector, Where, everything, matrices, selector
from weightsmith.site import Site
from weightsmith.tensors import accurate_dtype
from weightsmith.weights import Weight

if TYPE_CHECKING:
    from weightsmith.trainer import Trainer

__all__ = [
    "Average",
    "Constraint",
    "GradientEditor",
    "Initializer",
    "Parametrization",
    "Penalty",
    "Probe",
    "WeightEditor",
    "WeightPlugin",
]


class WeightPlugin(Plugin, abstract=True):
    """What all kinds share: which weights, and when.

    Args:
        where: the weights it acts on (:mod:`weightsmith.selection`); by default what the kind says.
        every: act on every ``every``-th count of the event after ``after``. Default 1.
        after: act only above this count of the event; or ``"2 epochs"``, compared with the epoch. Default 0.
        before: act only below this count, or epoch. Default: no end.
        at: an unfiltered Ignite or weight event, or its name, in place of the kind's own.
    """

    event: ClassVar[EventEnum]
    """The event on which the kind acts."""
    default_where: ClassVar[Selector] = everything
    acts_on_frozen: ClassVar[bool] = False
    """Whether weights with ``requires_grad=False`` are acted on too."""
    sees_effective_weights: ClassVar[bool] = False
    """Whether a parametrized weight is seen as its layer computes with it, rather than raw."""
    uses_gradients: ClassVar[bool] = False
    """Whether it works on gradients, or on the steps that follow from them."""
    supports_complex: ClassVar[bool] = False

    where: Where = field(default=None, kw_only=True)  # type: ignore[assignment]
    every: int = field(default=1, kw_only=True)
    after: Span = field(default=0, kw_only=True)
    before: Span | None = field(default=None, kw_only=True)
    at: EventEnum | str | None = field(default=None, kw_only=True)

    @abstractmethod
    def act(self, binding: Binding) -> None:
        """Do the kind's work on ``binding.targets()``."""

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        """What to remember of this weight, before the first use. A plugin that defines it finds the entries in
        ``site.state``, and its method returns ``(tensor, new entries)``."""
        return {}

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        yield self.at or self.event, trainer.bind(self).run

    def refuse(self, weights: Sequence[Weight]) -> None:
        """Raise for a weight that the kind cannot act on."""

    @property
    def writes(self) -> frozenset[str]:
        """What it may write of the weights that it selects: ``"weight"``, ``"gradient"``, or nothing."""
        return frozenset()

    def limits(self) -> str:
        """``every``, ``after`` and ``before`` in words; empty if it always acts."""
        parts = [f"every {self.every}"] if self.every > 1 else []
        parts += [f"after {self.after}"] if self.after else []
        parts += [f"before {self.before}"] if self.before is not None else []
        return ", ".join(parts)

    def due(self, count: int, epoch: int) -> bool:
        """Whether ``every``, ``after`` and ``before`` let it act at this count of its event, in this epoch."""
        after, after_unit = parse_span(self.after)
        if not after < (epoch if after_unit == "epochs" else count):
            return False
        if self.before is not None:
            before, before_unit = parse_span(self.before)
            if not (epoch if before_unit == "epochs" else count) < before:
                return False
        return (count - (after if after_unit == "updates" else 0)) % self.every == 0

    def _normal(self, field_: Field[Any], value: Any) -> Any:
        if field_.name == "where":
            chosen = self.default_where if value is None else selector(value)
            chosen.to_plain()
            return chosen
        if field_.name == "at" and value is not None:
            return self._event_name(value)
        value = super()._normal(field_, value)
        if field_.name in ("after", "before") and value is not None:
            parse_span(value)
        if field_.name == "every" and not (type(value) is int and value >= 1):
            raise ConfigurationError(f"{type(self).__name__}.every must be a whole number of at least 1, not {value!r}")
        return value

    def _event_name(self, event: Any) -> str:
        """``at`` in its one form: the event's name, which is how Ignite compares events."""
        if isinstance(event, CallableEventWithFilter) and event.filter is not None:
            raise ConfigurationError(
                f"{type(self).__name__}.at takes an event without a filter: write every=, after= and before= instead"
            )
        name = event.name if isinstance(event, CallableEventWithFilter) else str(event).rpartition(".")[2]
        if name not in State.event_to_attr and name not in WeightEvents.__members__:
            raise ConfigurationError(
                f"{type(self).__name__}.at={event!r} is no event that is counted: give one of Ignite's started and "
                "completed events, or a member of WeightEvents"
            )
        return name

    @property
    def _remembers(self) -> bool:
        return type(self).init is not WeightPlugin.init

    def _prepare(self, targets: Sequence[Target]) -> None:
        """Let a plugin with memory begin to remember weights that it sees for the first time."""
        if self._remembers:
            for weight, site in targets:
                if not site.state:
                    seen = weight.effective() if self.sees_effective_weights else weight.units()
                    site._begin(self.init(seen.detach(), site))

    def _singly(
        self, method: Callable[..., Any], sites: Sequence[Site], *columns: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Call the pure method weight by weight; yields ``(tensor to write to, result)``, written to the first column."""
        for site, *row in zip(sites, *columns, strict=True):
            try:
                result = method(*row, site)
                if self._remembers:
                    result, entries = result
                    site._remember(entries)
                if not isinstance(result, Tensor) or result.shape != row[0].shape:
                    got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else repr(result)
                    raise PluginContractError(
                        f"{type(self).__name__}.{method.__name__} returned {got} for a tensor of shape "
                        f"{tuple(row[0].shape)}: return a tensor of the same shape"
                    )
            except Exception as error:
                error.add_note(f"on weight {site.name!r}")
                raise
            yield row[0], result

    def _call(self, method: str, tensors: Sequence[Tensor], site: Site | None) -> Tensor:
        """Outside a trainer: the singular method on one tensor, schedules at their start."""
        plugin = self.resolved(Progress())
        site = Site.alone(tensors[0]) if site is None else site
        if plugin._remembers:
            if not site.state:
                site._begin(plugin.init(tensors[0], site))
            result, entries = getattr(plugin, method)(*tensors, site)
            site._remember(entries)
        else:
            result = getattr(plugin, method)(*tensors, site)
        return result  # type: ignore[no-any-return]


class Initializer(WeightPlugin, abstract=True):
    """Says how a weight starts. Acts once, on INITIALIZING, on the effective weight of a parametrized layer."""

    event: ClassVar[EventEnum] = WeightEvents.INITIALIZING
    order: ClassVar[int] = 10
    default_where: ClassVar[Selector] = matrices
    acts_on_frozen: ClassVar[bool] = True
    sees_effective_weights: ClassVar[bool] = True

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({"weight"})

    @abstractmethod
    def draw(self, weight: Tensor, site: Site) -> Tensor:
        """The weight to start from, given the one that is there; same shape, random numbers from ``site.generator``."""

    def draw_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        """The plural form, in place."""
        for weight, drawn in self._singly(self.draw, sites, weights):
            weight.copy_(drawn)

    def refuse(self, weights: Sequence[Weight]) -> None:
        for weight in weights:
            if weight.parametrized and not all(hasattr(p, "right_inverse") for p in _parametrizations(weight)):
                raise UnsupportedWeightError(
                    f"{self!r}: weight {weight.name!r} is parametrized by something without a right_inverse, so no "
                    "value can be given to it: initialise before parametrizing, or leave it out with `where`"
                )

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        targets = binding.targets()
        self._prepare(targets)
        drawn = [t.weight.effective().clone() if t.weight.parametrized else t.tensor for t in targets]
        self.draw_all_(drawn, [t.site for t in targets])
        for (weight, _), value in zip(targets, drawn, strict=True):
            if weight.parametrized:
                setattr(weight.module, weight.leaf, value)  # torch sends it through the right inverses

    def __call__(self, weight: Tensor, *, site: Site | None = None) -> Tensor:
        """The drawn weight, outside a trainer."""
        return self._call("draw", [weight], site)


class GradientEditor(WeightPlugin, abstract=True):
    """Edits the gradient that the optimizer will step along. Acts on GRADIENTS_READY, on raw weights."""

    event: ClassVar[EventEnum] = WeightEvents.GRADIENTS_READY
    order: ClassVar[int] = 20
    uses_gradients: ClassVar[bool] = True

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({"gradient"})

    @abstractmethod
    def edit(self, gradient: Tensor, weight: Tensor, site: Site) -> Tensor:
        """The gradient to use in place of ``gradient``; same shape."""

    def edit_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        """The plural form: writes to ``gradients``."""
        for gradient, edited in self._singly(self.edit, sites, gradients, weights):
            gradient.copy_(edited)

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        targets = [t for t in binding.targets() if _dense_gradient(t) is not None]
        self._prepare(targets)
        gradients = [t.gradient for t in targets if t.gradient is not None]
        self.edit_all_(gradients, [t.tensor for t in targets], [t.site for t in targets])

    def __call__(self, gradient: Tensor, weight: Tensor, *, site: Site | None = None) -> Tensor:
        """The edited gradient, outside a trainer."""
        return self._call("edit", [gradient, weight], site)


class Penalty(WeightPlugin, abstract=True):
    """Charges for a weight's size. Its gradient is added once per update, whatever the accumulation or precision.

    The cost itself is computed only when somebody asks: a closure, a probe, a log line.

    Args:
        mode: ``"loss"`` (default) acts as if the cost were a part of the loss. ``"decoupled"`` shrinks the weight by
            learning rate × gradient just before the step, past the optimizer's moments, as AdamW does (Loshchilov &
            Hutter, 2019, arXiv:1711.05101). ``"proximal"``, where defined, applies the proximal map of learning rate ×
            cost after the step (Parikh & Boyd, 2014).
    """

    event: ClassVar[EventEnum] = WeightEvents.GRADIENTS_COMPUTED
    order: ClassVar[int] = 30
    default_where: ClassVar[Selector] = matrices
    sees_effective_weights: ClassVar[bool] = True
    uses_gradients: ClassVar[bool] = True

    mode: Literal["loss", "decoupled", "proximal"] = field(default="loss", kw_only=True)

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({"gradient" if self.mode == "loss" else "weight"})

    @abstractmethod
    def cost(self, weight: Tensor, site: Site) -> Tensor:
        """What the weight is charged; 0-d."""

    def gradient(self, weight: Tensor, site: Site) -> Tensor:
        """The gradient of the cost; by default found by autograd. Override with the closed form where there is one."""
        with torch.enable_grad():
            leaf = weight.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.cost(leaf, site), leaf)
        return gradient

    def proximal(self, weight: Tensor, step: Tensor | float, site: Site) -> Tensor:
        """argmin over v of step · cost(v) + ½ ‖v − weight‖². Override where it is known."""
        raise NotImplementedError

    def gradient_all_(self, gradients: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        """The plural form: adds the cost's gradient to ``gradients``."""
        for (_, added), gradient in zip(self._singly(self.gradient, sites, weights), gradients, strict=True):
            gradient.add_(added)

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding = trainer.bind(self)
        yield self.at or _PENALTY_EVENTS[self.mode], binding.run

    def refuse(self, weights: Sequence[Weight]) -> None:
        if self.mode not in _PENALTY_EVENTS:
            raise ConfigurationError(f"{self!r}: mode must be one of {', '.join(map(repr, _PENALTY_EVENTS))}")
        if self.mode == "proximal" and type(self).proximal is Penalty.proximal:
            raise ConfigurationError(f"{self!r}: {type(self).__name__} has no proximal form; use mode='loss'")
        for weight in weights:
            if weight.parametrized and self.mode != "loss":
                raise UnsupportedWeightError(
                    f"{self!r}: weight {weight.name!r} is parametrized, and mode={self.mode!r} would edit its raw "
                    "parameters instead: use mode='loss'"
                )

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        targets = binding.targets()
        self._prepare(targets)
        if self.mode == "loss":
            self._add_gradients(targets)
        elif binding.is_first_evaluation():
            self._shrink(targets)

    def _add_gradients(self, targets: Sequence[Target]) -> None:
        plain = [t for t in targets if not t.weight.parametrized]
        for target in plain:
            if _dense_gradient(target) is None:
                target.weight.parameter.grad = torch.zeros_like(target.weight.parameter)
        gradients = [t.gradient for t in plain if t.gradient is not None]
        self.gradient_all_(gradients, [t.tensor for t in plain], [t.site for t in plain])
        for target in targets:
            if target.weight.parametrized:
                self._add_through_parametrization(target)

    def _add_through_parametrization(self, target: Target) -> None:
        with torch.enable_grad():
            effective = target.weight.effective()
        outer = torch.zeros_like(effective)
        self.gradient_all_([outer], [effective.detach()], [target.site])
        trained = [parameter for parameter in target.weight.raw if parameter.requires_grad]
        inner = torch.autograd.grad(effective, trained, outer, allow_unused=True)
        for parameter, gradient in zip(trained, inner, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def _shrink(self, targets: Sequence[Target]) -> None:
        for target in targets:
            step, weight, site = target.site.learning_rate, target.tensor, target.site
            method = self._decoupled if self.mode == "decoupled" else self._proximal
            for tensor, result in self._singly(lambda w, s, m=method, lr=step: m(w, lr, s), [site], [weight]):
                tensor.copy_(result)

    def _decoupled(self, weight: Tensor, step: Tensor | float, site: Site) -> Tensor:
        return weight - step * self.gradient(weight, site)

    def _proximal(self, weight: Tensor, step: Tensor | float, site: Site) -> Tensor:
        return self.proximal(weight, step, site)

    def __call__(self, weight: Tensor, *, site: Site | None = None) -> Tensor:
        """The cost, outside a trainer; differentiable."""
        return self.resolved(Progress()).cost(weight, Site.alone(weight) if site is None else site)


class WeightEditor(WeightPlugin, abstract=True):
    """Edits the weight after the optimizer's step, with the gradient still at hand. Acts on STEP_COMPLETED."""

    event: ClassVar[EventEnum] = WeightEvents.STEP_COMPLETED
    order: ClassVar[int] = 40
    uses_gradients: ClassVar[bool] = True

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({"weight"})

    @abstractmethod
    def edit(self, weight: Tensor, gradient: Tensor, site: Site) -> Tensor:
        """The weight to use in place of ``weight``; ``gradient`` is zero where the loss did not reach the weight."""

    def edit_all_(self, weights: Sequence[Tensor], gradients: Sequence[Tensor], sites: Sequence[Site]) -> None:
        """The plural form: writes to ``weights``."""
        for weight, edited in self._singly(self.edit, sites, weights, gradients):
            weight.copy_(edited)

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        targets = binding.targets()
        self._prepare(targets)
        weights = [t.tensor for t in targets]
        found = [_dense_gradient(t) for t in targets]
        gradients = [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]
        self.edit_all_(weights, gradients, [t.site for t in targets])

    def __call__(self, weight: Tensor, gradient: Tensor | None = None, *, site: Site | None = None) -> Tensor:
        """The edited weight, outside a trainer."""
        return self._call("edit", [weight, torch.zeros_like(weight) if gradient is None else gradient], site)


class Constraint(WeightPlugin, abstract=True):
    """Keeps a weight inside a set. Has the last word on every update, and at the start.

    Args:
        mode: ``"project"`` (default) moves the weight into the set after every update. ``"forward"`` leaves the raw
            parameter free and lets the layer compute with its projection, so that gradients flow through it.
    """

    event: ClassVar[EventEnum] = WeightEvents.WEIGHTS_EDITED
    order: ClassVar[int] = 50
    default_where: ClassVar[Selector] = matrices
    acts_on_frozen: ClassVar[bool] = True
    sees_effective_weights: ClassVar[bool] = True
    forward_gradient: ClassVar[Literal["autograd", "straight-through", "none"]] = "autograd"
    """How ``mode="forward"`` differentiates the projection: exactly, as if it were the identity, or not at all
    (then that mode is refused)."""

    mode: Literal["project", "forward"] = field(default="project", kw_only=True)

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({"weight"})

    @abstractmethod
    def project(self, weight: Tensor, site: Site) -> Tensor:
        """The point of the set to use in place of ``weight``: the nearest, where one is known. Projecting it again
        must change nothing beyond rounding."""

    def violation(self, weight: Tensor, site: Site) -> Tensor:
        """How far outside the set the weight is, 0-d; by default the largest |project(w) − w|."""
        return (self.project(weight, site) - weight).abs().amax() if weight.numel() else weight.new_zeros(())

    def tolerance(self, weight: Tensor) -> Tensor:
        """The violation up to which a weight counts as inside: 16 units of rounding at its largest value; 0-d."""
        return (
            weight.detach().abs().amax().clamp(min=torch.finfo(weight.dtype).tiny) * 16 * torch.finfo(weight.dtype).eps
        )

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        """The plural form, in place. A weight inside the set stays bit for bit as it is."""
        for weight, projected in self._singly(self.project, sites, weights):
            inside = (projected - weight).abs().amax() <= self.tolerance(weight)
            weight.copy_(torch.where(inside, weight, projected))

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        binding = trainer.bind(self)
        if self.mode == "project":
            yield self.at or self.event, binding.run
            return
        binding.parametrize(_project_forward, lambda plugin, value, site: value)

    def refuse(self, weights: Sequence[Weight]) -> None:
        if self.mode not in ("project", "forward"):
            raise ConfigurationError(f"{self!r}: mode must be 'project' or 'forward'")
        if self.mode == "forward" and self.forward_gradient == "none":
            raise ConfigurationError(f"{self!r}: its projection has no useful gradient; use mode='project'")
        for weight in weights:
            if self.mode == "project" and weight.parametrized:
                raise UnsupportedWeightError(
                    f"{self!r}: weight {weight.name!r} is parametrized, so projecting its raw parameter would not "
                    "bound what the layer computes with: use mode='forward', or leave it out with `where`"
                )

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        targets = binding.targets()
        self._prepare(targets)
        self.project_all_([t.tensor for t in targets], [t.site for t in targets])

    def __call__(self, weight: Tensor, *, site: Site | None = None) -> Tensor:
        """The projected weight, outside a trainer; differentiable where the projection is."""
        return self._call("project", [weight], site)


class Parametrization(WeightPlugin, abstract=True):
    """Lets a layer compute with a function of its raw parameter, by torch's parametrizations, from when it is attached."""

    event: ClassVar[EventEnum] = Events.STARTED
    order: ClassVar[int] = 0
    default_where: ClassVar[Selector] = matrices
    sees_effective_weights: ClassVar[bool] = True

    @abstractmethod
    def forward(self, weight: Tensor, site: Site) -> Tensor:
        """What the layer computes with, given the raw parameter; same shape, differentiable."""

    @abstractmethod
    def right_inverse(self, weight: Tensor, site: Site) -> Tensor:
        """A raw parameter from which :meth:`forward` gives ``weight``."""

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        trainer.bind(self).parametrize(type(self).forward, type(self).right_inverse)
        yield from ()

    def act(self, binding: Binding) -> None:
        """Nothing to do on events: the layer itself calls :meth:`forward`."""

    def __call__(self, weight: Tensor, *, site: Site | None = None) -> Tensor:
        """What the layer would compute with, outside a trainer."""
        return self._call("forward", [weight], site)


class Average(WeightPlugin, abstract=True):
    """Keeps a running average of every weight, beside it. Acts on UPDATE_COMPLETED, on final and feasible weights.

    The mean starts as a copy of the weight at the first count that is due, in float32 at least (an average in
    bfloat16 stalls). ``trainer.averaged(plugin)`` lends the means to the model for a while.
    """

    event: ClassVar[EventEnum] = WeightEvents.UPDATE_COMPLETED
    order: ClassVar[int] = 60
    supports_complex: ClassVar[bool] = True

    @abstractmethod
    def average(self, mean: Tensor, weight: Tensor, site: Site) -> Tensor:
        """The new mean."""

    def average_all_(self, means: Sequence[Tensor], weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        """The plural form: writes to ``means``."""
        for mean, averaged in self._singly(self.average, sites, means, weights):
            mean.copy_(averaged)

    def _prepare(self, targets: Sequence[Target]) -> None:
        for weight, site in targets:
            if not site.state:
                seen = weight.units().detach()
                site._begin({"mean": seen.to(accurate_dtype(seen.dtype)), **self.init(seen, site)})

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        targets = binding.targets()
        self._prepare(targets)
        means = [t.site.state["mean"] for t in targets]
        self.average_all_(means, [t.tensor for t in targets], [t.site for t in targets])

    def __call__(self, mean: Tensor, weight: Tensor, *, site: Site | None = None) -> Tensor:
        """The new mean, outside a trainer."""
        return self._call("average", [mean, weight], site)


class Probe(WeightPlugin, abstract=True):
    """Measures weights; writes nothing. What it measures goes to the sinks. Acts on EPOCH_COMPLETED."""

    event: ClassVar[EventEnum] = Events.EPOCH_COMPLETED
    order: ClassVar[int] = 65
    acts_on_frozen: ClassVar[bool] = True
    sees_effective_weights: ClassVar[bool] = True
    supports_complex: ClassVar[bool] = True

    @abstractmethod
    def measure(self, weight: Tensor, site: Site) -> dict[str, Measurement]:
        """Group (``"weights"``) to what was measured of this weight; its tag becomes ``weights/conv1/weight``.
        ``site.gradient`` holds the last update's gradient, if there was one."""

    @torch.no_grad()
    def act(self, binding: Binding) -> None:
        values: dict[str, Measurement] = {}
        for weight, site in binding.all_targets():
            try:
                measured = self.measure(weight.effective().detach(), site)
            except Exception as error:
                error.add_note(f"on weight {site.name!r}")
                raise
            values |= {tag(group, weight.name): value for group, value in measured.items()}
        binding.publish(values)

    def __call__(self, weight: Tensor, *, site: Site | None = None) -> dict[str, Measurement]:
        """What it measures of one tensor, outside a trainer."""
        return self.resolved(Progress()).measure(weight, Site.alone(weight) if site is None else site)


def tag(group: str, name: str) -> str:
    """Where a measurement of a weight stands: a folder for the group, one for the module, then the parameter.

    >>> tag("weights", "features.0.weight")
    'weights/features.0/weight'
    """
    module, _, leaf = name.rpartition(".")
    return "/".join(part for part in (group, module, leaf) if part)


_PENALTY_EVENTS = {
    "loss": WeightEvents.GRADIENTS_COMPUTED,
    "decoupled": WeightEvents.GRADIENTS_READY,
    "proximal": WeightEvents.STEP_COMPLETED,
}


def _dense_gradient(target: Target) -> Tensor | None:
    gradient = target.gradient
    if gradient is not None and gradient.is_sparse:
        raise UnsupportedWeightError(
            f"weight {target.weight.name!r} got a sparse gradient: make its layer with sparse=False, "
            "or leave it out with `where`"
        )
    return gradient


def _project_forward(plugin: Any, weight: Tensor, site: Site) -> Tensor:
    projected: Tensor = plugin.project(weight, site)
    if plugin.forward_gradient == "straight-through":
        return weight + (projected - weight).detach()
    return projected


def _parametrizations(weight: Weight) -> Sequence[Any]:
    return weight.module.parametrizations[weight.leaf]  # type: ignore[index, return-value]
