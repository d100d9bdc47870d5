"""Which code a plugin is made of, so that a run does not silently go on with another."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields
from types import CodeType, FunctionType
from typing import Any

from weightsmith.importing import imported
from weightsmith.plugin import Plugin
from weightsmith.schedules import Function, Schedule
from weightsmith.selection import Selector

__all__ = ["code_of"]


def code_of(plugin: Plugin) -> str:
    """A digest of the code that makes a plugin act: of its class and the classes that this derives from, of the
    functions and classes of their modules that they use, and of the functions and plugins in its fields. Comments,
    docstrings and layout make no difference, nor does the engine, whose version a checkpoint holds.
    """
    seen: dict[str, str] = {}
    for part in _parts_of(plugin):
        _add(part, seen)
    text = "\n".join(f"{name}\n{code}" for name, code in sorted(seen.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _parts_of(value: Any) -> Iterator[Callable[..., Any]]:
    """The classes and functions that a plugin, or a field's value, brings."""
    if isinstance(value, Plugin):
        yield from (cls for cls in type(value).__mro__ if not _is_engine(cls))
        for field in fields(value):
            yield from _parts_of(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _parts_of(item)
    elif isinstance(value, Function):
        yield from _parts_of(imported(value.path))
    elif isinstance(value, (Schedule, Selector)):
        for item in vars(value).values():
            yield from _parts_of(item)
    elif isinstance(value, FunctionType) and not _is_engine(value):
        yield value


def _add(part: Any, seen: dict[str, str]) -> None:
    """The code of a class or function, and of what it uses of its own module."""
    name = f"{part.__module__}.{part.__qualname__}"
    if isinstance(part, FunctionType) and "<lambda>" in name:
        name = f"{name}:{part.__code__.co_code.hex()}"
    if name in seen:
        return
    seen[name] = ""
    tree = _tree(part)
    if tree is None:
        seen[name] = "\n".join(_compiled(part))
        return
    seen[name] = ast.dump(tree)
    home = vars(inspect.getmodule(part))
    for used in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}:
        found = _unwrapped(home.get(used))
        if isinstance(found, (type, FunctionType)) and found.__module__ == part.__module__:
            _add(found, seen)
        elif isinstance(found, (int, float, str, tuple, frozenset, list, dict)):
            seen[f"{part.__module__}.{used}"] = _written(found)


def _unwrapped(found: Any) -> Any:
    """The function inside a cache, a partial application or a decorator that says what it wraps."""
    while not isinstance(found, type) and (hasattr(found, "__wrapped__") or isinstance(found, functools.partial)):
        found = found.func if isinstance(found, functools.partial) else found.__wrapped__
    return found


def _written(constant: Any) -> str:
    """A constant as text that is the same in every process."""
    if isinstance(constant, dict):
        return str([(_written(key), _written(item)) for key, item in constant.items()])
    if isinstance(constant, (tuple, list, frozenset)):
        parts = [_written(item) for item in constant]
        return str(sorted(parts) if isinstance(constant, frozenset) else parts)
    return repr(constant) if isinstance(constant, (int, float, str, bytes)) else ""


@functools.cache
def _tree(part: Any) -> ast.AST | None:
    """The parsed source without docstrings; ``None`` where there is no source, as of what was typed in."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
    except (OSError, TypeError, SyntaxError):
        return None
    if inspect.getmodule(part) is None:
        return None
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _compiled(part: Any) -> Iterator[str]:
    """What Python made of it, for want of a source."""
    functions = [part] if isinstance(part, FunctionType) else vars(part).values()
    for function in functions:
        if isinstance(function, FunctionType) and "__init__" not in function.__qualname__:
            yield from _instructions(function.__code__)


def _instructions(code: CodeType) -> Iterator[str]:
    yield f"{code.co_name} {code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)
        elif constant is not None and not isinstance(constant, str):
            yield _written(constant)


def _is_engine(part: Any) -> bool:
    return part is object or part.__module__.partition(".")[0] in ("weightsmith", "abc", "builtins")
