"""Distributions over the epochs, as ridge plots."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

from weightsmith_plugins.report.drawing import draw_ridges, percent, ridges_height
from weightsmith_plugins.report.naming import Choice, group_of, rest_of, weight_of
from weightsmith_plugins.report.ridges import MOST, Ridges, evenly, ridges
from weightsmith_plugins.report.sections import MOST_BLOCKS, Block, Section, left_out, unit_of
from weightsmith_plugins.series import Distribution, Series

__all__ = ["ridge_plots"]

_TITLES = {
    "weights": "Weights",
    "raw_weights": "Raw parameters of parametrized weights",
    "gradients": "Gradients",
    "updates": "Updates, Δw",
}
_NONFINITE = {"weights": "nonfinite", "raw_weights": "raw_nonfinite", "gradients": "nonfinite_gradients"}
"""Group of distributions to that of the numbers that say how many values were not finite."""

_AT_ZERO = "≈ 0: the share of values that are less than 1e-12 from zero, such as pruned ones, drawn as a pin."


def ridge_plots(series: Series, choice: Choice, last_epoch: int) -> list[Section]:
    """A section for each group of distributions, the weights' first; a page folds the others."""
    groups: dict[str, list[str]] = {group: [] for group in _TITLES}
    for tag in series.distributions:
        groups.setdefault(group_of(tag), [])
        if choice.shows(tag):
            groups[group_of(tag)].append(tag)
    return [_section(group, tags, series, last_epoch) for group, tags in groups.items()]


def _section(group: str, tags: Sequence[str], series: Series, last_epoch: int) -> Section:
    drawn = evenly(tags, MOST_BLOCKS)
    found = {tag: ridges(series.distributions[tag]) for tag in drawn}
    height = ridges_height(max((len(some.ridges) for some in found.values()), default=0))
    notes = [left_out(len(tags), "weights", "evenly over the model")]
    if any(ridge.at_zero for some in found.values() for ridge in some.ridges):
        notes.append(_AT_ZERO)
    blocks = [_block(series, tag, some, last_epoch, height) for tag, some in found.items()]
    return Section(_TITLES.get(group, group), " ".join(filter(None, notes)), blocks, is_folded=group != "weights")


def _block(series: Series, tag: str, found: Ridges, last_epoch: int, height: float) -> Block:
    some = series.distributions[tag]
    name, end, unit = weight_of(tag) or tag, some[-1], unit_of(some[-1].step, last_epoch)
    nonfinite = series.numbers.get(f"{_NONFINITE.get(group_of(tag), '')}/{rest_of(tag)}", ())
    notes = _notes(some, found, unit, dict(nonfinite))
    told = (
        f"{group_of(tag)} {name}: the distribution by {unit}, from {some[0].step} to {end.step}; at the end "
        f"{end.count:,} values from {end.minimum:.3g} to {end.maximum:.3g}; {notes}"
    )
    draw = functools.partial(draw_ridges, height=height, name=name, notes=notes, found=found, unit=unit)
    return Block(name, told, height, draw)


def _notes(some: Sequence[Distribution], found: Ridges, unit: str, nonfinite: Mapping[int, float]) -> str:
    """What stands below a plot's title."""
    notes = [f"{some[-1].count:,} value{'s' if some[-1].count != 1 else ''}"]
    if len(found.ridges) < len(some):
        notes.append(f"{MOST} of {len(some)} {unit}s are drawn")
    if found.minimum == found.maximum:
        notes.append(f"all are {found.minimum:.4g}")
    furthest = max(found.ridges, key=lambda ridge: ridge.outside)
    if furthest.outside:
        most = "up to " if len(found.ridges) > 1 else ""
        notes.append(
            f"beyond the axis {most}{percent(furthest.outside)} ({unit} {furthest.step}), "
            f"from {found.minimum:.3g} to {found.maximum:.3g}"
        )
    if nonfinite:
        step = max(nonfinite, key=lambda step: nonfinite[step] if math.isfinite(nonfinite[step]) else 0)
        notes.append(f"left out, being NaN or infinite: {nonfinite[step]:,.0f} ({unit} {step})")
    return "; ".join(notes)
