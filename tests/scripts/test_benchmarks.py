"""The benchmark commands run; what they measure, no test judges."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHORT = ["--sizes", "small", "--seconds", "0.01"]


@pytest.mark.parametrize(
    "command",
    [
        ["bench_plugins.py", *SHORT, "--only", "clamp"],
        ["bench_watching.py", *SHORT, "--threads", "1"],
    ],
    ids=lambda command: command[0],
)
def test_the_command_prints_a_table_and_writes_the_same(command, tmp_path):
    output = tmp_path / "found.json"
    script = [sys.executable, "-W", "ignore", str(BENCHMARKS / command[0]), *command[1:], "--output", str(output)]
    printed = subprocess.run(script, capture_output=True, text=True, timeout=120, check=True).stdout
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 1
    assert rows[0]["network"] == "small"
    assert printed.count("small") >= 1


def test_what_scripts_return_is_what_is_measured_and_told(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    measuring = importlib.import_module("measure_scripts")
    monkeypatch.setattr(measuring, "KEPT", tmp_path)
    forecasts = measuring.STUDIES["sunspots_fast"]
    study = dataclasses.replace(forecasts, options={**forecasts.options, "epochs": 5})
    measured = measuring.measure(study, [0])
    assert measured["GRU, unbounded"][0].keys() == {"diverged", "seconds"}
    (tmp_path / "sunspots_fast.json").write_text(json.dumps(measured), encoding="utf-8")
    telling = measuring.telling().splitlines()
    bounded = measured["GRU, bounded"][0]["error"]
    assert telling[-1].endswith(f"| 1 of 1 diverge | {bounded:.2f} |")
    assert len(telling) == 4
    assert measuring.shown([1.0, 2.0, 3.0], ".1f") == "2.0 ± 1.0"


def test_every_telling_figure_is_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    measuring = importlib.import_module("measure_scripts")
    for name, *pairs in measuring.TELLING.values():
        study = measuring.STUDIES[name]
        assert {pairs[0], pairs[2]} <= study.variants.keys()
        assert {pairs[1], pairs[3]} <= study.figures.keys()
