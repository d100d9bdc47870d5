"""Write what the benchmarks found, from runs/benchmarks, into docs/speed.md and docs/speed.png."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from marked import put

FOUND, PAGE, PICTURE = ROOT / "runs" / "benchmarks", ROOT / "docs" / "speed.md", ROOT / "docs" / "speed.png"
SIZES, SETTINGS = ("small", "medium", "large"), ("tiny, once", "small", "small, once", "medium", "large")
WITH, WITHOUT = "weightsmith[fast]", "weightsmith"


def found(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOUND / f"{name}.json").read_text(encoding="utf-8"))
    return content


def table(head: list[str], rows: Iterator[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def times(ratio: float) -> str:
    """How many times as fast, of a ratio of times."""
    return f"{1 / ratio:.2g} ×" if ratio > 0.1 else f"{1 / ratio:.0f} ×"


def milliseconds(seconds: float) -> str:
    """To two places that count."""
    return f"{seconds * 1e3:.2g} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"


def loop() -> str:
    rows = found("loop")["rows"]
    return table(
        ["", "µs an iteration", "× hand-written", "× the same by hand", "× Ignite"],
        ([row["name"], f"{row['seconds'] * 1e6:.0f}", *(f"{row[to]:.2f}" for to in _RATIOS_OF_LOOPS)] for row in rows),
    )


_RATIOS_OF_LOOPS = ("ratio", "to the same by hand", "to Ignite")


def plugins() -> str:
    named: dict[str, dict[str, Any]] = {}
    for row in sorted(found("plugins")["rows"], key=lambda row: row["network"].startswith("tiny")):  # which lacks some
        named.setdefault(row["plugin"], {})[row["network"]] = row

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return "–"
        took = f"{milliseconds(row['seconds']['plugin'])}, " if "seconds" in row else ""
        return took + times(row["ratios"]["by hand"])

    def line(name: str, rows: dict[str, Any]) -> list[str]:
        others: dict[str, list[str]] = {}
        for size in SIZES:
            for who, ratio in rows[size]["ratios"].items() if size in rows else ():
                if who != "by hand":
                    others.setdefault(who, []).append(f"{times(ratio)} ({size})")
        compared = "; ".join(f"{who}: {', '.join(ratios)}" for who, ratios in others.items())
        return [f"`{name}`", *(cell(rows.get(setting)) for setting in SETTINGS), compared]

    return table(["", *SETTINGS, "as fast as other ways"], (line(*item) for item in named.items()))


def watching() -> str:
    rows = [row for row in found("watching")["rows"] if row["threads"] == 1]

    def line(row: dict[str, Any]) -> list[str]:
        theirs, ours = row.get("Ignite"), [row[WITH], row[WITHOUT]]
        cells = [milliseconds(seconds) for seconds in ours]
        if theirs is None:
            return [row["network"], *cells, "–", "–"]
        faster = " and ".join(f"{theirs / seconds:.1f} ×" for seconds in ours)
        return [row["network"], *cells, milliseconds(theirs), faster]

    return table(
        ["", "with the extra `fast`", "without", "Ignite's handler", "as fast as that, with and without"],
        map(line, rows),
    )


def growth() -> str:
    content = found("growth")
    by_tensors = {row["plugin"]: row for row in content["tensors"]}

    def line(row: dict[str, Any]) -> list[str]:
        other = by_tensors[row["plugin"]]
        per_weight, per_tensor = row["slope"] * 1e3, other["slope"] * 1e6
        of_most = row["seconds"][-1] / row["sizes"][-1] * 1e3
        found = (f"{number:.2f}" for number in (per_weight, of_most, row["exponent"]))
        return [f"`{row['plugin']}`", *found, f"{per_tensor:.1f}"]

    most = content["weights"][0]["sizes"][-1]
    head = ["", "ns a weight", f"of {most} million", "exponent up to there", "µs a tensor"]
    return table(head, map(line, content["weights"]))


def draw() -> None:
    content = found("growth")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for axis, what, unit in ((axes[0], "weights", "million weights"), (axes[1], "tensors", "tensors of 256 weights")):
        for row in content[what]:
            axis.plot(row["sizes"], [taken * 1e3 for taken in row["seconds"]], marker="o", label=row["plugin"])
        axis.set(xscale="log", yscale="log", xlabel=unit)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside right")
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    for part in (loop, plugins, watching, growth):
        put(PAGE, part.__name__, part())
    machine = found("loop")
    put(
        PAGE,
        "machine",
        f"Measured in {machine['date']} with torch {machine['torch']}, {machine['threads']} thread, on "
        f"{machine['processor']}.",
    )
    draw()


if __name__ == "__main__":
    main()
