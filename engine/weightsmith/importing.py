"""Functions and classes by import path: so a configuration can be printed, compared, pickled and written to YAML."""

from __future__ import annotations

import importlib
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from weightsmith.errors import ConfigurationError, WeightsmithError

__all__ = ["import_path", "imported", "looked_up"]


def import_path(value: Any) -> str:
    """The path ``"package.module.name"`` under which a function or class can be imported again.

    >>> import_path(imported("math.sqrt"))
    'math.sqrt'

    Raises:
        ConfigurationError: it has no such path (a lambda, a nested function, a partial).
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    # torch's built-in functions do not know that they live in torch.
    for path in (f"{module}.{name}", f"torch.{getattr(value, '__name__', None)}"):
        try:
            if imported(path) is value:
                return path
        except ConfigurationError:
            continue
    raise ConfigurationError(f"{value!r} has no import path: define it with `def` or `class` at the top of a module")


def imported(path: str) -> Any:
    """The object at ``"package.module.name"``.

    Raises:
        ConfigurationError: there is no such module or name.
    """
    parts = path.split(".") if isinstance(path, str) else [""]
    if not all(part.isidentifier() for part in parts):
        raise ConfigurationError(f"{path!r} is no import path: give one such as 'package.module.name'")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
                continue
            raise
        try:
            for part in parts[cut:]:
                found = getattr(found, part)
        except AttributeError:
            break
        return found
    raise ConfigurationError(f"nothing can be imported as {path!r}: give the full path, such as 'package.module.name'")


def looked_up(path: str) -> Any:
    """The object at ``"package.module.name"``, a path that somebody wrote.

    Raises:
        ConfigurationError: there is no such module or name, the module cannot be imported, or another one of its name,
            from elsewhere than where it would be found now, was imported before.
    """
    try:
        found = imported(path)
    except WeightsmithError:
        raise
    except (Exception, SystemExit) as error:  # whatever somebody's module raises when it is imported
        raise ConfigurationError(f"{path!r} cannot be imported: {type(error).__name__}: {error}") from error
    _refuse_another_of_its_name(path.partition(".")[0])
    return found


_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))
"""Folders of what is installed: a module of that name from elsewhere is its source, tried out."""


def _refuse_another_of_its_name(module: str) -> None:
    held = getattr(sys.modules.get(module), "__file__", None)
    spec = None if module == "__main__" else PathFinder.find_spec(module)
    if not held or spec is None or not spec.origin:
        return
    now = Path(spec.origin).resolve()
    if Path(held).resolve() != now and not any(now.is_relative_to(folder) for folder in _INSTALLED):
        raise ConfigurationError(f"another module {module!r} than {spec.origin} was imported before, from {held}")
