"""What all kinds share: which weights, when, and how a method for one tensor acts on many."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, field
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar, get_args

import torch
from ignite.engine.events import CallableEventWithFilter, EventEnum, State
from torch import Tensor

from weightsmith.binding import Binding
from weightsmith.errors import ConfigurationError, PluginContractError, PluginDefinitionError, UnsupportedWeightError
from weightsmith.events import WeightEvents
from weightsmith.plugin import Plugin, Subscription
from weightsmith.rows import Rows, rows_among
from weightsmith.schedules import Progress, Span, parse_span
from weightsmith.selection import Selector, Where, everything, selector
from weightsmith.site import Sharding, Site
from weightsmith.spelling import nearest
from weightsmith.targets import GradientNeed, Target
from weightsmith.tensors import add_, copy_
from weightsmith.weights import Weight

if TYPE_CHECKING:
    from weightsmith.trainer import Trainer

__all__ = ["WeightPlugin", "add_to", "as_it_is", "copy_to", "without_gradients"]

P = ParamSpec("P")
T = TypeVar("T")


_ECHOES = (WeightEvents.MEASURED.name, WeightEvents.PLUGIN_STARTED.name, WeightEvents.PLUGIN_COMPLETED.name)
_GRADIENT_EVENTS = (WeightEvents.GRADIENTS_COMPUTED.name, WeightEvents.GRADIENTS_READY.name)


class WeightPlugin(Plugin, abstract=True):
    """What all kinds share: which weights, and when.

    Args:
        where: the weights it acts on (:mod:`weightsmith.selection`); by default what the kind says.
        every: act on every ``every``-th count of the event after ``after``. Default 1.
        after: act only above this count of the event; or above ``"2 epochs"`` or ``"100 updates"``. Default 0.
        before: act only below this count, or below so many epochs or updates. Default: no end.
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
    remembers_start: ClassVar[bool] = False
    """Whether its memory begins with the run, after the initializers, rather than with its first use."""
    acts_on_its_event_only: ClassVar[bool] = False
    """Whether it makes sense on its own event alone, so that ``at`` is refused."""
    evaluates_again: ClassVar[bool] = False
    """Whether it evaluates the update in progress again, which writes the gradients of all the optimizer's weights."""
    unitwise: ClassVar[bool] = False
    """Whether the method treats every unit on its own, and asks nothing of its site but ``unit_dims``: then many small
    weights (up to 32,768 values) may be handed to it as the rows of one matrix. Default false."""
    sharding: ClassVar[Sharding] = "gather"
    """What it needs of a sharded weight. ``"gather"``: all of it; then the weights are gathered one at a time, and its
    method need know nothing of it. ``"units"`` or ``"values"``: it treats every unit (as one that is ``unitwise`` does)
    or every value on its own, so that each process acts on its part, and nothing is sent. ``"joint"``, ``"joint
    units"`` or ``"joint rows"``: it acts on parts, on whole units, or on rows of single matrices, and asks
    ``site.total`` and the like for what spans them; every process must then ask alike, even one that has nothing."""
    masks_raw: ClassVar[bool] = False
    """Whether it acts on the raw parameters of the weights that it selects: to keep zeros, which their layers keep."""
    weight_argument: ClassVar[int] = 0
    """Which argument of the kind's method is the weight."""

    where: Where = field(default=None, kw_only=True)  # type: ignore[assignment]  # see _normal
    every: int = field(default=1, kw_only=True)
    after: Span = field(default=0, kw_only=True)
    before: Span | None = field(default=None, kw_only=True)
    at: EventEnum | str | None = field(default=None, kw_only=True)

    def __init_subclass__(cls) -> None:
        if cls.sharding not in get_args(Sharding):
            near = nearest(str(cls.sharding), get_args(Sharding))
            choices = ", ".join(map(repr, get_args(Sharding)))
            raise PluginDefinitionError(
                f"{cls.__name__}.sharding is {cls.sharding!r}, and must be one of {choices}{near}"
            )

    @abstractmethod
    def act(self, binding: Binding) -> None:
        """Do the kind's work on ``binding.rounds()``."""

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        """What to remember of this weight, before the first use.

        A plugin that defines it finds the entries in ``site.state``. Its method may return ``(tensor, entries)``, and
        the entries are remembered; what is only asked for (a cost, a violation, a forward pass) changes no memory.
        """
        return {}

    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        yield self.at or self.event, trainer.bind(self).run

    def misfit(self, weight: Tensor, site: Site) -> str:
        """What this weight's shape lacks, in words such as "needed is a square matrix"; empty if it can be acted on.
        Asked once, when the plugin is attached, and when it is called outside a trainer."""
        return ""

    def refuse(self, weights: Sequence[Weight]) -> None:
        """Raise for a weight that the kind cannot act on."""

    def refuse_misfit(self, weight: Tensor, site: Site) -> None:
        """Raise for a weight of which :meth:`misfit` finds that it lacks something."""
        problem = self.misfit(weight, site)
        if problem:
            raise UnsupportedWeightError(
                f"{self!r}: weight {site.name!r} has shape {tuple(weight.shape)}: {problem}; leave it out with `where`"
            )

    @property
    def handling(self) -> Sharding:
        """:attr:`sharding`, as it is with these settings."""
        return "units" if self.unitwise and self.sharding == "gather" else self.sharding

    @property
    def gradient_need(self) -> GradientNeed:
        """What it needs of the gradient of a sharded weight that is gathered for it."""
        return "given" if self.uses_gradients else "none"

    @property
    def acts_jointly(self) -> bool:
        """Whether the processes that hold parts of a weight ask each other for something when it acts."""
        return self.handling.startswith("joint")

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

    def due(self, count: int, update: int, epoch: int) -> bool:
        """Whether ``every``, ``after`` and ``before`` let it act at this count of its event."""
        if self.every == 1 and self.after == 0 and self.before is None:
            return True
        counts = {"updates": update, "epochs": epoch}
        after, reached = _bound(self.after, count, counts)
        if not after < reached:
            return False
        if self.before is not None:
            before, reached = _bound(self.before, count, counts)
            if not reached < before:
                return False
        return (count - (after if isinstance(self.after, int) else 0)) % self.every == 0

    def refuse_event(self) -> None:
        """Raise where ``at`` is an event on which the kind can do nothing."""
        if self.at in _ECHOES:
            raise ConfigurationError(f"{self!r}: {self.at} fires inside other events: give one of these in at=")
        if self.acts_on_its_event_only and self.at is not None:
            raise ConfigurationError(f"{self!r}: it acts on {self.event.name} and nowhere else: leave out at=")
        if "gradient" in self.writes and self.at is not None and self.at not in _GRADIENT_EVENTS:
            raise ConfigurationError(
                f"{self!r}: on {self.at} no gradient is on its way to a step, so this would do nothing: give one of "
                f"{', '.join(_GRADIENT_EVENTS)}, or leave out at="
            )

    def _normal(self, field_: Field[Any], value: Any) -> Any:
        if field_.name == "where":
            chosen = self.default_where if value is None else selector(value)
            chosen.to_plain()
            return chosen
        if field_.name == "at" and value is not None:
            return self._event_name(value)
        if field_.name == "every" and not (type(value) is int and value >= 1):
            raise ConfigurationError(f"it must be a whole number of at least 1, not {value!r}")
        value = super()._normal(field_, value)
        if field_.name in ("after", "before") and value is not None:
            parse_span(value)
        if field_.name == "before" and value is not None and type(value) is type(self.after):
            self._refuse_never(value)
        return value

    def _refuse_never(self, before: Span) -> None:
        """Raise where nothing is between ``after``, which is settled by now, and ``before``."""
        (first, unit), (last, other) = parse_span(self.after), parse_span(before)
        if unit == other and first >= last:
            raise ConfigurationError(f"it is {before!r}, and after={self.after!r}: it would never act")

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

    def _prepare(self, targets: Sequence[Target]) -> None:
        """Let a plugin with memory begin to remember weights that it sees for the first time."""
        if not self.remembers:
            return
        for target in targets:
            if not target.site._memory:
                target.site._begin(self._first_entries(self._seen(target).detach(), target.site))

    def _seen(self, target: Target) -> Tensor:
        """The weight as the plugin sees it."""
        return target.effective if self.sees_effective_weights and not self.masks_raw else target.tensor

    @property
    def remembers(self) -> bool:
        """Whether it keeps something of every weight from one time to the next."""
        kind = type(self)
        return kind.init is not WeightPlugin.init or kind._first_entries is not WeightPlugin._first_entries

    def _first_entries(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return self.init(weight, site)

    def _singly(
        self,
        method: Callable[..., Any],
        write: Callable[[Tensor, Tensor, Site], None],
        targets: Sequence[Tensor],
        sites: Sequence[Site],
        *columns: Sequence[Tensor],
    ) -> None:
        """Weight by weight, call the pure ``method`` on a row of the columns and ``write`` its result to the target."""
        remembers = self.remembers
        for target, site, *row in zip(targets, sites, *columns, strict=True):
            try:
                result = method(*row, site) if not remembers else self._ask(method, *row, site=site, remember=True)
                if not isinstance(result, Tensor) or result.shape != target.shape:
                    result = self._single(result, target, site, method)
            except Exception as error:
                error.add_note(f"on weight {site.name!r}")
                raise
            write(target, result, site)
            del result  # before there is another: to get new memory takes longer than to fill it

    def _unitwise(
        self,
        method: Callable[..., Any],
        write: Callable[[Tensor, Tensor, Site], None],
        targets: Sequence[Tensor],
        sites: Sequence[Site],
        *columns: Sequence[Tensor],
    ) -> None:
        """As :meth:`_singly`, with small weights together as the rows of one matrix where the method is unitwise."""
        if not self.unitwise or self.remembers:
            self._singly(method, write, targets, sites, *columns)
            return
        together, alone = rows_among(sites)
        for rows in together:
            if write in _TOGETHER:
                result = self._of_rows(method, rows, columns)
                _TOGETHER[write](rows.of(targets), rows.parts(result, targets))
            else:
                matrices = {id(column): [rows.stack(column)] for column in _distinct(targets, *columns)}
                written = matrices[id(targets)]
                self._singly(method, write, written, [rows.site], *(matrices[id(column)] for column in columns))
                copy_(rows.of(targets), rows.parts(written[0], targets))
        if alone:
            picked = [[column[i] for i in alone] for column in (targets, *columns)]
            self._singly(method, write, picked[0], [sites[i] for i in alone], *picked[1:])

    def _of_rows(self, method: Callable[..., Any], rows: Rows, columns: Sequence[Sequence[Tensor]]) -> Tensor:
        """What the pure ``method`` makes of small weights as the rows of one matrix."""
        results: list[Tensor] = []
        stacked = [[rows.stack(column)] for column in columns]
        self._singly(method, lambda _, result, __: results.append(result), stacked[0], [rows.site], *stacked)
        return results[0]

    def _single(self, result: Any, target: Tensor, site: Site, method: Callable[..., Any]) -> Tensor:
        """The tensor of a result that is more, or other, than a tensor that fits."""
        if isinstance(result, tuple):
            result, entries = result
            site._remember(entries)
        _refuse_misfit(result, target, f"{type(self).__name__}.{method.__name__}")
        tensor: Tensor = result
        return tensor

    def _ask(self, method: Callable[..., Any], *tensors: Tensor, site: Site, remember: bool = False) -> Any:
        """One call of an author's method, with its memory begun; the entries that it returns are kept or dropped."""
        result = self._asked(method, *tensors, site=site, remember=remember)
        if not isinstance(result, tuple):
            return result
        tensor, entries = result
        if remember:
            site._remember(entries)
        return tensor

    def _asked(self, method: Callable[..., Any], *tensors: Tensor, site: Site, remember: bool = False) -> Any:
        """All that an author's method returns, with its memory begun."""
        early = self.remembers_start and not remember and not site.state  # asked before the run began
        if not site.state:
            site._begin(self._first_entries(tensors[self.weight_argument].detach(), site))
        try:
            return method(*tensors, site)
        finally:
            if early:
                site._forget()

    def _call(self, method: str, tensors: Sequence[Tensor], site: Site | None) -> Any:
        """Outside a trainer: the singular method on one tensor, schedules at their start."""
        plugin = self.resolved(Progress())
        site = Site.alone(tensors[self.weight_argument]) if site is None else site
        plugin.refuse_misfit(tensors[self.weight_argument], site)
        return plugin._ask(getattr(plugin, method), *tensors, site=site, remember=True)


def _bound(span: Span, count: int, counts: dict[str, int]) -> tuple[int, int]:
    """A bound and what it is compared with: a bare number with the event's own count, else with updates or epochs."""
    number, unit = parse_span(span)
    return number, count if isinstance(span, int) else counts[unit]


def without_gradients(function: Callable[P, T]) -> Callable[P, T]:
    """As ``torch.no_grad()`` decorates a function that is neither a generator nor asynchronous, in a quarter of the
    time: that takes 2 to 3 µs, and all that a plugin does to a hundred small weights about 100.

    >>> without_gradients(torch.is_grad_enabled)(), torch.is_grad_enabled()
    (False, True)
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        was_enabled = torch.is_grad_enabled()
        try:
            torch._C._set_grad_enabled(False)
            return function(*args, **kwargs)
        finally:
            torch._C._set_grad_enabled(was_enabled)

    return called


def copy_to(target: Tensor, result: Tensor, site: Site) -> None:
    """Write a result in the target's place."""
    target.copy_(result)


def add_to(target: Tensor, result: Tensor, site: Site) -> None:
    """Add a result to the target."""
    target.add_(result)


def as_it_is(target: Tensor, result: Tensor, site: Site) -> None:
    """What is left to write after a method that works in place."""


def _refuse_misfit(result: Any, target: Tensor, method: str) -> None:
    if not isinstance(result, Tensor) or result.shape != target.shape:
        got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else repr(result)
        raise PluginContractError(
            f"{method} returned {got} for a tensor of shape {tuple(target.shape)}: return a tensor of the same shape"
        )


_TOGETHER: dict[Any, Callable[[Sequence[Tensor], Sequence[Tensor]], None]] = {copy_to: copy_, add_to: add_}
"""The same for many small targets at once."""


def _distinct(*columns: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    return list({id(column): column for column in columns}.values())
