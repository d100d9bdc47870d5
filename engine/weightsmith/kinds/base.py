"""What all kinds share: which weights, when, and how a method for one tensor acts on many."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, field
from typing import TYPE_CHECKING, Any, ClassVar

from ignite.engine.events import CallableEventWithFilter, EventEnum, State
from torch import Tensor

from weightsmith.binding import Binding, Target
from weightsmith.errors import ConfigurationError, PluginContractError, UnsupportedWeightError
from weightsmith.events import WeightEvents
from weightsmith.plugin import Plugin, Subscription
from weightsmith.schedules import Progress, Span, parse_span
from weightsmith.selection import Selector, Where, everything, selector
from weightsmith.site import Site
from weightsmith.weights import Weight

if TYPE_CHECKING:
    from weightsmith.trainer import Trainer

__all__ = ["WeightPlugin", "dense_gradient"]


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
            raise ConfigurationError(f"it must be a whole number of at least 1, not {value!r}")
        return value

    def _event_name(self, event: Any) -> str:
        """``at`` in its one form: the event's name, which is how Ignite compares events."""
        if isinstance(event, CallableEventWithFilter) and event.filter is not None:
            raise ConfigurationError("it takes an event without a filter: write every=, after= and before= instead")
        name = event.name if isinstance(event, CallableEventWithFilter) else str(event).rpartition(".")[2]
        if name not in State.event_to_attr and name not in WeightEvents.__members__:
            raise ConfigurationError(
                f"{event!r} is no event that is counted: give one of Ignite's started and completed events, or a "
                "member of WeightEvents"
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
                    seen = weight.effective_units() if self.sees_effective_weights else weight.units()
                    site._begin(self.init(seen.detach(), site))

    def _singly(
        self,
        method: Callable[..., Any],
        write: Callable[[Tensor, Tensor], object],
        targets: Sequence[Tensor],
        sites: Sequence[Site],
        *columns: Sequence[Tensor],
    ) -> None:
        """Weight by weight, call the pure ``method`` on a row of the columns and ``write`` its result to the target."""
        for target, site, *row in zip(targets, sites, *columns, strict=True):
            try:
                result = method(*row, site)
                if self._remembers:
                    result, entries = result
                    site._remember(entries)
                _refuse_misfit(result, target, f"{type(self).__name__}.{method.__name__}")
            except Exception as error:
                error.add_note(f"on weight {site.name!r}")
                raise
            write(target, result)

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


def _refuse_misfit(result: Any, target: Tensor, method: str) -> None:
    if not isinstance(result, Tensor) or result.shape != target.shape:
        got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else repr(result)
        raise PluginContractError(
            f"{method} returned {got} for a tensor of shape {tuple(target.shape)}: return a tensor of the same shape"
        )


def dense_gradient(target: Target) -> Tensor | None:
    gradient = target.gradient
    if gradient is not None and gradient.is_sparse:
        raise UnsupportedWeightError(
            f"weight {target.weight.name!r} got a sparse gradient: make its layer with sparse=False, "
            "or leave it out with `where`"
        )
    return gradient
