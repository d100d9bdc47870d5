"""The benchmark commands run; what they measure, no test judges."""

import dataclasses
import importlib
import itertools
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
        ["bench_loop.py", "--iterations", "2", "--rounds", "1"],
        ["bench_growth.py", "--only", "clamp", "--millions", "3", "--tensors", "100", "--seconds", "0.01"],
    ],
    ids=lambda command: command[0],
)
def test_the_command_prints_a_table_and_writes_the_same(command, tmp_path):
    output = tmp_path / "found.json"
    script = [sys.executable, "-W", "ignore", str(BENCHMARKS / command[0]), *command[1:], "--output", str(output)]
    printed = subprocess.run(script, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(output.read_text(encoding="utf-8"))
    assert {"torch", "threads", "processor"} <= found.keys()
    for row in [row for name, rows in found.items() if name in ("rows", "weights", "tensors") for row in rows]:
        assert str(row.get("network") or row.get("plugin") or row["name"]) in printed


def test_the_page_of_speed_is_written_from_what_was_found(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    speed = importlib.import_module("speed_page")
    machine = {"torch": "2", "threads": 1, "processor": "x", "date": "June 1995"}
    row = {"plugin": "Clamp", "sizes": [1, 3], "seconds": [0.001, 0.003], "slope": 2e-3, "rest": 0.0, "exponent": 1.0}
    ratios = {"by hand": 0.5, "one pass": 0.02}
    watched = {"network": "small", "threads": 1, "weightsmith[fast]": 0.001, "weightsmith": 0.002, "Ignite": 0.01}
    for name, content in {
        "loop": {
            "rows": [{"name": "Trainer", "seconds": 1e-4, "ratio": 1.03, "to the same by hand": 0.97, "to Ignite": 0.9}]
        },
        "plugins": {"rows": [{"plugin": "Clamp", "network": "large", "ratios": ratios}]},
        "watching": {"rows": [watched]},
        "growth": {"weights": [row], "tensors": [row]},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({**machine, **content}), encoding="utf-8")
    page = tmp_path / "speed.md"
    page.write_text(speed.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    for name, place in (("FOUND", tmp_path), ("PAGE", page), ("PICTURE", tmp_path / "speed.png")):
        monkeypatch.setattr(speed, name, place)
    speed.main()
    text = page.read_text(encoding="utf-8")
    assert "Measured in June 1995 with torch 2, 1 thread, on x." in text
    assert "| Trainer | 100 | 1.03 | 0.97 | 0.90 |" in text
    assert "| `Clamp` | – | – | – | – | 2 × | one pass: 50 × (large) |" in text
    assert "| small | 1 ms | 2 ms | 10 ms | 10.0 × and 5.0 × |" in text
    assert "| `Clamp` | 2.00 | 1.00 | 1.00 | 2000.0 |" in text
    assert (tmp_path / "speed.png").stat().st_size > 10_000


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


def test_each_contender_comes_after_each_other_one(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    measuring = importlib.import_module("measuring")
    called = []
    contenders = {name: lambda name=name: called.append(name) for name in "abc"}
    times = measuring.alternate(contenders, seconds=0.0, least=50)
    assert all(len(taken) == 50 for taken in times.values())
    rounds = [tuple(called[start : start + 3]) for start in range(0, len(called), 3)]
    assert set(rounds) == set(itertools.permutations("abc"))
    assert all(mine != other for mine, other in itertools.pairwise(called))
