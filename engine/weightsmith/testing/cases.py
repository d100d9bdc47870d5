"""The table: a row a plugin, and the checks that apply to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.errors import ConfigurationError
from weightsmith.plugin import Plugin
from weightsmith.schedules import Progress

__all__ = ["Case", "Check", "check", "conformance", "missing"]


@dataclass(frozen=True, eq=False)
class Case:
    """One row of the table.

    Args:
        plugin: the plugin, configured so that it does something to standard normal weights.
        holds: for a constraint: true, as a whole, elementwise or per unit, for points of its set, given a weight of
            shape ``(units, …)``; leave room for rounding: ``lambda weight: weight.flatten(1).norm(dim=1) <= 1.001``.
        spans_weights: whether its mathematics spans all selected weights (a global norm), so that the singular form
            equals the plural form on one weight only.
        stops_learning: whether a gradient editor is meant to remove gradients.
        shapes: the shapes that it is tried on.
        layer: makes a layer that can follow itself, for plugins that cannot act on linear layers; default
            ``nn.Linear(4, 4)`` and such.
        inputs: the shape of a batch for such a layer.
    """

    plugin: Plugin
    holds: Callable[[Tensor], Tensor | bool] | None = None
    spans_weights: bool = False
    stops_learning: bool = False
    shapes: Sequence[tuple[int, ...]] = field(default=((6, 5), (4, 3, 2, 2)))
    layer: Callable[[], nn.Module] | None = None
    inputs: tuple[int, ...] = (4, 4)

    def __post_init__(self) -> None:
        if not isinstance(self.plugin, Plugin):
            raise ConfigurationError(f"Case takes a plugin, such as one made of your class, not {self.plugin!r}")

    def __str__(self) -> str:
        return repr(self.plugin)


@dataclass(frozen=True)
class Check:
    """One check, for the kinds that it applies to."""

    run: Callable[[Case], None]
    kinds: tuple[type[Any], ...]
    pure: bool

    def __call__(self, case: Case) -> None:
        torch.manual_seed(0)
        # The pure methods never see a schedule: outside a trainer, one stands at its start.
        self.run(replace(case, plugin=case.plugin.resolved(Progress())) if self.pure else case)

    def __str__(self) -> str:
        return self.run.__name__


_CHECKS: list[Check] = []


def check(*kinds: type[Any], pure: bool = True) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    def register(run: Callable[[Case], None]) -> Callable[[Case], None]:
        _CHECKS.append(Check(run, kinds, pure))
        return run

    return register


def conformance(cases: Sequence[Case]) -> list[tuple[Check, Case]]:
    """Every check that applies, with every case: parameters for ``pytest.mark.parametrize``."""
    return [(check, case) for case in cases for check in _CHECKS if isinstance(case.plugin, check.kinds)]


def missing(cases: Sequence[Case], *packages: str) -> list[str]:
    """The plugin classes of the packages that have no row in the table."""
    covered = {type(case.plugin) for case in cases}
    found = {cls for cls in _concrete(Plugin) if cls.__module__.partition(".")[0] in packages}
    return sorted(f"{cls.__module__}.{cls.__qualname__}" for cls in found - covered)


def _concrete(cls: type[Any]) -> Iterator[type[Any]]:
    for subclass in cls.__subclasses__():
        if not inspect.isabstract(subclass):
            yield subclass
        yield from _concrete(subclass)
