"""What a report shows of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith_plugins.report.naming import RUN, Choice, group_of, title_of
from weightsmith_plugins.report.panels import others, training
from weightsmith_plugins.report.plots import ridge_plots
from weightsmith_plugins.report.sections import Section
from weightsmith_plugins.series import Series

__all__ = ["Contents", "Result", "contents"]

_LESS_IS_BETTER = re.compile(r"loss|err|mse|mae|nll|perplexity|distance|divergence", re.IGNORECASE)


@dataclass(frozen=True)
class Result:
    """A metric or loss: its last number, and the best with its epoch, which is 0 if none was finite. The least is the
    best of what is called a loss, an error, a distance, a divergence or perplexity; else the largest."""

    name: str
    last: float
    best: float
    epoch: int


@dataclass(frozen=True)
class Contents:
    """Of one report.

    Attributes:
        title: the run's name.
        summary: what was measured of it, in one line.
        results: metrics, then losses.
        sections: the figures.
    """

    title: str
    summary: str
    results: Sequence[Result]
    sections: Sequence[Section]


def contents(title: str, series: Series, where: str = "*") -> Contents:
    """What is shown of a run.

    Args:
        title: its name.
        where: a glob on the names of weights. A module's name stands for all below it.

    Raises:
        ConfigurationError: no weight that was measured has such a name.
    """
    choice, last_epoch = Choice.of(series, where), _last_epoch(series)
    plots = ridge_plots(series, choice, last_epoch)
    lines = others(series, choice, last_epoch)
    sections = [training(series, choice, last_epoch), *plots, *lines]
    sections.sort(key=lambda section: section.is_folded)
    summary = f"{_counted(last_epoch, 'epoch')}, {_counted(len(choice.weights), 'weight')} measured"
    if where != "*":
        summary += f", {len(choice.chosen)} shown: {where}"
    return Contents(title, summary, _results(series), [section for section in sections if section.blocks])


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' if count != 1 else ''}"


def _last_epoch(series: Series) -> int:
    by_epoch = [pairs[-1][0] for tag, pairs in series.numbers.items() if group_of(tag) in RUN]
    distributions = [some[-1].step for some in series.distributions.values()]
    return max(by_epoch or distributions or [pairs[-1][0] for pairs in series.numbers.values()])


def _results(series: Series) -> list[Result]:
    tags = [tag for group in ("metrics", "loss") for tag in series.numbers if group_of(tag) == group]
    return [_result(title_of(tag), series.numbers[tag]) for tag in tags]


def _result(name: str, pairs: Sequence[tuple[int, float]]) -> Result:
    finite = [(number, step) for step, number in pairs if math.isfinite(number)]
    if not finite:
        return Result(name, pairs[-1][1], math.nan, 0)
    sign = 1 if _LESS_IS_BETTER.search(name) else -1
    best, step = min(finite, key=lambda pair: (sign * pair[0], pair[1]))
    return Result(name, pairs[-1][1], best, step)
