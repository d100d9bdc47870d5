"""What probes hand to sinks: plain values, free of any logging library."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from weightsmith.errors import PluginContractError

__all__ = ["Histogram", "Measurement", "Measurements", "Picture", "Published", "Settings", "is_measurement"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Histogram:
    """The distribution of one tensor's finite values.

    Attributes:
        limits: right edges of the buckets, ascending; shape ``(buckets,)``.
        counts: how many values fell into each bucket, a value on an edge into the bucket that it begins; same shape.
        minimum, maximum: of the finite values; 0-d.
        total, total_squares: Σw and Σw² of the finite values; 0-d, float64.
        count: how many finite values there are.
        nonfinite: how many NaN and infinite values were left out.
        zeros: how many values are zero.
        subnormal: how many are nearer to zero than the smallest normal number of their dtype, and not zero.
    """

    limits: Tensor
    counts: Tensor
    minimum: Tensor
    maximum: Tensor
    total: Tensor
    total_squares: Tensor
    count: int
    nonfinite: int
    zeros: int
    subnormal: int


@dataclass(frozen=True, eq=False)
class Picture:
    """An image.

    Attributes:
        pixels: red, green and blue, 0 to 255; uint8, shape ``(height, width, 3)``.
    """

    pixels: Tensor


@dataclass(frozen=True)
class Settings:
    """What a run was configured to be, to compare runs by.

    Attributes:
        values: name to number, text or truth value.
        metrics: the tags of the numbers by which to judge the run.
    """

    values: Mapping[str, float | str | bool]
    metrics: tuple[str, ...]


Measurement: TypeAlias = Tensor | float | Histogram | Picture | Settings
"""One measured thing: a 0-d tensor or a number (drawn as a scalar), a histogram, a picture, or a run's settings."""


def is_measurement(value: object) -> bool:
    """Whether it is a :data:`Measurement`."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_complex()
    return isinstance(value, (int, float, Histogram, Picture, Settings))


@dataclass(frozen=True)
class Measurements:
    """A batch of measurements.

    Attributes:
        values: tag (``weights/conv1/weight``) to what was measured.
        step: where on the horizontal axis they belong (the epoch, or the update, that the probe ran at).
    """

    values: Mapping[str, Measurement]
    step: int


class Published(dict[str, int]):
    """What was measured in this run: tag to the step of its last measurement."""

    _said = False

    def record(self, values: Mapping[str, Measurement], step: int) -> None:
        """Note a batch of measurements; warn, once, of tags that have one at this step already.

        Raises:
            PluginContractError: a value is no measurement.
        """
        for tag, value in values.items():
            if not is_measurement(value):
                raise PluginContractError(
                    f"{tag!r} was measured as {value!r}: give a number, a 0-d tensor, a Histogram or a Picture"
                )
        twice = [tag for tag in values if self.get(tag) == step]
        if twice and not self._said:
            self._said = True
            logger.warning(
                "%d tag(s), such as %r, were measured twice at step %d: do two probes share them, and so one line?",
                len(twice),
                twice[0],
                step,
            )
        self.update(dict.fromkeys(values, step))
