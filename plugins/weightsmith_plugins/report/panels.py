"""Numbers over the epochs, as small multiples of lines."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence

from weightsmith_plugins.dashboard import charts
from weightsmith_plugins.report.drawing import LINES_HEIGHT, Line, draw_lines
from weightsmith_plugins.report.naming import RUN, Choice, group_of, title_of, weight_of
from weightsmith_plugins.report.sections import MOST_BLOCKS, Block, Section, left_out, unit_of
from weightsmith_plugins.series import Series

__all__ = ["others", "training"]

_OPEN = "All weights, one line each"
"""The category that a page shows without being asked."""


def training(series: Series, choice: Choice, last_epoch: int) -> Section:
    """Metrics, each in a panel; losses, learning rates, penalties and violations, each group in one."""
    of: dict[str, list[str]] = {group: [] for group in RUN}
    for tag in series.numbers:
        if group_of(tag) in of and (group_of(tag) != "violations" or choice.shows(tag)):
            of[group_of(tag)].append(tag)
    panels = [(title_of(tag), [tag]) for tag in of["metrics"]]
    panels += [("Training loss", of["loss"]), ("Learning rate", of["learning_rate"])]
    panels += [("What penalties charge", of["penalties"]), ("Violations of constraints", of["violations"])]
    drawn = [_panel(title, series, tags, last_epoch, title_of) for title, tags in panels if tags]
    note = left_out(len(drawn), "panels", "the last ones") if len(drawn) > MOST_BLOCKS else ""
    return Section("Training", note, drawn[-MOST_BLOCKS:])


def others(series: Series, choice: Choice, last_epoch: int) -> list[Section]:
    """Every other number, in the charts that TensorBoard's Custom Scalars page has of it."""
    shown = [tag for tag in series.numbers if group_of(tag) not in RUN and choice.shows(tag)]
    sections = []
    for category, titles in charts(shown).items():
        drawn = []
        for title, pattern in list(titles.items())[:MOST_BLOCKS]:
            tags = [tag for tag in shown if re.match(pattern, tag)]
            if category in (_OPEN, "More"):
                drawn.append(_panel(title, series, tags, last_epoch, _namer(tags)))
            else:  # a chart for every weight, with a line for every plugin
                drawn.append(_panel(title.replace("/", "."), series, tags, last_epoch, lambda t: t.rpartition("/")[2]))
        note = left_out(len(titles), "panels", "the first ones")
        sections.append(Section(category, note, drawn, is_folded=category != _OPEN))
    return sections


def _namer(tags: Sequence[str]) -> Callable[[str], str]:
    """What the legend calls each of these tags: its weight, after what distinguishes its group, if there are several.

    >>> namer = _namer(["weight_min/fc/weight", "weight_max/fc/weight", "raw_weight_max/fc/weight"])
    >>> namer("weight_min/fc/weight"), namer("raw_weight_max/fc/weight")
    ('min fc.weight', 'raw max fc.weight')
    """
    words = {tag: group_of(tag).removeprefix("raw_").split("_") for tag in tags}
    columns = zip(*words.values(), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))

    def name(tag: str) -> str:
        raw = ["raw"] if tag.startswith("raw_") else []
        return " ".join([*raw, *words[tag][shared:], weight_of(tag)]) or tag

    return name


def _panel(title: str, series: Series, tags: Sequence[str], last_epoch: int, label: Callable[[str], str]) -> Block:
    lines = [Line(label(tag), series.numbers[tag]) for tag in tags]
    unit = unit_of(max(line.pairs[-1][0] for line in lines), last_epoch)
    ends = "; ".join(f"{line.name} ends at {line.pairs[-1][1]:.4g}" for line in lines[:8])
    more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
    draw = functools.partial(draw_lines, title=title, lines=lines, unit=unit)
    return Block(title, f"{title}, by {unit}: {ends}{more}", LINES_HEIGHT, draw)
