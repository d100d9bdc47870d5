"""Train each script with its plugins and without, over several seeds; write what that changed to docs/results.md.

``python tests/benchmarks/measure_scripts.py`` measures all (about an hour), with a name of :data:`STUDIES` behind it
that one. What was measured is kept in ``runs/measured``, so the page can hold studies of different days.
"""

import argparse
import contextlib
import importlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsmith import NonFiniteError

ROOT = Path(__file__).parents[2]
KEPT, PAGE = ROOT / "runs" / "measured", ROOT / "docs" / "results.md"
NONE: dict[str, Any] = {"plugins": Path("none")}


@dataclass(frozen=True)
class Study:
    """A script, trained in several ways.

    Attributes:
        script: its module.
        variants: name to options.
        figures: what the script returns, under the heading that it gets, with its format.
        options: what all variants share.
    """

    script: str
    variants: Mapping[str, Mapping[str, Any]]
    figures: Mapping[str, tuple[str, str]]
    options: Mapping[str, Any] = field(default_factory=dict)


FORECAST = {
    "error": ("error", ".2f"),
    "naive_error": ("of the season before", ".2f"),
    "largest_weight": ("largest weight", ".2f"),
    "largest_gradient": ("largest gradient norm", ".2f"),
}
CELLS = {
    f"{cell}, {label}": {"cell": cell, **options}
    for cell in ("LSTM", "GRU")
    for label, options in {"unbounded": NONE, "bounded": {}}.items()
}
DICE = {name: (name.replace("_", " "), ".3f") for name in ("fluid", "grey_matter", "white_matter")}
STUDIES = {
    "gan": Study(
        "train_gan",
        {
            "own decays, 0 and 0.003": {},
            "shared decay 0.003": {"generator_decay": 3e-3},
            "shared decay 0": {"discriminator_decay": 0.0},
            "no plugins": NONE,
        },
        {
            "distance": ("Fréchet's distance", ".1f"),
            "largest_generator_loss": ("largest generator's loss", ".2f"),
            "largest_discriminator_loss": ("largest discriminator's loss", ".2f"),
        },
    ),
    "sunspots": Study("train_forecaster", CELLS, FORECAST, {"name": "sunspots"}),
    "co2": Study("train_forecaster", CELLS, FORECAST, {"name": "co2"}),
    "sunspots_fast": Study("train_forecaster", CELLS, FORECAST, {"name": "sunspots", "learning_rate": 10.0}),
    "segmentation": Study(
        "train_segmentation",
        {"from random weights": NONE, "from the denoiser, clipped": {}},
        DICE,
    ),
    "finetune": Study(
        "finetune",
        {"nothing charged": {"keep": "nothing"}, "L2SP": {"keep": "l2sp"}, "ElasticConsolidation": {}},
        {"new": ("new digits", ".1%"), "kept": ("old digits, kept", ".1%")},
    ),
    "compress": Study(
        "compress",
        {"": {}},
        {
            f"{method}/{figure}": (f"{method}: {heading}", form)
            for method in ("dense", "pruned", "2:4", "int8", "pruned int8")
            for figure, heading, form in (
                ("accuracy", "accuracy", ".2%"),
                ("zeros", "zeros", ".1%"),
                ("bytes", "bytes", ",.0f"),
            )
        },
    ),
}
SEEDS = range(5)


def measure(study: Study, seeds: Sequence[int]) -> dict[str, list[dict[str, float]]]:
    """Variant to the figures of each seed; where a run ended with a value that is not finite, to the update."""
    train = importlib.import_module(study.script).train
    measured: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as runs:
            for variant, options in study.variants.items():
                begun = time.perf_counter()
                try:
                    with contextlib.redirect_stdout(io.StringIO()):
                        found = flat(train(seed=seed, runs=Path(runs), **study.options, **options))
                    figures = {name: float(found[name]) for name in study.figures}
                except NonFiniteError as error:
                    figures = {"diverged": 1.0}
                    print(error, file=sys.stderr)
                figures["seconds"] = time.perf_counter() - begun
                print(study.script, variant, seed, {n: round(v, 4) for n, v in figures.items()}, flush=True)
                measured.setdefault(variant, []).append(figures)
    return measured


def flat(found: Mapping[str, Any]) -> dict[str, Any]:
    inner = {f"{k}/{n}": v for k, value in found.items() if isinstance(value, Mapping) for n, v in value.items()}
    return {**found, **inner}


def table(study: Study, measured: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """A row for each variant: the mean of each figure, and its standard deviation, over the seeds."""
    headings = [heading for heading, _ in study.figures.values()]
    lines = ["| " + " | ".join(["", *headings]) + " |", "|---" * (len(headings) + 1) + "|"]
    for variant, runs in measured.items():
        ended = [run for run in runs if "diverged" not in run]
        cells = [spread([run[name] for run in ended], form) for name, (_, form) in study.figures.items()]
        if len(ended) < len(runs):
            variant += f" ({len(runs) - len(ended)} of {len(runs)} diverged)"
        lines.append("| " + " | ".join([variant, *cells]) + " |")
    return lines


def spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "–"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{form}} ± {deviation:{form}}"


def page() -> str:
    lines = ["# What the plugins of the scripts change", "", "Made by `make measure`; means and standard deviations."]
    for name, study in STUDIES.items():
        kept = KEPT / f"{name}.json"
        if kept.is_file():
            measured = json.loads(kept.read_text(encoding="utf-8"))
            seeds = {len(runs) for runs in measured.values()}
            seconds = [run["seconds"] for runs in measured.values() for run in runs]
            lines += ["", f"## {name}", "", *table(study, measured), ""]
            lines.append(f"`scripts/{study.script}.py`, {max(seeds)} seeds; longest run {max(seconds):.0f} s.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", choices=[*STUDIES, []], default=[])
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "scripts"))
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in options.studies or STUDIES:
        found = measure(STUDIES[name], range(options.seeds))
        (KEPT / f"{name}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
