"""One attached plugin: what it listens to, and what is saved of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from weightsmith.binding import Binding
from weightsmith.handlers import PluginHandler
from weightsmith.plugin import Plugin
from weightsmith.values import from_values, to_values

__all__ = ["Attachment"]


@dataclass(eq=False)
class Attachment:
    """One attached plugin.

    Attributes:
        plugin: the plugin.
        binding: its weights; ``None`` for a plugin that selects none.
        handlers: the events that it subscribes to, and its handlers of them.
        registered: these handlers as Ignite holds them, by which their order is kept.
        endings: what to call when it is detached.
        kept: what is saved with the run besides.
        label: its class's path, and its number among the acting plugins of that class: ``"weightsmith_plugins.L2"``,
            ``"weightsmith_plugins.L2#1"``. Names what is saved of it.
    """

    plugin: Plugin
    binding: Binding | None = None
    handlers: list[tuple[Any, PluginHandler]] = field(default_factory=list)
    registered: list[Any] = field(default_factory=list)
    endings: list[Callable[..., Any]] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    label: str = ""

    def state_dict(self) -> dict[str, Any]:
        """What is to be saved of it, as plain values; empty if there is nothing."""
        kept = [part.state_dict() for part in self.kept]
        found = {**({} if self.binding is None else self.binding.state_dict()), "kept": kept if any(kept) else []}
        return {
            part: to_values(copy.deepcopy(value), f"{self.label}, {part}") for part, value in found.items() if value
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore what :meth:`state_dict` gave."""
        found = from_values(state, device)
        if self.binding is not None:
            self.binding.load_state_dict(found)
        for place, part in enumerate(self.kept):
            part.load_state_dict(found["kept"][place] if "kept" in found else {})

    def misfits(self, state: Mapping[str, Any]) -> list[str]:
        """What of a saved state there is no place for here."""
        if self.lacks_place_for_notes(state):
            return ["its notes"]
        memories = {**state.get("memory", {}), **state.get("generators", {})}
        return sorted(memories.keys() - (set() if self.binding is None else self.binding.names()))

    def lacks_place_for_notes(self, state: Mapping[str, Any]) -> bool:
        """Whether a saved state has notes for which there is no place here."""
        return len(state.get("kept", [])) > len(self.kept)
