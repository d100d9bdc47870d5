"""Figures of a whole run, which go with it when it is stopped and goes on: hand them to the trainer's ``keep=``."""

from typing import Any

__all__ = ["Noted"]


class Noted(dict[str, list[float]]):
    """What was noted, by name, in its order.

    >>> noted = Noted()
    >>> noted.note("loss", 0.5)
    >>> noted
    {'loss': [0.5]}
    """

    def note(self, name: str, value: float) -> None:
        self.setdefault(name, []).append(float(value))

    def state_dict(self) -> dict[str, Any]:
        return {name: list(values) for name, values in self.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clear()
        self.update({name: list(values) for name, values in state.items()})
