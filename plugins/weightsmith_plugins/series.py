"""What sinks wrote about a run, read back: plain numbers and arrays, free of any logging library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Distribution", "Gathering", "Series"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Distribution:
    """The distribution of one tensor's finite values at one step, in the buckets that hold any.

    Attributes:
        step: the epoch, or the update, at which it was measured.
        starts, limits: left and right edges of the buckets, ascending, in units of the values; shape ``(buckets,)``.
        counts: how many values fell into each bucket, all above 0; same shape.
        minimum, maximum: of the values; NaN if not known.
        count: how many values there are.
        zeros: how many of them are zero; ``None`` where the file does not say.
    """

    step: int
    starts: Array
    limits: Array
    counts: Array
    minimum: float
    maximum: float
    count: int
    zeros: int | None


@dataclass(frozen=True, eq=False)
class Series:
    """Everything that was measured in a run, over its steps.

    Attributes:
        numbers: tag (``loss/optimizer``) to pairs of step and number, by ascending steps; NaN where a number was not
            finite and the file does not say how.
        distributions: tag (``weights/conv1/weight``) to distributions, by ascending steps.
    """

    numbers: Mapping[str, tuple[tuple[int, float], ...]]
    distributions: Mapping[str, tuple[Distribution, ...]]

    def __bool__(self) -> bool:
        """Whether anything was measured."""
        return bool(self.numbers or self.distributions)

    def completed_by(self, other: Series) -> Series:
        """The same run as another file tells it: of each tag, what has more steps, in doubt this one's."""
        numbers, distributions = dict(self.numbers), dict(self.distributions)
        for tag, pairs in other.numbers.items():
            if len(pairs) > len(numbers.get(tag, ())):
                numbers[tag] = pairs
        for tag, some in other.distributions.items():
            if len(some) > len(distributions.get(tag, ())):
                distributions[tag] = some
        return Series(numbers, distributions)


class Gathering:
    """Takes measurements in the order in which they were written. Where a tag goes back to a step, as in a run that was
    resumed, what it had from that step on is dropped: each step is there once, as it was measured last.

    >>> gathering = Gathering()
    >>> for step, loss in [(1, 0.9), (2, 0.8), (3, 0.7), (2, 0.5)]:
    ...     gathering.add_number("loss", step, loss)
    >>> gathering.series().numbers
    {'loss': ((1, 0.9), (2, 0.5))}
    """

    def __init__(self) -> None:
        self._numbers: dict[str, list[tuple[int, float]]] = {}
        self._distributions: dict[str, list[Distribution]] = {}

    def add_number(self, tag: str, step: int, number: float) -> None:
        known = self._numbers.setdefault(tag, [])
        while known and known[-1][0] >= step:
            known.pop()
        known.append((step, number))

    def add_distribution(self, tag: str, distribution: Distribution) -> None:
        known = self._distributions.setdefault(tag, [])
        while known and known[-1].step >= distribution.step:
            known.pop()
        known.append(distribution)

    def series(self) -> Series:
        """What was taken so far."""
        return Series(
            {tag: tuple(pairs) for tag, pairs in self._numbers.items()},
            {tag: tuple(some) for tag, some in self._distributions.items()},
        )
