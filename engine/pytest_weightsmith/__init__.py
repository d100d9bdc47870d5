"""What pytest loads at its start: in a test module with a table ``CASES``, every test that takes ``check`` and ``case``
runs once for each check of the conformance suite with each row.

    from weightsmith.testing import Case

    CASES = [Case(StayClose())]

    def test_conformance(check, case):
        check(case)

A test that parametrizes ``check`` or ``case`` by itself, or that has a fixture ``case``, is left alone, and so is every
module of a project that does not use weightsmith.

What torch says of its own ``torch.jit`` when Ignite is imported is kept from the summary of warnings, where a module
that names weightsmith imports it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator, Iterator
from typing import Any

import pytest

__all__ = ["pytest_generate_tests", "pytest_make_collect_report"]

_TAKEN = {"check", "case"}


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Import a module; one that names weightsmith without torch's deprecations of what Ignite 0.5 uses."""
    if not isinstance(collector, pytest.Module) or b"weightsmith" not in collector.path.read_bytes():
        return (yield)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        return (yield)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The parameters of a test that takes ``check`` and ``case``: the table of its module, through the suite."""
    # A module with a plugin has imported weightsmith; to a project without, importing it would cost seconds.
    if "weightsmith" not in sys.modules or not _TAKEN.issubset(metafunc.fixturenames) or _provided(metafunc):
        return
    from weightsmith.testing import conformance

    metafunc.parametrize(("check", "case"), conformance(_table(metafunc)), ids=str)


def _provided(metafunc: pytest.Metafunc) -> bool:
    """Whether the author's own parameters or fixture give the arguments. A fixture ``check`` alone is no such: other
    plugins of pytest bring one."""
    fixtures = getattr(metafunc, "_arg2fixturedefs", {})
    return "case" in fixtures or not _TAKEN.isdisjoint(_parametrized(metafunc))


def _parametrized(metafunc: pytest.Metafunc) -> Iterator[str]:
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.kwargs.get("argnames", mark.args[0] if mark.args else ())
        yield from (name.strip() for name in (names.split(",") if isinstance(names, str) else names))


def _table(metafunc: pytest.Metafunc) -> list[Any]:
    """The module's ``CASES``, or a collection error that says what to write."""
    from weightsmith.testing import Case

    where = f"{metafunc.module.__name__}.{metafunc.definition.originalname}"
    table = getattr(metafunc.module, "CASES", None)
    if table is None:
        pytest.fail(
            f"{where} takes check and case, and its module has no table of plugins: write CASES = [Case(…)] at the "
            "top of the module, a row a plugin, with `from weightsmith.testing import Case`",
            pytrace=False,
        )
    if not isinstance(table, (list, tuple)) or not table:
        pytest.fail(f"{where}: CASES is {table!r}: write a list of at least one Case(…)", pytrace=False)
    for number, row in enumerate(table):
        if not isinstance(row, Case):
            pytest.fail(f"{where}: CASES[{number}] is {row!r}: write Case({row!r})", pytrace=False)
    return list(table)
