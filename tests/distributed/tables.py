"""The tables of docs/distributed.md, from what the commands beside this file find."""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import marked

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"


def put(name, lines):
    """Put a table in its place on the page."""
    marked.put(PAGE, name, "\n".join(lines))


def agreement(table, worlds):
    """A row for each plugin: for each world, the largest difference over its cases and the networks.

    Args:
        table: case to network and dtype (``"suite float64"``) to world to difference.
        worlds: which.
    """
    largest = {}
    for case, found in table.items():
        for where, row in found.items():
            for world in worlds:
                key = case.partition("(")[0], where.partition(" ")[2], world
                largest[key] = max(largest.get(key, 0.0), row[world])
    names = sorted({name for name, _, _ in largest})
    yield "| | " + " | ".join(map(_world, worlds)) + " |"
    yield "|---|" + "---|" * len(worlds)
    for name in names:
        cells = [
            " / ".join(_short(largest[name, dtype, world]) for dtype in ("float64", "float32")) for world in worlds
        ]
        yield f"| {name} | " + " | ".join(cells) + " |"


def sent(found, widths):
    """A row for each plugin that sends or holds anything.

    Args:
        found: (world, case, width) to what is sent beyond a run without the plugin, and what is held.
        widths: of the two networks, the second twice as wide as the first: four times as many weights.
    """
    narrow, wide = widths
    yield "| | start | update | epoch's end | memory held by each of 2, of 4 |"
    yield "|---|---|---|---|---|"
    cases = {case for _, case, _ in found if case}
    for name in sorted({case.partition("(")[0] for case in cases}):
        rows = [_row(found, case, narrow, wide) for case in cases if case.partition("(")[0] == name]
        cells = [max(column, key=len) for column in zip(*rows, strict=True)]
        if any(cell != "–" for cell in cells):
            yield f"| {name} | " + " | ".join(cells) + " |"


def _row(found, case, narrow, wide):
    key = ("shards:2", case, "own") if ("shards:2", case, "own") in found else ("shards:2", case, str(wide))
    few, of = found.get(("shards:2", case, str(narrow))), found[key]
    cells = []
    for when in ("start", "update", "epoch"):
        count, size = of[when]["messages"], of[when]["bytes"]
        growth = "" if few is None else _growth(few[when]["bytes"], size)
        if size < 0:
            cells.append(f"saves {-size:,.0f} B: what is frozen has no gradient")
            continue
        cells.append(
            "–" if not count and not size else f"{count:.3g} message{'' if count == 1 else 's'}, {size:,.0f} B{growth}"
        )
    more = found.get(("shards:4", *key[1:]))
    held = [of["held"], more["held"]] if more else [of["held"]]
    cells.append("–" if not max(held) else ", ".join(f"{size:,} B" for size in held))
    return cells


def _growth(few, many):
    """How bytes grow from a network to one that is twice as wide."""
    if few <= 0 or many <= 0:
        return ""
    ratio = math.log2(many / few)
    words = {0: "constant", 1: "as units do", 2: "as weights do"}
    return f", {words[min(words, key=lambda power: abs(power - ratio))]}"


def _world(world):
    how, _, size = world.partition(":")
    return f"{size} {how}"


def _short(value):
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")
