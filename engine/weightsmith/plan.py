"""Who touches which weight, on which event, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Plan", "PlanRow"]


@dataclass(frozen=True)
class PlanRow:
    """One plugin on one event.

    Attributes:
        event: the event's name; ``"FORWARD"`` for what a layer computes with in its forward pass.
        plugin: the plugin, printed.
        when: what limits it, such as ``"every 2, after 100"``; empty if it always runs. (``plugin`` shows it too.)
        weights: the names of the weights that it touches there.
        note: what a reader should know, such as weights in no optimizer.
        values: of each field that a schedule gives, (share of the run, value) along the run; empty where the length of
            the run was not given.
    """

    event: str
    plugin: str
    when: str
    weights: tuple[str, ...]
    note: str = ""
    values: Mapping[str, tuple[tuple[float, Any], ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The rows in the order in which they happen; printed as a table.

    Attributes:
        rows: one plugin on one event each.
        untouched: the names of the weights that no plugin draws, edits, constrains, charges for or parametrizes.
    """

    rows: tuple[PlanRow, ...]
    untouched: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines: list[str] = []
        event = None
        for row in self.rows:
            if row.event != event:
                event = row.event
                lines.append(event)
            lines.append(f"  {row.plugin}{f'  ({row.note})' if row.note else ''}")
            if row.weights:
                lines.append(f"      {', '.join(row.weights)}")
            for name, values in row.values.items():
                along = ", ".join(f"{_shown(value)} at {share:.0%}" for share, value in values)
                lines.append(f"      {name}: {along} of the run")
        if not lines:
            return "no plugin is attached"
        if self.untouched:
            lines += ["SHAPED BY NONE", f"      {', '.join(self.untouched)}"]
        return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
