"""Who touches which weight, on which event, in which order."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    event: str
    plugin: str
    when: str
    weights: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """The rows in the order in which they happen; printed as a table."""

    rows: tuple[PlanRow, ...]

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
        return "\n".join(lines) if lines else "no plugin is attached"
