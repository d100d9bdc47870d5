"""Numbers as functions of progress. A schedule stands in for any number in a plugin's configuration.

A schedule is a pure function of how far the run has come, so there is nothing to save: a resumed run goes on with the
same values. ``over`` says how long the way from ``start`` to ``end`` takes and ``after`` when it begins, each a number
of updates or a text such as ``"5 epochs"``; without ``over`` it takes the planned run.

With c the count of updates (or epochs) and t = clamp((c − after) / over, 0, 1), ``start`` holds up to ``after`` and
``end`` is reached exactly at count ``after + over``. Both counts begin at 1, so the first update, or the first epoch,
is one step on the way already: over 4 epochs a line is at t = 1/4 in all of epoch 1, 2/4 in epoch 2, and at its end in
epoch 4. With ``after="1 epochs"`` the first epoch has ``start``.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any, TypeAlias

from weightsmith.errors import ConfigurationError
from weightsmith.importing import import_path, imported, looked_up

__all__ = [
    "Function",
    "Progress",
    "Schedule",
    "Span",
    "cosine",
    "cubic",
    "exponential",
    "function",
    "linear",
    "parse_span",
    "piecewise",
]

Span: TypeAlias = int | str
"""A number of updates, or a text such as ``"5 epochs"``."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        update: count of the optimizer in progress, 1-based while it updates.
        epoch: the epoch in progress, 1-based.
        share: the part of the planned run that is done at the end of the iteration in progress, 0 to 1;
            ``None`` where the length of the run is not known beforehand.
    """

    update: int = 0
    epoch: int = 0
    share: float | None = 0.0

    def count(self, unit: str) -> int:
        """``update`` or ``epoch``, for the unit ``"updates"`` or ``"epochs"``."""
        return self.epoch if unit == "epochs" else self.update


def parse_span(span: Span) -> tuple[int, str]:
    """``(number, unit)``, with the unit ``"updates"`` or ``"epochs"``.

    >>> parse_span("5 epochs"), parse_span(100)
    ((5, 'epochs'), (100, 'updates'))

    Raises:
        ConfigurationError: the text is not of the form ``"5 epochs"`` or ``"100 updates"``, or the number is negative.
    """
    if isinstance(span, int) and not isinstance(span, bool):
        number, unit = span, "updates"
    else:
        words = span.split() if isinstance(span, str) else []
        if len(words) != 2 or not words[0].isdecimal() or words[1].removesuffix("s") not in ("epoch", "update"):
            raise ConfigurationError(f'{span!r} is no span: write a number of updates, or a text such as "5 epochs"')
        number, unit = int(words[0]), words[1].removesuffix("s") + "s"
    if number < 0:
        raise ConfigurationError(f"{span!r} is no span: it must not be negative")
    return number, unit


class Schedule(ABC):
    """A number as a function of :class:`Progress`."""

    @abstractmethod
    def __call__(self, progress: Progress) -> float:
        """The number at this point of the run."""

    @abstractmethod
    def known_values(self) -> tuple[float, ...]:
        """Its first value, its last, and any between that are known before the run; empty if none is."""

    @property
    def needs_length(self) -> bool:
        """Whether its values can be told only where the length of the run is known."""
        return False

    def without_length(self) -> ConfigurationError:
        """What is raised where it needs the length of the run, and that is not known."""
        return ConfigurationError(f"{self!r} needs the length of the run, which is not known: say over=…")

    @abstractmethod
    def to_plain(self) -> dict[str, Any]:
        """As YAML writes it, such as ``{"linear": {"start": 1.0, "end": 0.0}}``."""


_SHAPES: Mapping[str, Callable[[float, float, float], float]] = {
    "linear": lambda start, end, t: start + (end - start) * t,
    "cosine": lambda start, end, t: end + (start - end) * (1 + math.cos(math.pi * t)) / 2,
    "exponential": lambda start, end, t: start * (end / start) ** t,
    "cubic": lambda start, end, t: end + (start - end) * (1 - t) ** 3,
}


@dataclass(frozen=True, repr=False)
class Ramp(Schedule):
    """From ``start`` to ``end`` along a curve; :func:`linear`, :func:`cosine`, :func:`exponential`, :func:`cubic`."""

    shape: str
    start: float
    end: float
    over: Span | None = None
    after: Span = 0

    def __post_init__(self) -> None:
        _refuse_no_numbers(self.shape, [self.start, self.end])
        if self.shape == "exponential" and not self.start * self.end > 0:
            raise ConfigurationError(f"{self!r}: start and end must be non-zero and of one sign")
        delay, delay_unit = parse_span(self.after)
        if self.over is None:
            if delay:
                raise ConfigurationError(f"{self!r}: after needs an over, which says how long the way takes")
            return
        length, unit = parse_span(self.over)
        if length == 0:
            raise ConfigurationError(f"{self!r}: over must be at least 1")
        if delay and unit != delay_unit:
            raise ConfigurationError(f"{self!r}: over and after must both count updates, or both epochs")

    def __call__(self, progress: Progress) -> float:
        share = self._share(progress)
        if share <= 0:
            return self.start
        return self.end if share >= 1 else _SHAPES[self.shape](self.start, self.end, share)

    def _share(self, progress: Progress) -> float:
        if self.over is None:
            if progress.share is None:
                raise self.without_length()
            return progress.share
        length, unit = parse_span(self.over)
        return (progress.count(unit) - parse_span(self.after)[0]) / length

    @property
    def needs_length(self) -> bool:
        return self.over is None

    def known_values(self) -> tuple[float, ...]:
        return self.start, self.end

    def to_plain(self) -> dict[str, Any]:
        optional = {"over": self.over} if self.over is not None else {}
        optional |= {"after": self.after} if self.after else {}
        return {self.shape: {"start": self.start, "end": self.end, **optional}}

    def __repr__(self) -> str:
        arguments = self.to_plain()[self.shape]
        named = [f"{name}={arguments[name]!r}" for name in ("over", "after") if name in arguments]
        return f"{self.shape}({', '.join([repr(self.start), repr(self.end), *named])})"


@dataclass(frozen=True, repr=False)
class Steps(Schedule):
    """One value after another; made by :func:`piecewise`."""

    values: tuple[tuple[Span, float], ...]

    def __post_init__(self) -> None:
        _refuse_no_numbers("piecewise", [value for _, value in self.values])
        spans = [parse_span(span) for span, _ in self.values]
        if not spans or spans[0][0] != 0:
            raise ConfigurationError(f"{self!r}: the first value must begin at 0")
        if len({unit for number, unit in spans if number}) > 1:
            raise ConfigurationError(f"{self!r}: the bounds must all count updates, or all epochs")
        numbers = [number for number, _ in spans]
        if any(a >= b for a, b in pairwise(numbers)):
            raise ConfigurationError(f"{self!r}: the bounds must grow")

    def __call__(self, progress: Progress) -> float:
        reached = self.values[0][1]
        for span, value in self.values[1:]:
            number, unit = parse_span(span)
            if progress.count(unit) > number:
                reached = value
        return reached

    def known_values(self) -> tuple[float, ...]:
        return tuple(value for _, value in self.values)

    def to_plain(self) -> dict[str, Any]:
        return {"piecewise": dict(self.values)}

    def __repr__(self) -> str:
        return f"piecewise({dict(self.values)!r})"


@dataclass(frozen=True, repr=False)
class Function(Schedule):
    """Somebody's function of :class:`Progress`, by import path; made by :func:`function`."""

    path: str

    def __post_init__(self) -> None:
        if not callable(looked_up(self.path)):
            raise ConfigurationError(f"{self.path!r} is no function")

    def __call__(self, progress: Progress) -> float:
        return float(imported(self.path)(progress))

    def known_values(self) -> tuple[float, ...]:
        return ()

    def to_plain(self) -> dict[str, Any]:
        return {"function": self.path}

    def __repr__(self) -> str:
        return f"function({self.path!r})"


# The factories promise `Any`: a schedule stands in a field typed `float`, and is a float before anyone reads it.


def linear(start: float, end: float, *, over: Span | None = None, after: Span = 0) -> Any:
    """A straight line: start + (end − start) · t. As with the other curves, the first count is one step on the way.

    >>> linear(1.0, 0.0, over=10)(Progress(update=5))
    0.5
    >>> line = linear(1.0, 0.0, over="4 epochs")
    >>> [line(Progress(epoch=epoch)) for epoch in (1, 2, 3, 4)]
    [0.75, 0.5, 0.25, 0.0]
    """
    return Ramp("linear", start, end, over, after)


def cosine(start: float, end: float, *, over: Span | None = None, after: Span = 0) -> Any:
    """Half a cosine wave: end + (start − end) · (1 + cos πt) / 2 (Loshchilov & Hutter, 2017, arXiv:1608.03983).

    >>> cosine(1.0, 0.0, over="4 epochs")(Progress(epoch=2))
    0.5
    """
    return Ramp("cosine", start, end, over, after)


def exponential(start: float, end: float, *, over: Span | None = None, after: Span = 0) -> Any:
    """A constant ratio per step: start · (end / start)^t.

    >>> exponential(1.0, 0.01, over=2)(Progress(update=1))
    0.1

    Raises:
        ConfigurationError: ``start`` or ``end`` is zero, or their signs differ.
    """
    return Ramp("exponential", start, end, over, after)


def cubic(start: float, end: float, *, over: Span | None = None, after: Span = 0) -> Any:
    """Fast first, then slow: end + (start − end) · (1 − t)³, for gradual pruning (Zhu & Gupta, 2017, arXiv:1710.01878).

    >>> cubic(0.0, 0.8, over=4)(Progress(update=2))
    0.7000000000000001
    """
    return Ramp("cubic", start, end, over, after)


def piecewise(values: Mapping[Span, float]) -> Any:
    """A constant after each bound: ``piecewise({0: 0.1, 100: 0.01})`` is 0.1 through update 100, then 0.01.

    >>> steps = piecewise({0: 0.1, 100: 0.01})
    >>> steps(Progress(update=100)), steps(Progress(update=101))
    (0.1, 0.01)

    Raises:
        ConfigurationError: it is no mapping, its bounds do not grow from 0, or a value is no number.
    """
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"piecewise takes bounds and values, such as {{0: 0.1, 100: 0.01}}, not {values}")
    return Steps(tuple(values.items()))


def function(path_or_function: str | Callable[[Progress], float]) -> Any:
    """A function of :class:`Progress`, defined at the top of a module, given itself or by import path.

    >>> function("weightsmith.schedules.Progress.count")
    function('weightsmith.schedules.Progress.count')
    """
    return Function(path_or_function if isinstance(path_or_function, str) else import_path(path_or_function))


def _refuse_no_numbers(name: str, values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ConfigurationError(f"{name}: {value!r} is no number")
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            raise ConfigurationError(f"{name}: a magnitude is beyond {sys.float_info.max:.2g}: give a smaller one")


NAMES = (*_SHAPES, "piecewise", "function")
"""What YAML calls schedules."""


def from_plain(name: str, arguments: Any) -> Schedule | None:
    """The schedule that :meth:`Schedule.to_plain` wrote as ``{name: arguments}``; ``None`` if it is no schedule."""
    if name in _SHAPES:
        settings = dict(arguments) if isinstance(arguments, Mapping) else {"start": arguments}
        unknown = [key for key in settings if key not in ("start", "end", "over", "after")]
        if unknown or not {"start", "end"} <= settings.keys():
            raise ConfigurationError(
                f"{name} takes start, end, over and after, of which the first two are needed, not {settings}"
            )
        return Ramp(name, **settings)
    if name == "piecewise":
        steps: Schedule = piecewise(arguments)
        return steps
    return Function(arguments) if name == "function" else None
