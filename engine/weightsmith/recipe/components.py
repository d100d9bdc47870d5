"""What a recipe names: classes and functions, found by name, with arguments that are checked by their type hints."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import itertools
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from weightsmith.errors import ConfigurationError, RecipeError, WeightsmithError
from weightsmith.importing import imported
from weightsmith.recipe.text import Problems, Section, located, place_of
from weightsmith.spelling import guess, nearest

__all__ = ["Component", "checked_arguments", "component"]

_PACKAGES = ("torch.nn", "torch.optim", "torch.optim.lr_scheduler", "torch.utils.data", "ignite.metrics")
"""Where short names are looked up."""


@dataclass(frozen=True)
class Component:
    """Something that a recipe names, with arguments that fit; made when it is built.

    Attributes:
        target: the class or function.
        arguments: by name; components among them are built first.
        positional: arguments by position.
        place: where it was written.
    """

    target: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    positional: Sequence[Any] = ()
    place: str = ""

    def build(self, *given: Any) -> Any:
        """What the class or function makes of ``given`` and the arguments.

        Raises:
            RecipeError: it raises; the message says where it was written.
        """
        positional = [_built(value) for value in self.positional]
        arguments = {name: _built(value) for name, value in self.arguments.items()}
        try:
            return self.target(*given, *positional, **arguments)
        except RecipeError:
            raise
        except Exception as error:  # whatever somebody's class raises
            place = f"{self.place}: " if self.place else ""
            reason = str(error) if isinstance(error, WeightsmithError) else f"{type(error).__name__}: {error}"
            message = f"{place}{_shown(self.target)} cannot be made: {reason}"
            raise (RecipeError([message]) if place else ConfigurationError(message)) from error

    def made(self) -> Any:
        """What a class makes, or a function itself, with its arguments given."""
        if isinstance(self.target, type):
            return self.build()
        arguments = {name: _built(value) for name, value in self.arguments.items()}
        return functools.partial(self.target, **arguments) if arguments else self.target


def _built(value: Any) -> Any:
    if isinstance(value, Component):
        return value.build()
    if isinstance(value, (list, tuple)):
        return type(value)(_built(item) for item in value)
    return {key: _built(item) for key, item in value.items()} if type(value) is dict else value


def component(
    plain: Any, expected: type | None = None, given: Sequence[str] = (), *, is_called_later: bool = False
) -> Component:
    """What plain data names: ``"ReLU"``, ``{"Linear": {"in_features": 3, "out_features": 2}}``, ``{"Sequential":
    [first, second]}`` with positional arguments, or ``{"class_path": …, "init_args": {…}}``.

    Names are import paths; short ones are looked up in torch and Ignite.

    Args:
        plain: the name, or one name to its arguments.
        expected: of what class it must be, or what a function must say that it returns. Default: anything.
        given: parameters that it is given when it is built.
        is_called_later: whether a function is meant itself, with some of its arguments. Default: what it returns.

    Raises:
        ConfigurationError: no such name, or arguments that do not fit; the message names the nearest.
    """
    name, settings = _name_and_settings(plain)
    with located(plain, name if isinstance(name, str) else None):
        target = _found(name, expected)
        place = place_of(plain, name)
        if is_called_later and not isinstance(target, type):
            given = [name for name in _required(target) if not isinstance(settings, Mapping) or name not in settings]
        elif given and not isinstance(target, type):
            given = [*inspect.signature(target).parameters][: len(given)]
        if isinstance(settings, list):
            named = _by_name(target, settings, given)
            if named is None:
                return Component(target, {}, [_positional(item) for item in settings], place)
            settings = named
        if not isinstance(settings, Mapping | None):
            raise ConfigurationError(f"{name}: {settings!r} are no arguments: write `name: value` for each")
        return Component(target, checked_arguments(target, settings or {}, given), (), place)


def checked_arguments(
    target: Callable[..., Any], settings: Mapping[Any, Any], given: Sequence[str] = (), *, label: str | None = None
) -> dict[str, Any]:
    """Arguments for a class or function, each checked by its type hint (jsonargparse).

    Args:
        target: the class or function.
        settings: the arguments by name, as plain data.
        given: parameters that it is given besides.
        label: what to call it in errors. Default: its name.

    Raises:
        ConfigurationError: one is unknown, of another type, or missing.
    """
    known = _parameters(target)
    label = _shown(target) if label is None else label
    problems = Problems()
    values: dict[str, Any] = {}
    for name, value in settings.items():
        with problems.gathering(settings, name):
            if name not in known or name in given:
                raise ConfigurationError(_unknown(label, name, [each for each in known if each not in given]))
            with _named(f"{label}.{name}" if label else name):
                values[name] = _argument(target, name, value, known)
    missing = [name for name in _required(target) if name not in settings and name not in given]
    if missing:
        with problems.gathering(settings):
            raise ConfigurationError(f"{label or 'the recipe'} needs {', '.join(missing)}")
    problems.raise_any()
    return values


@contextlib.contextmanager
def _named(argument: str) -> Iterator[None]:
    try:
        yield
    except RecipeError:
        raise
    except ConfigurationError as error:
        raise ConfigurationError(f"{argument}: {error}") from error


def _unknown(label: str, name: Any, known: Sequence[str]) -> str:
    return f"{label} takes no {name!r}{nearest(str(name), known)}" if known else f"{label} takes no arguments"


# -------------------------------------------------------------------- names


def _name_and_settings(plain: Any) -> tuple[Any, Any]:
    if isinstance(plain, str):
        return plain, None
    if isinstance(plain, Mapping) and "class_path" in plain and plain.keys() <= {"class_path", "init_args"}:
        return plain["class_path"], plain.get("init_args")
    if isinstance(plain, Mapping) and len(plain) == 1:
        ((name, settings),) = plain.items()
        return name, settings
    raise ConfigurationError(f"{plain!r} names nothing: write one class or function, then its arguments")


def _names_something(plain: Any) -> bool:
    """Whether plain data, where a value is meant, stands for what a class or function makes."""
    if isinstance(plain, Mapping) and "class_path" in plain:
        return True
    if not isinstance(plain, Mapping) or len(plain) != 1:
        return False
    (name,) = plain
    return isinstance(name, str) and ("." in name or name in _short_names(None))


def _found(name: Any, expected: type | None) -> Callable[..., Any]:
    if not isinstance(name, str):
        raise ConfigurationError(f"{name!r} is no name of a class or function")
    if "." not in name:
        known = _short_names(expected)
        if name not in known:
            raise ConfigurationError(
                f"nothing in torch or Ignite that fits here is called {name!r}{guess(name, known)}; "
                "of others, write the import path"
            )
        return known[name]
    found: Any = _imported(name)
    if not callable(found):
        raise ConfigurationError(f"{name!r} is no class or function")
    if expected is None or _gives(found, expected):
        return found  # type: ignore[no-any-return]
    if isinstance(found, type):
        raise ConfigurationError(f"{name!r} is no {expected.__name__}")
    raise ConfigurationError(f"{name!r} does not say that it returns a {expected.__name__}: write `-> …` behind it")


def _imported(path: str) -> Any:
    try:
        found = imported(path)
        _refuse_another_of_its_name(path.partition(".")[0])
        return found
    except WeightsmithError as error:
        raise ConfigurationError(f"{error}{_nearest_in_module(path)}") from error
    except (Exception, SystemExit) as error:  # whatever somebody's module raises when it is imported
        raise ConfigurationError(f"{path!r} cannot be imported: {type(error).__name__}: {error}") from error


def _refuse_another_of_its_name(module: str) -> None:
    """Raise where the module was imported before from elsewhere than where it would be found now."""
    held = getattr(sys.modules.get(module), "__file__", None)
    spec = PathFinder.find_spec(module)
    if held and spec is not None and spec.origin and not Path(held).samefile(spec.origin):
        raise ConfigurationError(f"another module {module!r} than {spec.origin} was imported before, from {held}")


def _nearest_in_module(path: str) -> str:
    module, _, name = path.rpartition(".")
    try:
        public = [each for each in dir(importlib.import_module(module)) if not each.startswith("_")]
    except Exception:  # there is no such module
        return ""
    return guess(name, public)


@functools.cache
def _short_names(expected: type | None) -> dict[str, type]:
    """The classes in torch and Ignite that a short name may mean here."""
    found: dict[str, type] = {}
    for package in _PACKAGES:
        for name, value in vars(importlib.import_module(package)).items():
            if isinstance(value, type) and not name.startswith("_") and (expected is None or _gives(value, expected)):
                found.setdefault(name, value)
    return found


def _gives(target: Callable[..., Any], expected: type) -> bool:
    result = target if isinstance(target, type) else _result(target)
    return isinstance(result, type) and issubclass(result, expected)


def _result(function: Callable[..., Any]) -> type | None:
    """The class that a function says it returns; ``None`` if it does not say."""
    try:
        hint = typing.get_type_hints(function).get("return")
    except Exception:  # a hint that names what is not imported at run time
        return None
    hint = typing.get_origin(hint) or hint
    return hint if isinstance(hint, type) and hint is not type(None) else None


def _shown(target: Callable[..., Any]) -> str:
    return getattr(target, "__qualname__", repr(target))


# -------------------------------------------------------------------- arguments


def _by_name(target: Callable[..., Any], values: Any, given: Sequence[str]) -> Section | None:
    """Positional arguments under the names of their parameters; ``None`` if the target takes any number of them."""
    parameters = inspect.signature(target).parameters.values()
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return None
    positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    names = [each.name for each in parameters if each.kind in positional and each.name not in given]
    if len(values) > len(names):
        raise ConfigurationError(
            f"{_shown(target)} takes {', '.join(names) or 'no arguments'}, not {len(values)} values"
        )
    return Section(dict(zip(names, values, strict=False)), place_of(values))


def _positional(plain: Any) -> Any:
    return component(plain) if isinstance(plain, str) or _names_something(plain) else plain


@functools.cache
def _parameters(target: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(_add_arguments(ArgumentParser(exit_on_error=False), target, set()))


def _add_arguments(parser: ArgumentParser, target: Callable[..., Any], skip: set[str]) -> list[str]:
    add: Any = parser.add_class_arguments if isinstance(target, type) else parser.add_function_arguments
    names: list[str] = add(target, fail_untyped=False, skip=skip)
    return names


def _required(target: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # written in C
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [each.name for each in parameters if each.default is each.empty and each.kind in named]


def _argument(target: Callable[..., Any], name: str, plain: Any, known: Sequence[str]) -> Any:
    hints = _hinted_classes(target, name)
    if _names_something(plain) and not (hints and any(issubclass(hint, Mapping) for hint in hints)):
        return _fitting(component(plain), hints)
    if isinstance(plain, list) and any(_names_something(item) for item in plain):
        return [component(item) if _names_something(item) else item for item in plain]
    parser = ArgumentParser(exit_on_error=False)
    _add_arguments(parser, target, set(known) - {name})
    try:
        parsed = parser.parse_object({name: _bare(plain)})[name]
        if isinstance(plain, str) and isinstance(parsed, _PLAIN):  # it was read a second time: is a text taken?
            parser.parse_object({name: _SOME_TEXT})
            return plain
        if all("class_path" in found for found in _namespaces(parsed)):
            return _components(plain, parsed)
        whole = parser.parse_object({name: _bare(plain)})
        return Component(lambda: parser.instantiate(whole)[name])  # dataclasses among it
    except (ArgumentError, TypeError, ValueError) as error:
        if isinstance(plain, str) and plain in _short_names(None):
            return _fitting(component(plain), hints)
        raise ConfigurationError(_reason(plain, str(error))) from error


_PLAIN = (bool, int, float, list, dict, type(None))
_SOME_TEXT = "a text that is nothing else"


def _namespaces(parsed: Any) -> list[Any]:
    """What jsonargparse would make objects of, in what it parsed."""
    if isinstance(parsed, Namespace):
        return [parsed]
    inner = parsed.values() if type(parsed) is dict else parsed if isinstance(parsed, (list, tuple)) else ()
    return [found for item in inner for found in _namespaces(item)]


def _components(plain: Any, parsed: Any) -> Any:
    """What jsonargparse parsed, with components in the places of classes; these check what is further down."""
    if isinstance(parsed, Namespace):
        return component(plain)
    if isinstance(parsed, (list, tuple)):
        return type(parsed)(itertools.starmap(_components, zip(plain, parsed, strict=True)))
    return {key: _components(plain[key], value) for key, value in parsed.items()} if type(parsed) is dict else parsed


def _fitting(made: Component, hints: Sequence[type]) -> Component:
    """The component, if what it makes is of one of the classes that the parameter is annotated with."""
    if isinstance(made.target, type) or hints:
        if hints and not any(_gives(made.target, hint) for hint in hints):
            raise ConfigurationError(f"{_shown(made.target)} makes no {' or '.join(hint.__name__ for hint in hints)}")
    elif _result(made.target) is None:
        raise ConfigurationError(f"{_shown(made.target)} does not say what it returns: write `-> …` behind it")
    return made


def _hinted_classes(target: Callable[..., Any], name: str) -> list[type]:
    """The classes that a parameter is annotated with; empty where it may be anything, or cannot be told."""
    try:
        annotated: Any = vars(target).get("__init__", target) if isinstance(target, type) else target
        hint = typing.get_type_hints(annotated).get(name)
    except Exception:  # a hint that names what is not imported at run time
        return []
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    classes = [typing.get_origin(part) or part for part in parts if part is not type(None)]
    is_told = all(isinstance(each, type) and each.__name__ != "Callable" for each in classes)
    return [each for each in classes if isinstance(each, type)] if is_told else []


def _bare(plain: Any) -> Any:
    """Without the places, which jsonargparse would not know how to copy."""
    if isinstance(plain, Mapping):
        return {key: _bare(value) for key, value in plain.items()}
    return [_bare(item) for item in plain] if isinstance(plain, list) else plain


def _reason(plain: Any, message: str) -> str:
    """jsonargparse's message in a line."""
    found = re.search(r"Subtypes: [\[(](.*)[\])]|Expected an? (.+?)\. Got value", message)
    if found is None:
        return "; ".join(line.strip() for line in message.splitlines() if not line.startswith("Parser key"))
    types = re.sub(r"<class '(?:builtins\.)?([\w.]+)'>", r"\1", found[1] or found[2]).replace("typing.", "")
    return f"{plain!r} is not of the type {types}"
