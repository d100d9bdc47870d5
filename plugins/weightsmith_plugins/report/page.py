"""A report as one page of HTML: figures as SVG inside it, no scripts, nothing from elsewhere."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator, Sequence

import matplotlib
from matplotlib.figure import Figure

from weightsmith_plugins.report.contents import Contents, Result
from weightsmith_plugins.report.drawing import GRID, INK, PAPER, SOFT, WIDTH
from weightsmith_plugins.report.sections import Block, Section

__all__ = ["page", "said"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2429; --soft: #5f6872; --grid: #dde2e7; --paper: #ffffff;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebee; --soft: #9aa4ae; --grid: #2c333a; --paper: #14181c } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 96rem; padding: 2.5rem clamp(1rem, 4vw, 4rem) 4rem;
  font: 1rem/1.5 var(--sans); color: var(--ink); background: var(--paper) }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; overflow-wrap: anywhere }
h2 { display: inline; margin: 0; font-size: 1.25rem }
section, details { margin-top: 2.5rem; border-top: 1px solid var(--grid); padding-top: 1rem }
summary { cursor: pointer }
p { margin: .4rem 0; color: var(--soft) }
section p, details p { font-size: .875rem }
table { margin-top: 1.5rem; border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem 2rem .3rem 0; text-align: right; border-bottom: 1px solid var(--grid) }
th { font-weight: 600; color: var(--soft); font-size: .85rem }
th:first-child { text-align: left }
tbody th { color: var(--ink); font-size: 1rem }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: .5rem 1.5rem }
figure { margin: 1rem 0 0 }
svg { display: block; width: 100%; height: auto; margin-left: -2.5% } /* titles are set in by so much */
svg * { stroke-linejoin: round }
svg text { font-family: var(--sans) !important }
"""

_VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--grid)", PAPER: "var(--paper)"}


def page(shown: Contents) -> str:
    """The page's text."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(shown.title)} · weightsmith</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        f"<h1>{html.escape(shown.title)}</h1>",
        f"<p>{html.escape(shown.summary)}</p>",
        *_table(shown.results),
        *(part for number, section in enumerate(shown.sections) for part in _section(section, f"s{number}")),
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def said(number: float) -> str:
    """A number in a table: four digits that count, or what it is instead.

    >>> said(0.98055), said(math.nan), said(12345.6)
    ('0.9806', 'not finite', '12,346')
    """
    if not math.isfinite(number):
        return "not finite"
    return f"{number:,.0f}" if abs(number) >= 1e4 else f"{number:.4g}"


def _table(results: Sequence[Result]) -> Iterator[str]:
    if not results:
        return
    yield '<table><thead><tr><th scope="col">measure</th><th scope="col">last</th><th scope="col">best</th>'
    yield '<th scope="col">in epoch</th></tr></thead><tbody>'
    for result in results:
        cells = [said(result.last), said(result.best), str(result.epoch or "–")]
        yield f'<tr><th scope="row">{html.escape(result.name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
    yield "</tbody></table>"


def _section(section: Section, key: str) -> Iterator[str]:
    outer, inner = ("details", "summary") if section.is_folded else ("section", "div")
    yield f"<{outer}><{inner}><h2>{html.escape(section.title)}</h2></{inner}>"
    if section.note:
        yield f"<p>{html.escape(section.note)}</p>"
    yield '<div class="figures">'
    for number, block in enumerate(section.blocks):
        yield f"<figure>{_drawn(block, f'{key}-{number}')}</figure>"
    yield f"</div></{outer}>"


def _drawn(block: Block, key: str) -> str:
    """A figure as an ``svg`` element whose colours are the page's."""
    figure = Figure(figsize=(WIDTH, block.height))
    block.draw(figure)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # every figure numbers them from 1
    svg = re.sub(r' d="[^"]*"', _shorter, svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    root = f'role="img" aria-label="{html.escape(block.told)}"'
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda found: f"<svg {found[1]} {root}>", svg, count=1)


def _shorter(path: re.Match[str]) -> str:
    """The same path, to a hundredth of a point."""
    return re.sub(r"\s*\n", "", re.sub(r"(\.\d\d)\d+", r"\1", path[0]))
