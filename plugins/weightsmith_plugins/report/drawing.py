"""How ridges and lines look. Drawn into any figure, or part of one; pyplot's global state is not touched."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator

from weightsmith_plugins.report.ridges import Ridges, evenly

__all__ = ["GRID", "INK", "PAPER", "SOFT", "WIDTH", "Line", "draw_lines", "draw_ridges", "percent", "ridges_height"]

INK, SOFT, GRID, PAPER = "#1f2429", "#67707a", "#dde2e7", "#fefefe"
"""Text; what is said in passing; thin lines; the background. Nothing else has these colours, so that a page can
exchange them."""

WIDTH = 4.8
LINES_HEIGHT = 2.5
"""Inches, as all sizes here."""

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Okabe and Ito's, which the colour-blind can tell apart, but for the two that a background may swallow."""

_NAMED = 8
"""Lines of a panel that the legend names."""

_LETTERS = 24
"""Of a name in a legend."""


@dataclass(frozen=True)
class Line:
    """A number over the steps.

    Attributes:
        name: what the legend says.
        pairs: step and number, by ascending steps; NaN leaves a gap.
    """

    name: str
    pairs: Sequence[tuple[int, float]]


# -------------------------------------------------------------------- ridges


def ridges_height(count: int) -> float:
    """How high a plot of so many ridges is."""
    return 2.1 + 0.085 * count


def draw_ridges(figure: FigureBase, height: float, name: str, notes: str, found: Ridges, unit: str) -> None:
    """One weight's ridges, the oldest at the top and behind, the newest in front.

    Heights are to one scale; a ridge that would dwarf the others is drawn lower, and the notes say so.

    Args:
        height: of the figure, whose width is :data:`WIDTH`.
        name: the title.
        notes: what stands below it.
        unit: of the steps.
    """
    stands_apart = any(ridge.at_zero for ridge in found.ridges)
    heights, lowered = _heights([ridge.densities.max(initial=0.0) for ridge in found.ridges])
    if lowered:
        which = ", ".join(str(found.ridges[place].step) for place in lowered[:4]) + (" …" if len(lowered) > 4 else "")
        notes = f"{notes}; drawn lower than to scale: {unit} {which}"
    axes = _axes(figure, height, right=0.62 if stands_apart else 0.2, bottom=0.42)
    _head(figure, height, name, notes)
    count = len(found.ridges)
    overlap = 1 + count / 7
    colours = matplotlib.colormaps["viridis"](np.linspace(0.12, 0.94, max(count, 2)))
    for place, ridge in enumerate(found.ridges):
        base, colour = count - 1 - place, tuple(colours[place if count > 1 else -1])
        curve = base + overlap * heights[place] * ridge.densities
        ends = found.centres[[0, -1]]
        outline = np.concatenate([ends[:1], found.centres, ends[1:]]), np.concatenate([[base], curve, [base]])
        axes.fill(*outline, facecolor=colour, linewidth=0, zorder=place + 2)
        axes.plot(found.centres, curve, color=PAPER, linewidth=0.7, zorder=place + 2.1)
        axes.plot(ends, [base, base], color=colour, linewidth=0.6, zorder=place + 2.2)
        if ridge.at_zero:
            top = base + overlap * ridge.at_zero
            axes.plot([0, 0], [base, top], color=colour, linewidth=1.6, zorder=place + 2.3)
            axes.plot([0], [top], "o", color=colour, markersize=3.4, zorder=place + 2.4, mec=PAPER, mew=0.5)
    axes.set_xlim(*found.edges[[0, -1]])
    axes.set_ylim(-0.35, count - 1 + overlap * 1.06)
    marked = evenly(range(count), 6) if count > 9 else list(range(count))
    axes.set_yticks([count - 1 - place for place in marked], [str(found.ridges[place].step) for place in marked])
    axes.set_ylabel(unit)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if stands_apart:
        _column_at_zero(axes, {count - 1 - place: found.ridges[place].at_zero for place in marked})


def _column_at_zero(axes: Axes, shares: Mapping[int, float]) -> None:
    """To the right, the share of values at zero in the epochs that are marked."""
    size = axes.get_position().width * WIDTH  # in inches
    x = 1 + 0.46 / size
    small: dict[str, Any] = {"fontsize": 7.5, "color": SOFT}
    for base, share in shares.items():
        axes.text(x, base, percent(share), transform=axes.get_yaxis_transform(), ha="right", va="center", **small)
    axes.text(x, 1, "≈ 0", transform=axes.transAxes, ha="right", va="bottom", **small)


def _heights(peaks: Sequence[float]) -> tuple[list[float], list[int]]:
    """By what to multiply each ridge's densities, so that the highest are 1; and which are to another scale."""
    rising = [peak for peak in peaks if peak > 0]
    if not rising:
        return [0.0 for _ in peaks], []
    scale = min(max(rising), 3 * float(np.median(rising)))
    return [1 / max(scale, peak) for peak in peaks], [place for place, peak in enumerate(peaks) if peak > scale]


# -------------------------------------------------------------------- lines


def draw_lines(figure: FigureBase, title: str, lines: Sequence[Line], unit: str) -> None:
    """One panel of numbers over the steps. Where all are above zero and far apart, the axis is logarithmic. Of many
    lines, the eight that end highest are coloured and named, the others grey.

    Args:
        unit: of the steps.
    """
    by_end = sorted(lines, key=lambda line: -_last(line.pairs))
    named, others = by_end[:_NAMED], by_end[_NAMED:]
    axes = _axes(figure, LINES_HEIGHT, right=1.72 if len(lines) > 1 else 0.2, bottom=0.46, left=0.66)
    notes = f"{len(others)} more in grey; named are the {_NAMED} that end highest" if others else _constant(lines)
    _head(figure, LINES_HEIGHT, title, notes)
    for line in others:
        axes.plot(*_points(line.pairs), color=SOFT, linewidth=0.6, alpha=max(0.1, 0.5 / len(others) ** 0.3))
    for place, line in enumerate(named):
        colour, style = _COLOURS[place % len(_COLOURS)], "-" if place < len(_COLOURS) else (0, (3, 1.5))
        steps, numbers = _points(line.pairs)
        axes.plot(steps, numbers, color=colour, linestyle=style, linewidth=1.5, zorder=3)
        axes.plot(steps[-1:], numbers[-1:], "o", color=colour, markersize=3.6, zorder=4, clip_on=False)
        if len(lines) > 1:
            row = 1 - 0.03 - 0.128 * place
            axes.plot([1.05, 1.1], [row, row], transform=axes.transAxes, color=colour, ls=style, lw=1.8, clip_on=False)
            label = shortened(line.name)
            axes.text(1.125, row, label, transform=axes.transAxes, fontsize=7, va="center", color=INK, parse_math=False)
    _scale(axes, [number for line in lines for _, number in line.pairs if math.isfinite(number)])
    axes.set_xlabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.grid(color=GRID, linewidth=0.6)


def _constant(lines: Sequence[Line]) -> str:
    numbers = {number for line in lines for _, number in line.pairs if math.isfinite(number)}
    return f"{'always' if len(lines) == 1 else 'all'} {numbers.pop():.4g}" if len(numbers) == 1 else ""


def shortened(name: str, most: int = _LETTERS) -> str:
    """A name, both ends of it where it has more letters than this.

    >>> shortened("encoder.layers.11.attention.self.query.weight")
    'encoder.lay…query.weight'
    """
    if len(name) <= most:
        return name
    return f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def percent(share: float) -> str:
    """
    >>> percent(0.0123), percent(0.5), percent(1e-5), percent(0.0)
    ('1.2%', '50%', '<0.1%', '0%')
    """
    if 0 < share < 0.0005:
        return "<0.1%"
    return f"{share:.1%}" if 0 < share < 0.0995 else f"{share:.0%}"


def _last(pairs: Sequence[tuple[int, float]]) -> float:
    return next((number for _, number in reversed(pairs) if math.isfinite(number)), -math.inf)


def _points(pairs: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in pairs], [number if math.isfinite(number) else math.nan for _, number in pairs]


def _scale(axes: Axes, numbers: Sequence[float]) -> None:
    if not numbers:
        axes.text(0.5, 0.5, "no finite number", transform=axes.transAxes, color=SOFT, ha="center", fontsize=8)
        axes.set_yticks([])
    elif min(numbers) > 0 and max(numbers) > 100 * min(numbers):
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 4))
        axes.yaxis.set_major_locator(MaxNLocator(5))


# -------------------------------------------------------------------- both


def _axes(figure: FigureBase, height: float, *, right: float, bottom: float, left: float = 0.5) -> Axes:
    """Axes with these margins in inches, and room for a head."""
    top = 0.62
    box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
    axes = figure.add_axes(box)
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, labelsize=7.5, length=0, pad=4, which="both")
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=SOFT, linewidth=0.6)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=SOFT, fontsize=8)
        axis.get_offset_text().set(color=SOFT, fontsize=7)
    return axes


def _head(figure: FigureBase, height: float, title: str, notes: str) -> None:
    title = shortened(title, 72)
    size = min(10.0, 10.0 * 52 / max(1, len(title)))
    x = 0.12 / WIDTH
    figure.text(x, 1 - 0.2 / height, title, fontsize=size, color=INK, weight="bold", va="center", parse_math=False)
    for row, line in enumerate(textwrap.wrap(notes, 84)[:2]):
        y = 1 - (0.37 + 0.13 * row) / height
        figure.text(x, y, line, fontsize=7, color=SOFT, va="center", parse_math=False)
