"""The benchmark commands run; what they measure, no test judges."""

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
