"""What a recipe names: classes and functions, found by name, with arguments that are checked by their type hints."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from weightsmith.errors import ConfigurationError, RecipeError, WeightsmithError
from weightsmith.recipe.hints import gives, item_classes, parameter_classes, result_classes, takes_none
from weightsmith.recipe.names import found, is_short_name, name_and_settings, names_something, shown
from weightsmith.recipe.text import Problems, Section, located, place_of
from weightsmith.spelling import nearest

__all__ = ["Component", "checked_arguments", "component"]


@dataclass(frozen=True)
class Component:
    """Something that a recipe names, with arguments that fit; made when it is built.

    Attributes:
        target: the class or function.
        arguments: by name; components among them are built first.
        positional: arguments by position.
        given: names of parameters that it is given when it is built; so are components among its arguments.
        place: where it was written.
    """

    target: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    positional: Sequence[Any] = ()
    given: Sequence[str] = ()
    place: str = ""

    def build(self, *given: Any) -> Any:
        """What the class or function makes of its arguments, with ``given`` for the parameters that it is given.

        Raises:
            RecipeError: it raises; the message says where it was written.
        """
        return self._built(dict(zip(self.given, given, strict=True)))

    def _built(self, offered: Mapping[str, Any]) -> Any:
        positional = [_built(value, offered) for value in self.positional]
        arguments = {name: offered[name] for name in self.given}
        arguments |= {name: _built(value, offered) for name, value in self.arguments.items()}
        try:
            return self.target(*positional, **arguments)
        except RecipeError:
            raise
        except Exception as error:  # whatever somebody's class raises
            place = f"{self.place}: " if self.place else ""
            reason = str(error) if isinstance(error, WeightsmithError) else f"{type(error).__name__}: {error}"
            message = f"{place}{shown(self.target)} cannot be made: {reason}"
            raise (RecipeError([message]) if place else ConfigurationError(message)) from error

    def made(self) -> Any:
        """What a class makes, or a function itself, with its arguments given."""
        if isinstance(self.target, type):
            return self.build()
        arguments = {name: _built(value, {}) for name, value in self.arguments.items()}
        return functools.partial(self.target, **arguments) if arguments else self.target


def _built(value: Any, offered: Mapping[str, Any]) -> Any:
    if isinstance(value, Component):
        return value._built(offered)
    if isinstance(value, (list, tuple)):
        return type(value)(_built(item, offered) for item in value)
    return {key: _built(item, offered) for key, item in value.items()} if type(value) is dict else value


def component(
    plain: Any,
    expected: type | None = None,
    given: Sequence[str] = (),
    *,
    offered: Sequence[str] = (),
    is_called_later: bool = False,
) -> Component:
    """What plain data names: ``"ReLU"``, ``{"Linear": {"in_features": 3, "out_features": 2}}``, ``{"Sequential":
    [first, second]}`` with positional arguments, or ``{"class_path": …, "init_args": {…}}``.

    Names are import paths; short ones are looked up in torch and Ignite.

    Args:
        plain: the name, or one name to its arguments.
        expected: of what class it must be, or what a function must say that it returns. Default: anything.
        given: parameters that it is given when it is built; a function takes them as its first.
        offered: parameters that it is given if it needs them and the recipe does not say them: what it stands in has
            them, as a scheduler of schedulers has the optimizer.
        is_called_later: whether a function is meant itself, with some of its arguments. Default: what it returns.

    Raises:
        ConfigurationError: no such name, or arguments that do not fit; the message names the nearest.
    """
    name, settings = name_and_settings(plain)
    with located(plain, name if isinstance(name, str) else None):
        target = found(name, expected)
        place = place_of(plain, name)
        said = settings if isinstance(settings, Mapping) else ()
        if given and not isinstance(target, type):
            given = [*inspect.signature(target).parameters][: len(given)]
        given = [*given, *(each for each in offered if each in _required(target) and each not in said)]
        later = _required(target) if is_called_later and not isinstance(target, type) else []
        known = [*given, *(each for each in later if each not in said)]
        if isinstance(settings, list):
            named = _by_name(target, settings, known)
            if named is None:
                return Component(target, {}, [_positional(item) for item in settings], given, place)
            settings = named
        if not isinstance(settings, Mapping | None):
            raise ConfigurationError(f"{name}: {settings!r} are no arguments: write `name: value` for each")
        return Component(target, checked_arguments(target, settings or {}, known), (), given, place)


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
    label = shown(target) if label is None else label
    problems = Problems()
    values: dict[str, Any] = {}
    for name, value in settings.items():
        with problems.gathering(settings, name):
            if name not in known or name in given:
                raise ConfigurationError(_unknown(label, name, [each for each in known if each not in given]))
            with _named(f"{label}.{name}" if label else name):
                values[name] = _Parameter(target, name, known, given).read(value)
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


def _by_name(target: Callable[..., Any], values: Any, given: Sequence[str]) -> Section | None:
    """Positional arguments under the names of their parameters; ``None`` if the target takes any number of them."""
    parameters = inspect.signature(target).parameters.values()
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return None
    positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    names = [each.name for each in parameters if each.kind in positional and each.name not in given]
    if len(values) > len(names):
        raise ConfigurationError(
            f"{shown(target)} takes {', '.join(names) or 'no arguments'}, not {len(values)} values"
        )
    return Section(dict(zip(names, values, strict=False)), place_of(values))


def _positional(plain: Any) -> Any:
    return component(plain) if isinstance(plain, str) or names_something(plain) else plain


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


@dataclass(frozen=True)
class _Parameter:
    """One parameter of a class or function, and what a recipe may say for it.

    Attributes:
        target: the class or function.
        name: the parameter's.
        known: the names of all its parameters.
        given: the names of those that it is given; components that stand here are given them as well.
    """

    target: Callable[..., Any]
    name: str
    known: Sequence[str]
    given: Sequence[str]

    def read(self, plain: Any) -> Any:
        """The value of plain data, with components where it names something."""
        if plain is None and not takes_none(self.target, self.name):
            raise ConfigurationError("null is no value for it: write one, or leave the line out")
        classes = parameter_classes(self.target, self.name)
        if names_something(plain) and not any(issubclass(each, Mapping) for each in classes):
            return self._component(plain, classes)
        if isinstance(plain, list) and any(names_something(item) for item in plain):
            return [self._item(item) for item in plain]
        return self._parsed(plain, classes)

    def _item(self, plain: Any) -> Any:
        classes = item_classes(self.target, self.name)
        is_name = isinstance(plain, str) and bool(classes) and str not in classes
        return self._component(plain, classes) if is_name or names_something(plain) else plain

    def _component(self, plain: Any, classes: Sequence[type]) -> Component:
        """What stands here, if it is sure to make something of one of the classes; of any, if there are none."""
        made = component(plain, offered=self.given)
        if classes and not any(gives(made.target, each) for each in classes):
            raise ConfigurationError(f"{shown(made.target)} makes no {' or '.join(each.__name__ for each in classes)}")
        if not isinstance(made.target, type) and not result_classes(made.target):
            raise ConfigurationError(f"{shown(made.target)} does not say what it returns: write `-> …` behind it")
        return made

    def _parsed(self, plain: Any, classes: Sequence[type]) -> Any:
        """The value by jsonargparse."""
        parser = ArgumentParser(exit_on_error=False)
        _add_arguments(parser, self.target, set(self.known) - {self.name})
        try:
            parsed = parser.parse_object({self.name: _bare(plain)})[self.name]
            if isinstance(plain, str) and isinstance(parsed, _PLAIN):  # it was read a second time: is a text taken?
                parser.parse_object({self.name: _SOME_TEXT})
                return plain
            if all("class_path" in each for each in _namespaces(parsed)):
                return self._components(plain, parsed)
            whole = parser.parse_object({self.name: _bare(plain)})
            return Component(lambda: parser.instantiate(whole)[self.name])  # dataclasses among it
        except (ArgumentError, TypeError, ValueError) as error:
            if isinstance(plain, str) and is_short_name(plain):
                return self._component(plain, classes)
            raise ConfigurationError(_reason(plain, str(error))) from error

    def _components(self, plain: Any, parsed: Any) -> Any:
        """What jsonargparse parsed, with components in the places of classes; these check what is further down."""
        if isinstance(parsed, Namespace):
            return component(plain, offered=self.given)
        if isinstance(parsed, (list, tuple)):
            return type(parsed)(itertools.starmap(self._components, zip(plain, parsed, strict=True)))
        if type(parsed) is dict:
            return {key: self._components(plain[key], value) for key, value in parsed.items()}
        return parsed


_PLAIN = (bool, int, float, list, dict, type(None))
_SOME_TEXT = "a text that is nothing else"


def _namespaces(parsed: Any) -> list[Any]:
    """What jsonargparse would make objects of, in what it parsed."""
    if isinstance(parsed, Namespace):
        return [parsed]
    inner = parsed.values() if type(parsed) is dict else parsed if isinstance(parsed, (list, tuple)) else ()
    return [each for item in inner for each in _namespaces(item)]


def _bare(plain: Any) -> Any:
    """Without the places, which jsonargparse would not know how to copy."""
    if isinstance(plain, Mapping):
        return {key: _bare(value) for key, value in plain.items()}
    return [_bare(item) for item in plain] if isinstance(plain, list) else plain


def _reason(plain: Any, message: str) -> str:
    """jsonargparse's message in a line."""
    types = re.search(r"Subtypes: [\[(](.*)[\])]|Expected an? (.+?)\. Got value", message)
    if types is None:
        return "; ".join(line.strip() for line in message.splitlines() if not line.startswith("Parser key"))
    names = re.sub(r"<class '(?:builtins\.)?([\w.]+)'>", r"\1", types[1] or types[2]).replace("typing.", "")
    return f"{plain!r} is not of the type {names}"
