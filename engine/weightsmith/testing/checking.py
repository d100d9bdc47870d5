"""An author's plugins through the conformance suite, with findings in place of tracebacks."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import re
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType

from weightsmith.errors import ConfigurationError, WeightsmithError
from weightsmith.kinds import Constraint
from weightsmith.plugin import Plugin
from weightsmith.testing.authored import Sources, importable, module_name, sources
from weightsmith.testing.cases import Case, Check, conformance
from weightsmith.testing.findings import Finding, Report, Result

__all__ = ["check_plugins"]

_IMPORT = "The file can be imported."
_TABLE = "Every plugin has a row in a table CASES = [Case(…)], beside it or in its file of tests."


def check_plugins(path: str) -> Report:
    """Every conformance check with every plugin that is defined in an author's files.

    Rows are those of the lists ``CASES`` in these files and in ``test_<name>.py`` and ``tests/test_<name>.py`` beside
    them. A class without a row that can be made without arguments is checked as it is by default.

    Args:
        path: a Python file (the tests' own is one as well), a folder with Python files, or a module's dotted name.

    Returns:
        What was checked and found; ``print`` it to read it. An error in the author's files is a finding like others.

    Raises:
        ConfigurationError: there is no such file, or no plugin in it.
    """
    found = sources(path)
    with importable(found), _quiet():
        return _Checking(found).report(path)


class _Checking:
    """One look at an author's files, while they can be imported."""

    def __init__(self, found: Sources) -> None:
        self.found = found
        self.findings: list[Finding] = []
        self.results: list[Result] = []

    def report(self, path: str) -> Report:
        defining = self._imported(self.found.files)
        modules = [*defining, *self._imported(self.found.tests)]
        rows = self._rows(modules)
        if not self.findings:  # a file that cannot be imported may have the rows
            rows += self._default_rows(_classes(defining), {type(row.plugin) for row in rows})
        for row in rows:
            self._check(row)
        if not self.results and not self.findings:
            names = ", ".join(file.name for file in self.found.all) or "no Python file"
            raise ConfigurationError(
                f"no plugin in {path}: looked in {names} for classes that derive from weightsmith.Plugin or one of its "
                "kinds, and for a list CASES"
            )
        return Report(tuple(self.results), tuple(dict.fromkeys(self.findings)))

    def _imported(self, files: Iterable[Path]) -> list[ModuleType]:
        modules = []
        for file in files:
            try:
                modules.append(importlib.import_module(module_name(file)))
            except (Exception, SystemExit) as error:
                self.findings.append(self._finding(error, "import", _IMPORT, "", (file, None)))
        return modules

    def _rows(self, modules: list[ModuleType]) -> list[Case]:
        rows: dict[int, Case] = {}
        for module in modules:
            table = vars(module).get("CASES", [])
            file = Path(str(module.__file__))
            for row in table if isinstance(table, (list, tuple)) else [table]:
                if isinstance(row, Case):
                    rows[id(row)] = row
                else:
                    message = f"in CASES stands {row!r}: write a list of rows, each of them Case(a plugin)"
                    self.findings.append(Finding("table", _TABLE, "", message, file, None))
        return list(rows.values())

    def _default_rows(self, classes: Iterable[type[Plugin]], covered: set[type[Plugin]]) -> list[Case]:
        rows = []
        for cls in classes:
            if cls in covered:
                continue
            try:
                rows.append(Case(cls()))
            except Exception as error:
                place = self._place(error) or _class_place(cls)
                message = f"{_said(error)}\nwrite a row: CASES = [{_row_of(cls)}]"
                self.findings.append(Finding("table", _TABLE, cls.__name__, message, *place))
        return rows

    def _check(self, row: Case) -> None:
        checks, failed = conformance([row]), 0
        for check, case in checks:
            try:
                check(case)
            except (Exception, SystemExit) as error:
                failed += 1
                place = _method_place(type(row.plugin), self.found.all)
                self.findings.append(self._finding(error, str(check), _demand(check), str(row), place))
        self.results.append(Result(str(row), len(checks), len(checks) - failed))

    def _finding(
        self, error: BaseException, check: str, demand: str, plugin: str, otherwise: tuple[Path | None, int | None]
    ) -> Finding:
        return Finding(check, demand, plugin, _said(error), *(self._place(error) or otherwise))

    def _place(self, error: BaseException) -> tuple[Path, int] | None:
        """Where in the author's files an error arose, or what it followed from."""
        if isinstance(error, SyntaxError) and error.filename is not None and error.lineno is not None:
            return Path(error.filename), error.lineno
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).resolve() in self.found.all]
        if own:
            return Path(own[-1].filename), own[-1].lineno or 1
        before = error.__cause__ or error.__context__
        return None if before is None else self._place(before)


def _classes(modules: Iterable[ModuleType]) -> Iterator[type[Plugin]]:
    """The concrete plugin classes that the modules themselves define."""
    for module in modules:
        for cls in dict.fromkeys(value for value in vars(module).values() if inspect.isclass(value)):
            if issubclass(cls, Plugin) and cls.__module__ == module.__name__ and not inspect.isabstract(cls):
                yield cls


def _row_of(cls: type[Plugin]) -> str:
    """The row that an author might write, with what only the author knows left open."""
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    holds = ", holds=lambda weight: …" if issubclass(cls, Constraint) else ""
    return f"Case({cls.__name__}({', '.join(f'{name}=…' for name in needed)}){holds})"


def _demand(check: Check) -> str:
    """The first sentence of a check's docstring."""
    return re.split(r"(?<=[.])\s", " ".join((inspect.getdoc(check.run) or "").split()))[0]


def _said(error: BaseException) -> str:
    """What an error says, with the notes on it; of an assertion without words, the line that failed."""
    text = str(error)
    if not isinstance(error, (AssertionError, WeightsmithError)):  # the engine's own messages need no name
        text = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else text}"
    elif not text:
        text = f"this is not so: {traceback.extract_tb(error.__traceback__)[-1].line}"
    return "\n".join([text, *getattr(error, "__notes__", [])])


def _method_place(cls: type[Plugin], own: Iterable[Path]) -> tuple[Path | None, int | None]:
    """Where the author wrote the method that the kind asks for, else the class."""
    asked: list[frozenset[str]] = [getattr(base, "__abstractmethods__", frozenset()) for base in cls.__mro__]
    hooks = next(filter(None, asked), frozenset())
    codes = [getattr(getattr(cls, name), "__code__", None) for name in hooks]
    places = [(Path(code.co_filename), code.co_firstlineno) for code in codes if code is not None]
    written = [place for place in places if place[0].resolve() in own]
    return min(written) if written else _class_place(cls)


def _class_place(cls: type[Plugin]) -> tuple[Path | None, int | None]:
    try:
        return Path(inspect.getfile(cls)), inspect.getsourcelines(cls)[1]
    except (OSError, TypeError):
        return None, None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Ignite's log of errors that are findings here."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
