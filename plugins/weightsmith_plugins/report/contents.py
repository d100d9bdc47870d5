"""What a report shows: which sections, which figures in them, and what it says of those that it leaves out."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from matplotlib.figure import FigureBase
from weightsmith import ConfigurationError

from weightsmith_plugins.dashboard import charts
from weightsmith_plugins.report.drawing import LINES_HEIGHT, Line, draw_lines, draw_ridges, ridges_height
from weightsmith_plugins.report.ridges import MOST, Ridges, evenly, ridges
from weightsmith_plugins.series import Distribution, Series

__all__ = ["Block", "Contents", "Result", "Section", "contents"]

_MOST_BLOCKS = 24
"""Figures in a section."""

_RUN = ("metrics", "loss", "learning_rate", "penalties", "violations")
"""Groups of tags that are measured of the run as a whole, and epoch by epoch."""

_TITLES = {
    "weights": "Weights",
    "raw_weights": "Raw parameters of parametrized weights",
    "gradients": "Gradients",
    "updates": "Updates, Δw",
}
_NONFINITE = {"weights": "nonfinite", "raw_weights": "raw_nonfinite", "gradients": "nonfinite_gradients"}
"""Group of distributions to that of the numbers that say how many values were not finite."""

_LESS_IS_BETTER = re.compile(r"loss|err|mse|mae|nll|perplexity|distance|divergence|violation", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """A figure.

    Attributes:
        title: what it shows.
        told: the same in words, for who cannot see it.
        height: in inches; all are of one width.
        draw: draws it.
    """

    title: str
    told: str
    height: float
    draw: Callable[[FigureBase], None]


@dataclass(frozen=True)
class Section:
    """Figures under a heading.

    Attributes:
        note: what is left out; may be empty.
        is_folded: whether a page that can fold shows it on demand.
    """

    title: str
    note: str
    blocks: Sequence[Block]
    is_folded: bool = False


@dataclass(frozen=True)
class Result:
    """A metric or loss: its last number, and the best with its step; NaN if none was finite."""

    name: str
    last: float
    best: float
    step: int


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
        where: a glob on the names of weights. A module's name stands for all below it.

    Raises:
        ConfigurationError: no weight that was measured has such a name.
    """
    weights = list(dict.fromkeys(_weight(tag) for tag in _tags_by_weight(series)))
    chosen = _chosen(weights, where)
    last = _last_epoch(series)
    sections = [_training(series, last, chosen if where != "*" else None)]
    ridged, folded = _ridged(series, chosen, last)
    sections += [*ridged, *_lined(series, chosen, last), *folded]
    counted = (
        f"{last} epoch{'s' if last != 1 else ''}, {len(weights)} weight{'s' if len(weights) != 1 else ''} measured"
    )
    summary = counted if where == "*" else f"{counted}, of which {where!r} chooses {len(chosen)}"
    return Contents(title, summary, _results(series), [section for section in sections if section.blocks])


# -------------------------------------------------------------------- names


def _group(tag: str) -> str:
    return tag.partition("/")[0]


def _rest(tag: str) -> str:
    return tag.partition("/")[2]


def _weight(tag: str) -> str:
    """The name of the weight that a tag tells of.

    >>> _weight("weights/features.0/weight")
    'features.0.weight'
    """
    return _rest(tag).replace("/", ".")


def _tags_by_weight(series: Series) -> Iterable[str]:
    """Tags of what is measured weight by weight; the last part of some is a plugin's name."""
    ordered = sorted(
        series.distributions, key=lambda tag: list(_TITLES).index(g) if (g := _group(tag)) in _TITLES else 9
    )
    yield from (tag for tag in ordered if "/" in tag)
    layout = charts(series.numbers).get("All weights, one line each", {})
    for tag in series.numbers:
        if any(re.match(pattern, tag) for pattern in layout.values()) and _rest(tag) and "losses" not in _group(tag):
            yield tag


def _chosen(weights: Sequence[str], where: str) -> frozenset[str]:
    found = frozenset(name for name in weights if fnmatchcase(name, where) or fnmatchcase(name, f"{where}.*"))
    if weights and not found and where != "*":
        near = difflib.get_close_matches(where, weights, n=3, cutoff=0.3) or weights[:3]
        raise ConfigurationError(
            f"report: where={where!r} matches no weight that was measured; there is {', '.join(map(repr, near))}"
        )
    return found


def _tells_of(tag: str, chosen: Iterable[str]) -> bool:
    """Whether a tag tells of one of these weights: ``violations/<constraint>/<weight>`` and ``effect/<weight>/<plugin>``
    have more in them than the weight's name."""
    name = f".{_weight(tag)}."
    return any(f".{weight}." in name for weight in chosen)


# -------------------------------------------------------------------- numbers


def _last_epoch(series: Series) -> int:
    by_epoch = [pairs[-1][0] for tag, pairs in series.numbers.items() if _group(tag) in _RUN]
    others = [some[-1].step for some in series.distributions.values()] or [p[-1][0] for p in series.numbers.values()]
    return max(by_epoch or others, default=0)


def _unit(last_step: int, last_epoch: int) -> str:
    """Of the steps: what goes on beyond the last epoch was measured at updates."""
    return "epoch" if last_step <= last_epoch else "update"


def _results(series: Series) -> list[Result]:
    found = []
    for group in ("metrics", "loss"):
        for tag, pairs in series.numbers.items():
            if _group(tag) == group:
                found.append(_result(_short(tag), pairs))
    return found


def _result(name: str, pairs: Sequence[tuple[int, float]]) -> Result:
    finite = [(number, step) for step, number in pairs if math.isfinite(number)]
    if not finite:
        return Result(name, pairs[-1][1], math.nan, 0)
    less = bool(_LESS_IS_BETTER.search(name))
    best, step = min(finite, key=lambda pair: (pair[0] if less else -pair[0], pair[1]))
    return Result(name, pairs[-1][1], best, step)


def _short(tag: str) -> str:
    """What the legend calls a number of the run.

    >>> _short("metrics/accuracy"), _short("loss/optimizer"), _short("loss/generator")
    ('accuracy', 'training loss', 'training loss, generator')
    """
    group, rest = _group(tag), _rest(tag)
    if group == "loss":
        return "training loss" if rest == "optimizer" else f"training loss, {rest}"
    return rest.replace("/", " ") or group


def _training(series: Series, last: int, chosen: frozenset[str] | None) -> Section:
    """Metrics, each in a panel; losses, learning rates, penalties and violations, each group in one."""
    of: dict[str, list[str]] = {group: [] for group in _RUN}
    for tag in series.numbers:
        if _group(tag) in of:
            of[_group(tag)].append(tag)
    if chosen is not None:
        of["violations"] = [tag for tag in of["violations"] if _tells_of(tag, chosen)]
    panels = {_short(tag): [tag] for tag in of["metrics"]}
    panels |= {"Training loss": of["loss"], "Learning rate": of["learning_rate"]}
    panels |= {"What penalties charge": of["penalties"], "Violations of constraints": of["violations"]}
    blocks = [_panel(title, series, tags, last, _short) for title, tags in panels.items() if tags]
    return Section("Training", _left_out(len(blocks), "panels", ""), blocks[:_MOST_BLOCKS])


def _lined(series: Series, chosen: frozenset[str], last: int) -> list[Section]:
    """Every other number, in the charts that TensorBoard's Custom Scalars page has of it."""
    sections = []
    for category, titles in charts(tag for tag in series.numbers if _group(tag) not in _RUN).items():
        blocks = []
        for title, pattern in titles.items():
            of_weights = category != "More"
            tags = [tag for tag in series.numbers if re.match(pattern, tag) and _group(tag) not in _RUN]
            tags = [tag for tag in tags if not of_weights or "losses" in _group(tag) or _tells_of(tag, chosen)]
            name = _weight if category == "All weights, one line each" else lambda tag: tag.rpartition("/")[2]
            several = len({_group(tag) for tag in tags}) > 1
            label = functools.partial(_with_group, name) if several else name
            if tags:
                blocks.append(_panel(title, series, tags, last, label))
        note = _left_out(len(blocks), "panels", "the first ones are drawn")
        sections.append(Section(category, note, blocks[:_MOST_BLOCKS], category != "All weights, one line each"))
    return sections


def _with_group(name: Callable[[str], str], tag: str) -> str:
    return f"{_group(tag).removeprefix('weight_')} {name(tag)}"


def _panel(title: str, series: Series, tags: Sequence[str], last: int, name: Callable[[str], str]) -> Block:
    lines = [Line(name(tag), series.numbers[tag]) for tag in tags]
    unit = _unit(max(line.pairs[-1][0] for line in lines), last)
    ends = "; ".join(f"{line.name} ends at {line.pairs[-1][1]:.4g}" for line in lines[:8])
    told = f"{title} over the {unit}s: {ends}{f'; and {len(lines) - 8} more' if len(lines) > 8 else ''}"
    return Block(title, told, LINES_HEIGHT, functools.partial(draw_lines, title=title, lines=lines, unit=unit))


# -------------------------------------------------------------------- distributions


def _ridged(series: Series, chosen: frozenset[str], last: int) -> tuple[list[Section], list[Section]]:
    """A section for each group of distributions; the weights' are open, those of the other groups folded."""
    groups: dict[str, list[str]] = {group: [] for group in _TITLES}
    for tag in series.distributions:
        groups.setdefault(_group(tag), []).append(tag)
    shown, folded = [], []
    for group, all_tags in groups.items():
        tags = [tag for tag in all_tags if _weight(tag) in chosen or not _rest(tag)]
        blocks = [_ridge_block(series, tag, last) for tag in evenly(tags, _MOST_BLOCKS)]
        title = _TITLES.get(group, group)
        note = _left_out(len(tags), "weights", "these are spread evenly over the model")
        (shown if group == "weights" else folded).append(Section(title, note, blocks, group != "weights"))
    return shown, folded


def _ridge_block(series: Series, tag: str, last: int) -> Block:
    some = series.distributions[tag]
    name, found, unit = _weight(tag) or tag, ridges(some), _unit(some[-1].step, last)
    notes = _notes(some, found, unit, dict(series.numbers.get(_nonfinite_tag(tag), ())))
    end = some[-1]
    told = (
        f"{_group(tag)} {name}: its distribution from {unit} {some[0].step} to {end.step}, one ridge each; at the end "
        f"{end.count:,} values from {end.minimum:.3g} to {end.maximum:.3g}; {notes}"
    )
    height = ridges_height(min(max(map(len, series.distributions.values())), MOST))
    draw = functools.partial(draw_ridges, height=height, name=name, notes=notes, found=found, unit=unit)
    return Block(name, told, height, draw)


def _nonfinite_tag(tag: str) -> str:
    return f"{_NONFINITE.get(_group(tag), '')}/{_rest(tag)}"


def _notes(some: Sequence[Distribution], found: Ridges, unit: str, nonfinite: Mapping[int, float]) -> str:
    """What stands below a plot's title."""
    notes = [f"{some[-1].count:,} value{'s' if some[-1].count != 1 else ''}"]
    if not math.isfinite(found.minimum):
        notes = ["no finite value"]
    elif found.minimum == found.maximum:
        notes.append(f"all are {found.minimum:.4g}")
    outside = max(found.ridges, key=lambda ridge: ridge.outside)
    if outside.outside:
        share = f"{outside.outside:.1%}" if outside.outside >= 0.0005 else "a few"
        notes.append(
            f"beyond the axis {'up to ' if len(found.ridges) > 1 else ''}{share} ({unit} {outside.step}), "
            f"from {found.minimum:.3g} to {found.maximum:.3g}"
        )
    if nonfinite:
        step = max(nonfinite, key=lambda step: nonfinite[step])
        notes.append(f"left out, being NaN or infinite: {nonfinite[step]:,.0f} ({unit} {step})")
    if len(found.ridges) < len(some):
        notes.append(f"{len(found.ridges)} of {len(some)} {unit}s are drawn")
    return "; ".join(notes)


def _left_out(count: int, things: str, which: str) -> str:
    if count <= _MOST_BLOCKS:
        return ""
    return f'{_MOST_BLOCKS} of {count} {things} are drawn{"; " if which else ""}{which}. where= chooses: where="encoder.*".'
