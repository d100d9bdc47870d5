"""A report as one tall picture."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D

from weightsmith_plugins.report.contents import Contents
from weightsmith_plugins.report.drawing import GRID, INK, PAPER, SOFT, WIDTH
from weightsmith_plugins.report.page import said
from weightsmith_plugins.report.sections import Block, Section

__all__ = ["picture"]

_COLUMNS = 3
_DPI = 110
_MOST_PIXELS = 65_000
"""As high as matplotlib can draw."""

_MARGIN = 0.35
"""Inches, as all sizes here."""

_INSET = 0.12
"""Of titles, as figures have it."""

_ROW = 0.25
"""Of the table."""

_TABLE = (3.6, 4.8, 5.8)
"""Where the table's columns end."""

_SECTION = 0.8
_GAP = 0.2

Row: TypeAlias = tuple[float, Sequence[Block] | Callable[[FigureBase], None]]
"""How high it is, and what stands in it."""


def picture(shown: Contents, form: str) -> bytes:
    """The picture's file.

    Args:
        form: ``"png"``, ``"svg"`` or ``"pdf"``.
    """
    rows = [(_heading_height(shown), functools.partial(_heading, shown)), *_rows(shown.sections), (_MARGIN, ())]
    heights, widths = [height for height, _ in rows], [_MARGIN, *[WIDTH] * _COLUMNS, _MARGIN]
    figure = Figure(figsize=(sum(widths), sum(heights)), facecolor=PAPER)
    grid = figure.add_gridspec(len(rows), len(widths), height_ratios=heights, width_ratios=widths)
    for row, (_, content) in enumerate(rows):
        if callable(content):
            content(figure.add_subfigure(grid[row, 1:-1]))
        else:
            for column, block in enumerate(content, start=1):
                block.draw(figure.add_subfigure(grid[row, column]))
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=min(_DPI, _MOST_PIXELS / sum(heights)), metadata={"Title": shown.title})
    return file.getvalue()


def _rows(sections: Sequence[Section]) -> Iterator[Row]:
    for section in sections:
        yield _SECTION, functools.partial(_section, section)
        for start in range(0, len(section.blocks), _COLUMNS):
            blocks = section.blocks[start : start + _COLUMNS]
            yield max(block.height for block in blocks) + _GAP, blocks


def _section(section: Section, figure: FigureBase) -> None:
    x = _INSET / (_COLUMNS * WIDTH)
    figure.add_artist(Line2D([x, 1 - x], [0.82, 0.82], color=GRID, linewidth=1))
    figure.text(x, 0.42, section.title, fontsize=14, color=INK, weight="bold", va="center", parse_math=False)
    figure.text(1 - x, 0.42, section.note, fontsize=8, color=SOFT, va="center", ha="right", parse_math=False)


def _heading_height(shown: Contents) -> float:
    return 1.15 + _ROW * (len(shown.results) + 1.5 if shown.results else 0)


def _heading(shown: Contents, figure: FigureBase) -> None:
    height, width = _heading_height(shown), _COLUMNS * WIDTH

    def write(x: float, y: float, text: str, size: float, colour: str, **more: Any) -> None:
        figure.text(x / width, 1 - y / height, text, fontsize=size, color=colour, parse_math=False, **more)

    write(_INSET, 0.65, shown.title, min(20.0, 20.0 * 60 / max(1, len(shown.title))), INK, weight="bold")
    write(_INSET, 0.95, shown.summary, 9.5, SOFT)
    if shown.results:
        for x, text in zip(_TABLE, ("last", "best", "in epoch"), strict=True):
            write(x, 1.45, text, 8, SOFT, ha="right")
    for row, result in enumerate(shown.results, start=1):
        y = 1.45 + _ROW * row
        write(_INSET, y, result.name, 9.5, INK)
        for x, text in zip(_TABLE, (said(result.last), said(result.best), str(result.epoch or "–")), strict=True):
            write(x, y, text, 9.5, INK, ha="right")
