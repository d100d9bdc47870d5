"""What the tags of measurements tell of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from weightsmith import ConfigurationError

from weightsmith_plugins.series import Series

__all__ = ["RUN", "Choice", "group_of", "rest_of", "title_of", "weight_of"]

RUN = ("metrics", "loss", "learning_rate", "penalties", "violations")
"""Groups of tags that are measured of the run as a whole, epoch by epoch."""

_BY_WEIGHT = {"weight_norm", "weight_mean", "gradient_norm", "update_ratio", "sparsity", "spectral_norm"}
"""Groups of numbers whose tags go on with a weight's name, and nothing else."""


def group_of(tag: str) -> str:
    return tag.partition("/")[0]


def rest_of(tag: str) -> str:
    return tag.partition("/")[2]


def weight_of(tag: str) -> str:
    """The name of the weight that a tag tells of.

    >>> weight_of("weights/features.0/weight")
    'features.0.weight'
    """
    return rest_of(tag).replace("/", ".")


def title_of(tag: str) -> str:
    """What a number of the run is called.

    >>> title_of("metrics/accuracy"), title_of("loss/optimizer"), title_of("violations/MaxNorm/fc/weight")
    ('accuracy', 'training loss', 'MaxNorm fc.weight')
    """
    group, rest = group_of(tag), rest_of(tag)
    if group == "loss":
        return "training loss" if rest == "optimizer" else f"training loss, {rest}"
    if group == "violations":
        constraint, _, weight = rest.partition("/")
        return f"{constraint} {weight.replace('/', '.')}"
    return rest or group


@dataclass(frozen=True)
class Choice:
    """Which weights are shown.

    Attributes:
        where: a glob on their names. A module's name stands for all below it.
        weights: the names of all that were measured, in their order.
        chosen: those that are shown.
    """

    where: str
    weights: tuple[str, ...]
    chosen: frozenset[str]

    @classmethod
    def of(cls, series: Series, where: str) -> Choice:
        """
        Raises:
            ConfigurationError: no weight that was measured has such a name.
        """
        numbers = (tag for tag in series.numbers if group_of(tag).removeprefix("raw_") in _BY_WEIGHT)
        found = [tag for tags in (_ordered(series.distributions), numbers) for tag in tags if rest_of(tag)]
        weights = tuple(dict.fromkeys(map(weight_of, found)))
        chosen = frozenset(name for name in weights if _matches(name, where))
        if not chosen and where != "*":
            near = difflib.get_close_matches(where, weights, n=3, cutoff=0.3) or weights[:3]
            known = f"there is {', '.join(map(repr, near))}" if near else "none was measured"
            raise ConfigurationError(f"report: where={where!r} matches no weight: {known}")
        return cls(where, weights, chosen)

    def shows(self, tag: str) -> bool:
        """Whether a tag tells of one of the weights, or of a module that is meant. ``violations/<constraint>/<weight>``
        and ``effect/<weight>/<plugin>`` have more in them than a weight's name."""
        if self.where == "*" or _matches(weight_of(tag), self.where):
            return True
        parts = rest_of(tag).split("/")
        ends = range(1, len(parts) + 1)
        return any(".".join(parts[start:end]) in self.chosen for end in ends for start in range(end))


def _ordered(tags: Iterable[str]) -> list[str]:
    """The weights' own before those of their gradients and so on."""
    return sorted(tags, key=lambda tag: group_of(tag) != "weights")


def _matches(name: str, where: str) -> bool:
    return fnmatchcase(name, where) or fnmatchcase(name, f"{where}.*")
