"""The files of a new plugin and of a new package, from the templates beside this module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

from weightsmith.errors import ConfigurationError
from weightsmith.scaffold.naming import Kind, Names, refuse_other_kinds

__all__ = ["new_package", "new_plugin"]

_TEMPLATES = Path(__file__).parent / "templates"

# A field of each template and a value for it, for the examples in a package's README.
_EXAMPLES: dict[Kind, tuple[str, float]] = {
    "initializer": ("gain", 1.5),
    "penalty": ("strength", 0.01),
    "gradient_editor": ("share", 0.5),
    "weight_editor": ("rate", 0.01),
    "constraint": ("radius", 2.0),
    "parametrization": ("bound", 2.0),
    "average": ("horizon", 50.0),
    "probe": ("power", 3.0),
    "plugin": ("factor", 5.0),
}


def new_plugin(name: str, *, kind: Kind = "constraint", folder: Path = Path()) -> list[Path]:
    """Write a plugin that works, and its tests: ``unit_ball.py`` and ``test_unit_ball.py``.

    Args:
        name: ``UnitBall``, ``unit_ball`` or ``unit-ball``: the class gets the first form, the module the second.
        kind: what it is. Default ``"constraint"``.
        folder: where to write; made if it is missing. Default: the current one.

    Returns:
        What was written, in the order in which to read it.

    Raises:
        ConfigurationError: the name cannot be one, or would hide a class or a module; no such kind; or a file is there
            already. Then nothing is written.
    """
    refuse_other_kinds(kind)
    names = Names.of(name)
    plugin, tests = folder / f"{names.module}.py", folder / f"test_{names.module}.py"
    _refuse_existing(plugin, tests)
    names.refuse_taken([folder])
    return _write({plugin: _text(f"{kind}.py", names), tests: _text(f"{kind}_test.py", names)})


def new_package(name: str, *, kind: Kind = "constraint", folder: Path = Path()) -> list[Path]:
    """Write an installable distribution with one plugin, which weightsmith finds by its entry point once installed.

    Args:
        name: ``unit-ball``, ``unit_ball`` or ``UnitBall``: the distribution and its folder get the first form, the
            package the second, the class the third.
        kind: what the plugin is. Default ``"constraint"``.
        folder: where the distribution's own folder goes; made if it is missing. Default: the current one.

    Returns:
        What was written, in the order in which to read it.

    Raises:
        ConfigurationError: the name cannot be one, or would hide a class or a module; no such kind; or a file is there
            already. Then nothing is written.
    """
    refuse_other_kinds(kind)
    names = Names.of(name)
    root = folder / names.distribution
    package = root / "src" / names.module
    field, value = _EXAMPLES[kind]
    example = {"python": f"{field}={value}", "yaml": f"{field}: {value}"}
    tests = _text(f"{kind}_test.py", names).replace("import Case, Check\n", "import Case, Check, missing\n", 1)
    files = {
        root / "README.md": _text("README.md", names, **example),
        root / "pyproject.toml": _text("pyproject.toml", names),
        package / "__init__.py": _text("package.py", names),
        package / f"{names.module}.py": _text(f"{kind}.py", names),
        package / "py.typed": "",
        root / "tests" / f"test_{names.module}.py": f"{tests}{_text('missing_test.py', names)}",
    }
    _refuse_existing(*files)
    names.refuse_taken([folder])
    return _write(files)


def _text(template: str, names: Names, **more: str) -> str:
    text = (_TEMPLATES / f"{template}.template").read_text(encoding="utf-8")
    forms = {"Class": names.class_name, "module": names.module, "distribution": names.distribution}
    return Template(text).substitute(forms, **more)


def _refuse_existing(*paths: Path) -> None:
    there = [str(path) for path in paths if path.exists() or path.is_symlink()]
    if there:
        raise ConfigurationError(
            f"{' and '.join(there)} would be overwritten, so nothing was written: choose another name or folder"
        )


def _write(files: Mapping[Path, str]) -> list[Path]:
    """All of the files, or none."""
    made: list[Path] = []
    try:
        for path, text in files.items():
            for parent in reversed([parent for parent in path.parents if not parent.exists()]):
                parent.mkdir()
                made.append(parent)
            with path.open("x", encoding="utf-8", newline="\n") as file:
                made.append(path)
                file.write(text)
    except OSError as error:
        for path in reversed(made):
            path.rmdir() if path.is_dir() else path.unlink()
        raise ConfigurationError(f"{error.filename} cannot be written, so nothing was: {error.strerror}") from error
    return list(files)
