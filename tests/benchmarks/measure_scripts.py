"""Train each script with its plugins and without, over several seeds; write what that changed to docs/results.md, and
the most telling figures to the README.

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
sys.path.insert(0, str(ROOT / "tests"))
from marked import put

KEPT, PAGE, README = ROOT / "runs" / "measured", ROOT / "docs" / "results.md", ROOT / "README.md"
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
    for label, options in {
        "unbounded": NONE,
        "unbounded, a tenth of the learning rate": {**NONE, "learning_rate": 0.1},
        "orthogonal start and clipping alone": {"plugins": Path(__file__).parent / "start_and_clipping.yaml"},
        "bounded": {},
    }.items()
}
DICE = {name: (name.replace("_", " "), ".3f") for name in ("fluid", "grey_matter", "white_matter")}
OWN, SHARED = "own decays, 0 and 0.003", "shared decay 0.003"
RANDOM, KAIMING, DENOISER = (
    "as PyTorch draws weights",
    "drawn by Kaiming's scheme, clipped",
    "from the denoiser, clipped",
)
STUDIES = {
    "gan": Study(
        "train_gan",
        {
            OWN: {},
            SHARED: {"generator_decay": 3e-3},
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
    "sunspots_fast": Study(
        "train_forecaster",
        {name: options for name, options in CELLS.items() if "tenth" not in name},
        FORECAST,
        {"name": "sunspots", "learning_rate": 10.0},
    ),
    "segmentation": Study(
        "train_segmentation",
        {RANDOM: NONE, KAIMING: {"start": "kaiming"}, DENOISER: {}},
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
            for method in ("dense", "50% pruned", "90% pruned", "97% pruned", "2:4", "int8", "90% pruned, int8")
            for figure, heading, form in (
                ("accuracy", "accuracy", ".2%"),
                ("zeros", "zeros", ".1%"),
                ("bytes", "bytes", ",.0f"),
            )
        },
    ),
}
TELLING = {
    "GAN: Fréchet's distance; one decay for both, a decay for each": ("gan", SHARED, "distance", OWN, "distance"),
    "GAN: the same; no decay at all, a decay for each": ("gan", "shared decay 0", "distance", OWN, "distance"),
    **{
        f"{label}: {cell}'s error": (study, f"{cell}, unbounded", "error", f"{cell}, bounded", "error")
        for study, label in {
            "sunspots": "sunspots",
            "co2": "carbon dioxide, ppm",
            "sunspots_fast": "sunspots, ten times the learning rate",
        }.items()
        for cell in ("LSTM", "GRU")
    },
    **{
        f"segmentation: Dice of {heading}; {without}, from a denoiser": ("segmentation", variant, name, DENOISER, name)
        for name, (heading, _) in DICE.items()
        for without, variant in {"from PyTorch's start": RANDOM, "from Kaiming's": KAIMING}.items()
    },
    "fine-tuning, `L2SP`: old digits, kept": ("finetune", "nothing charged", "kept", "L2SP", "kept"),
    "fine-tuning, `L2SP`: new digits": ("finetune", "nothing charged", "new", "L2SP", "new"),
    "fine-tuning, `ElasticConsolidation`: old digits, kept": (
        "finetune",
        "nothing charged",
        "kept",
        "ElasticConsolidation",
        "kept",
    ),
    "fine-tuning, `ElasticConsolidation`: new digits": (
        "finetune",
        "nothing charged",
        "new",
        "ElasticConsolidation",
        "new",
    ),
    "90 % pruned: accuracy": ("compress", "", "dense/accuracy", "", "90% pruned/accuracy"),
    "97 % pruned: accuracy": ("compress", "", "dense/accuracy", "", "97% pruned/accuracy"),
    "2:4: accuracy": ("compress", "", "dense/accuracy", "", "2:4/accuracy"),
    "90 % pruned and 8 bits: accuracy": ("compress", "", "dense/accuracy", "", "90% pruned, int8/accuracy"),
    "90 % pruned and 8 bits: bytes, compressed": ("compress", "", "dense/bytes", "", "90% pruned, int8/bytes"),
}
"""The README's rows: a study, and the variant and the figure without, and with."""

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
                        found = by_path(train(seed=seed, runs=Path(runs), **study.options, **options))
                    figures = {name: float(found[name]) for name in study.figures}
                except NonFiniteError as error:
                    figures = {"diverged": 1.0}
                    print(error, file=sys.stderr)
                figures["seconds"] = time.perf_counter() - begun
                print(study.script, variant, seed, {n: round(v, 4) for n, v in figures.items()}, flush=True)
                measured.setdefault(variant, []).append(figures)
    return measured


def by_path(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a script returns, with what stands in a mapping under ``name/figure``."""
    inner = {f"{k}/{n}": v for k, value in found.items() if isinstance(value, Mapping) for n, v in value.items()}
    return {**found, **inner}


def table(study: Study, measured: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """A row for each variant: the mean of each figure, and its standard deviation, over the seeds."""
    headings = [heading for heading, _ in study.figures.values()]
    lines = ["| " + " | ".join(["", *headings]) + " |", "|---" * (len(headings) + 1) + "|"]
    for variant, runs in measured.items():
        lines.append("| " + " | ".join([variant, *(cell(study, runs, name) for name in study.figures)]) + " |")
    return lines


def shown(values: Sequence[float], form: str) -> str:
    mean = f"{statistics.fmean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):{form}}" if len(values) > 1 else mean


def kept_of(name: str) -> dict[str, list[dict[str, float]]]:
    """What was measured in a study; nothing if it was not."""
    path = KEPT / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def telling() -> str:
    """The README's table."""
    lines = ["| mean ± standard deviation over 5 seeds | without | with |", "|---|---|---|"]
    for label, (name, *pairs) in TELLING.items():
        measured = kept_of(name)
        if measured:
            cells = [cell(STUDIES[name], measured[v], figure) for v, figure in (pairs[:2], pairs[2:])]
            lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)


def cell(study: Study, runs: Sequence[Mapping[str, float]], figure: str) -> str:
    """A figure over the runs that ended; and how many did not."""
    ended = [run[figure] for run in runs if "diverged" not in run]
    parts = [shown(ended, study.figures[figure][1])] if ended else []
    if len(ended) < len(runs):
        parts.append(f"{len(runs) - len(ended)} of {len(runs)} diverge")
    return ", ".join(parts)


def page() -> str:
    """The whole of what was measured."""
    lines = ["# What the plugins of the scripts change", "", "Made by `make measure`; means and standard deviations."]
    for name, study in STUDIES.items():
        measured = kept_of(name)
        if measured:
            seeds = {len(runs) for runs in measured.values()}
            seconds = [run["seconds"] for runs in measured.values() for run in runs]
            lines += ["", f"## {name}", "", *table(study, measured), ""]
            lines.append(f"`scripts/{study.script}.py`, {max(seeds)} seeds; longest run {max(seconds):.0f} s.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", choices=[*STUDIES, []], default=[], help="which; all by default")
    parser.add_argument("--page", action="store_true", help="measure nothing; write the pages from what was kept")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "scripts"))
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in () if options.page else options.studies or STUDIES:
        found = measure(STUDIES[name], range(options.seeds))
        (KEPT / f"{name}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    put(README, "measured", telling())
