"""An author's files: where they are, and how they are imported for a while without a trace."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from weightsmith.errors import ConfigurationError

__all__ = ["Sources", "importable", "module_name", "sources"]


@dataclass(frozen=True)
class Sources:
    """The files in which plugins are defined, and those beside them that may have the table."""

    files: tuple[Path, ...]
    tests: tuple[Path, ...]

    @property
    def roots(self) -> list[Path]:
        """The folders from which the files are imported."""
        found = []
        for path in (*self.files, *self.tests):
            root = _root(path)
            found.append(root)
            if root.name == "tests":  # a test imports what stands beside its folder
                found += [root.parent, root.parent / "src"]
        return [root for root in dict.fromkeys(found) if root.is_dir()]

    @property
    def all(self) -> tuple[Path, ...]:
        return (*self.files, *self.tests)


def sources(path: str) -> Sources:
    """The files that ``path`` names: a Python file, a folder, or an importable dotted name.

    Raises:
        ConfigurationError: there is nothing of that name.
    """
    place = Path(path) if Path(path).exists() else _of_module(path)
    place = place.resolve()
    if place.is_file() and place.suffix != ".py":
        raise ConfigurationError(f"{path} is no Python file: give a file that ends in .py, a folder or a module's name")
    if place.is_file():
        files, beside = [place], [place.parent]
    elif (place / "__init__.py").exists():
        files, beside = _package(place), [place.parent]
    else:
        files, beside = _project(place), [place]
    given = {file for file in files if file.name.startswith("test_")}
    return Sources(tuple(files), tuple(test for test in _tests(files, beside) if test not in given))


def module_name(path: Path) -> str:
    """The dotted name under which a file is imported from its root."""
    parts = path.with_suffix("").relative_to(_root(path)).parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@contextlib.contextmanager
def importable(found: Sources) -> Iterator[None]:
    """Lets the files be imported; when it ends, ``sys.path`` and ``sys.modules`` are as they were.

    Raises:
        ConfigurationError: a file has the name of a module of Python's, or of one that is imported already.
    """
    for path in found.all:
        _refuse_shadow(path)
    roots, known = found.roots, set(sys.modules)
    kept = list(sys.path), sys.dont_write_bytecode, dict(sys.path_importer_cache)
    sys.path[:0] = [str(root) for root in roots]
    sys.dont_write_bytecode = True  # a cache is out of date if its file is changed within a second
    importlib.invalidate_caches()
    try:
        yield
    finally:
        tops = {module_name(path).partition(".")[0] for path in found.all}
        for name in set(sys.modules) - known:
            if name.partition(".")[0] in tops or _is_beside(name, roots):
                del sys.modules[name]
        sys.path[:], sys.dont_write_bytecode = kept[:2]
        sys.path_importer_cache.clear()
        sys.path_importer_cache.update(kept[2])
        gc.collect()  # classes are cycles; while they live, recipes find them by name


def _of_module(name: str) -> Path:
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    origin = Path(spec.origin) if spec is not None and spec.origin is not None else None
    if origin is not None and origin.suffix == ".py":
        place = origin.parent if origin.name == "__init__.py" else origin
        place = place.joinpath(*rest)
        for found in (place, place.with_name(f"{place.name}.py")):
            if found.exists():
                return found
    raise ConfigurationError(
        f"there is no {name}: give a Python file, a folder with Python files, or the dotted name of a module that can "
        "be imported"
    )


def _root(path: Path) -> Path:
    folder = path.parent
    while (folder / "__init__.py").exists():
        folder = folder.parent
    return folder


def _package(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if path.stem != "__main__")


def _project(folder: Path) -> list[Path]:
    """A folder that is no package: its modules, and the packages in it or in its ``src``; else its tests."""
    modules = [path for path in sorted(folder.glob("*.py")) if path.stem not in ("setup", "conftest")]
    packages = [path.parent for parent in (folder, folder / "src") for path in sorted(parent.glob("*/__init__.py"))]
    inside = [path for package in packages if package.name != "tests" for path in _package(package)]
    return [path for path in modules if not path.name.startswith("test_")] + inside or modules


def _tests(files: Iterable[Path], beside: Iterable[Path]) -> list[Path]:
    """``test_<name>.py`` and ``tests/test_<name>.py``, beside the files and beside the package they are in."""
    files = list(files)
    roots = [_root(path) for path in files]
    above = [root.parent for root in roots if root.name == "src"]
    names = {path.stem for path in files} | {path.parent.name for path in files}
    folders = dict.fromkeys(f for folder in (*beside, *roots, *above) for f in (folder, folder / "tests"))
    return [path for folder in folders for path in sorted(folder.glob("test_*.py")) if path.stem[5:] in names]


def _refuse_shadow(path: Path) -> None:
    top = module_name(path).partition(".")[0]
    loaded = sys.modules.get(top)
    if top in sys.stdlib_module_names:
        raise ConfigurationError(f"{path} has the name of Python's own module {top}: rename it")
    own = _root(path) / top
    if loaded is not None and not _within(getattr(loaded, "__file__", None), (own, own.with_suffix(".py"))):
        raise ConfigurationError(
            f"{path} would be imported as {top}, and another module of that name is there already: rename it"
        )


def _within(file: str | None, places: Iterable[Path]) -> bool:
    return bool(file) and any(Path(str(file)).resolve().is_relative_to(place) for place in places)


def _is_beside(name: str, roots: Iterable[Path]) -> bool:
    """Whether a module is a helper of the author's own."""
    file = getattr(sys.modules[name], "__file__", None) or ""
    return _within(file, roots) and "site-packages" not in Path(file).parts
