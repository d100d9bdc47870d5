"""What a check of an author's plugins found, as values and as a text to read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Finding", "Report", "Result"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        check: the name of the check, or what was done when it was found, such as ``"import"``.
        demand: what the check demands, in a sentence.
        plugin: the plugin as its row has it, or its class; empty where there is none yet.
        message: what was found instead.
        file: the author's file in which it arose, or that has the method which was checked; ``None`` if unknown.
        line: the line there; ``None`` if unknown.
    """

    check: str
    demand: str
    plugin: str
    message: str
    file: Path | None = None
    line: int | None = None

    @property
    def place(self) -> str:
        """``unit_ball.py:23``, as seen from the current folder; empty if unknown."""
        if self.file is None:
            return ""
        shown = self.file.relative_to(Path.cwd()) if self.file.is_relative_to(Path.cwd()) else self.file
        return str(shown) if self.line is None else f"{shown}:{self.line}"

    def __str__(self) -> str:
        head = ": ".join(part for part in (self.place, self.check) if part)
        return f"{head}\n  demanded: {self.demand}\n  found: {_indented(self.message)}"


@dataclass(frozen=True)
class Result:
    """One row of the table, and how many of its checks passed."""

    plugin: str
    checks: int
    passed: int

    def __str__(self) -> str:
        return f"{self.plugin}: {self.passed} of {self.checks} checks passed"


@dataclass(frozen=True)
class Report:
    """All that was checked. Its text is for people: no plugin without a line, no finding told twice.

    Attributes:
        results: a result a row.
        findings: all findings, in the order of the checks.
    """

    results: tuple[Result, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def __str__(self) -> str:
        rows = {result.plugin for result in self.results}
        parts = [_shown(finding, []) for finding in self.findings if finding.plugin not in rows]
        for plugin in dict.fromkeys(result.plugin for result in self.results):
            parts.append("\n".join(str(result) for result in self.results if result.plugin == plugin))
            parts += _without_repetition([finding for finding in self.findings if finding.plugin == plugin])
        return "\n\n".join(parts)


def _without_repetition(findings: list[Finding]) -> Iterator[str]:
    """One error in the plugin's code fails many checks in one way."""
    alike: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        without_numbers = re.sub(r"\d+", "", finding.message.partition("\n")[0])  # shapes differ
        alike.setdefault((finding.place, without_numbers), []).append(finding)
    for first, *others in alike.values():
        yield _shown(first, [other.check for other in others])


def _shown(finding: Finding, others: list[str]) -> str:
    also = f"\n  and so fail: {', '.join(others)}" if others else ""
    return f"{finding}{also}"


def _indented(message: str, most: int = 6) -> str:
    """A message of several lines under its heading; a long tensor is cut."""
    first, *rest = message.strip().splitlines() or [""]
    cut = [*rest[:most], "…"] if len(rest) > most else rest
    return "\n    ".join([first, *cut])
