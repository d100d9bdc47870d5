"""What a recipe names: classes and functions, found by name, with arguments that are checked by their type hints."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from torch import Tensor

from weightsmith.errors import ConfigurationError, RecipeError, WeightsmithError
from weightsmith.recipe.hints import (
    gives,
    hinted_classes,
    item_hints,
    parameter_hint,
    result_classes,
    takes_items,
    takes_mapping,
    takes_none,
    value_hint,
)
from weightsmith.recipe.names import found, holds_names, is_short_name, name_and_settings, names_something, shown
from weightsmith.recipe.parsing import (
    VALUE,
    namespaces,
    parameter_names,
    parsed_hint,
    parser_of_hint,
    parser_of_parameter,
    reason,
    without_places,
)
from weightsmith.recipe.signatures import called_parameters, own_name, positional_names, required_names, rest_name
from weightsmith.recipe.text import Problems, Section, located, place_of
from weightsmith.spelling import closest, nearest

__all__ = ["Component", "checked_arguments", "component"]


@dataclass(frozen=True)
class Component:
    """Something that a recipe names, with arguments that fit; made when it is built.

    Attributes:
        target: the class or function.
        arguments: by name; components among them are built first.
        positional: arguments by position, behind those that it is given.
        given: its parameters that it is given when it is built, to the names by which these go; components among its
            arguments are given the same.
        place: where it was written.
    """

    target: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    positional: Sequence[Any] = ()
    given: Mapping[str, str] = field(default_factory=dict)
    place: str = ""

    def build(self, *given: Any) -> Any:
        """What the class or function makes of its arguments, with ``given`` for the parameters that it is given.

        Raises:
            RecipeError: it raises; the message says where it was written.
        """
        return self._built(dict(zip(self.given.values(), given, strict=True)))

    def _built(self, offered: Mapping[str, Any]) -> Any:
        positional = [_built(value, offered) for value in self.positional]
        arguments = {name: _built(value, offered) for name, value in self.arguments.items()}
        given = {name: offered[known_as] for name, known_as in self.given.items()}
        try:
            if positional:
                return self.target(*given.values(), *positional, **arguments)
            return self.target(**given, **arguments)
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
        built = [_built(item, offered) for item in value]
        return tuple(built) if isinstance(value, tuple) else built
    return {key: _built(item, offered) for key, item in value.items()} if type(value) in (dict, Section) else value


def component(
    plain: Any,
    expected: type | None = None,
    given: Mapping[str, str] | None = None,
    *,
    offered: Sequence[str] = (),
    called_with: Sequence[str] = (),
) -> Component:
    """What plain data names: ``"ReLU"``, ``{"Linear": {"in_features": 3, "out_features": 2}}``, ``{"Sequential":
    [first, second]}`` with positional arguments, or ``{"class_path": …, "init_args": {…}}``.

    Names are import paths; short ones are looked up in torch and Ignite.

    Args:
        plain: the name, or one name to its arguments.
        expected: of what class it must be, or what a function must say that it returns. Default: anything.
        given: what it is given as its first parameter when it is built: the name by which it goes, to what it is.
        offered: what it is given if it has parameters of these names that the recipe does not say: what it stands in
            is given them, as a scheduler of schedulers is given the optimizer.
        called_with: what a function is called with, in words, if the function itself is meant, with some of its
            arguments. Default: what it returns is meant.

    Raises:
        ConfigurationError: no such name, or arguments that do not fit; the message names the nearest.
    """
    name, settings = name_and_settings(plain)
    with located(plain, name if isinstance(name, str) else None):
        target = found(name, expected)
        said = settings if isinstance(settings, Mapping) else ()
        own = {own_name(target, known_as, what): known_as for known_as, what in (given or {}).items()}
        own |= {each: each for each in offered if each in required_names(target) and each not in said}
        is_called = bool(called_with) and not isinstance(target, type)
        known = [*own, *(called_parameters(target, called_with) if is_called else ())]
        passed_on = [*(given or {}), *offered]
        rest: list[Any] = []
        if isinstance(settings, list):
            settings, rest = _by_name(target, settings, known)
        if rest and is_called:
            raise ConfigurationError(f"{shown(target)} is called later, and takes no values by position before")
        if not isinstance(settings, Mapping | None):
            raise ConfigurationError(
                f"{name}: {settings!r} are no arguments: write {_one_argument(target, settings, known)}"
            )
        arguments = checked_arguments(target, settings or {}, known, offered=passed_on)
        place = place_of(plain, name)
        if rest:
            positional = [*arguments.values(), *_read_rest(target, rest, passed_on)]
            return Component(target, {}, positional, own, place)
        return Component(target, arguments, (), own, place)


def checked_arguments(
    target: Callable[..., Any],
    settings: Mapping[Any, Any],
    given: Sequence[str] = (),
    *,
    offered: Sequence[str] = (),
    label: str | None = None,
) -> dict[str, Any]:
    """Arguments for a class or function, each checked by its type hint (jsonargparse).

    Args:
        target: the class or function.
        settings: the arguments by name, as plain data.
        given: parameters that it is given besides.
        offered: what components among the arguments are given if they need it.
        label: what to call it in errors. Default: its name.

    Raises:
        ConfigurationError: one is unknown, of another type, or missing.
    """
    known = parameter_names(target)
    label = shown(target) if label is None else label
    problems = Problems()
    values: dict[str, Any] = {}
    free = [each for each in known if each not in given and each not in settings]
    meant = {closest(str(name), free) for name in settings if name not in known}
    for name, value in settings.items():
        with problems.gathering(settings, name):
            if name not in known or name in given:
                raise ConfigurationError(_unknown(label, name, [each for each in known if each not in given]))
            with _named(f"{label}.{name}" if label else name):
                values[name] = _read_parameter(target, name, value, offered)
    missing = [name for name in required_names(target) if name not in (*settings, *given, *meant)]
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


def _one_argument(target: Callable[..., Any], value: Any, given: Sequence[str]) -> str:
    """How to write a value that stands alone."""
    first = next((name for name in positional_names(target) if name not in given), None)
    return "`name: value` for each" if first is None else f"{{{first}: {value}}} or [{value}]"


def _by_name(target: Callable[..., Any], values: Any, given: Sequence[str]) -> tuple[Section, list[Any]]:
    """Values by position under the names of their parameters; and the rest, where the target takes any number."""
    names = [name for name in positional_names(target) if name not in given]
    if len(values) > len(names) and rest_name(target) is None:
        raise ConfigurationError(
            f"{shown(target)} takes {', '.join(names) or 'no arguments'}, not {len(values)} values"
        )
    return Section(dict(zip(names, values, strict=False)), place_of(values)), values[len(names) :]


def _read_parameter(target: Callable[..., Any], name: str, plain: Any, offered: Sequence[str]) -> Any:
    if plain is None and not takes_none(target, name):
        raise ConfigurationError("null is no value for it: write one, or leave the line out")
    parser = functools.partial(parser_of_parameter, target, name)
    hint = parameter_hint(target, name)
    return _Slot(parsed_hint(target, name) if hint is Any else hint, offered, parser, name).read(plain)


def _read_rest(target: Callable[..., Any], values: Sequence[Any], offered: Sequence[str]) -> Iterator[Any]:
    """Values for ``*args``. Where it has no hint, a text is the name of a class."""
    name = rest_name(target) or ""
    slot = _slot(parameter_hint(target, name), offered)
    for plain in values:
        with _named(f"{shown(target)}.{name}"):
            is_name = isinstance(plain, str) and slot.hint is Any
            yield component(plain, offered=offered) if is_name else slot.read_part(plain)


@dataclass(frozen=True)
class _Slot:
    """A place for one value, and what may stand there.

    Attributes:
        hint: the value's.
        offered: what components that stand here are given if they need it.
        parser: makes jsonargparse's parser of the value.
        argument: the name that the value has there.
    """

    hint: Any
    offered: Sequence[str]
    parser: Callable[[], ArgumentParser]
    argument: str

    def read(self, plain: Any) -> Any:
        """The value of plain data, with components where it names something."""
        if names_something(plain) and not takes_mapping(self.hint):
            return self._component(plain)
        if isinstance(plain, list) and Tensor in hinted_classes(self.hint) and not takes_items(self.hint):
            return _tensor(plain)
        if holds_names(plain) and isinstance(plain, list) and takes_items(self.hint):
            hints = item_hints(self.hint, len(plain))
            return [_slot(hint, self.offered).read_part(item) for hint, item in zip(hints, plain, strict=True)]
        if holds_names(plain) and isinstance(plain, Mapping) and self._may_be_mapping():
            inner = _slot(value_hint(self.hint), self.offered)
            return {key: inner.read_part(value) for key, value in plain.items()}
        return self._parsed(plain)

    def read_part(self, plain: Any) -> Any:
        """As :meth:`read`, for what stands in a list or mapping."""
        is_free = self.hint is Any and not names_something(plain) and not holds_names(plain)
        return without_places(plain) if is_free else self.read(plain)

    def _may_be_mapping(self) -> bool:
        return takes_mapping(self.hint) or not hinted_classes(self.hint)

    def _component(self, plain: Any) -> Component:
        """What stands here, if it is sure to make something of one of the classes; of any, if there are none."""
        made, classes = component(plain, offered=self.offered), hinted_classes(self.hint)
        if classes and not any(gives(made.target, each) for each in classes):
            raise ConfigurationError(f"{shown(made.target)} makes no {' or '.join(each.__name__ for each in classes)}")
        if not isinstance(made.target, type) and not result_classes(made.target):
            raise ConfigurationError(f"{shown(made.target)} does not say what it returns: write `-> …` behind it")
        return made

    def _parsed(self, plain: Any) -> Any:
        """The value by jsonargparse."""
        try:
            parser, bare = self.parser(), without_places(plain)
            parsed = parser.parse_object({self.argument: bare})[self.argument]
            if isinstance(plain, str) and isinstance(parsed, _PLAIN):  # it was read a second time: is a text taken?
                parser.parse_object({self.argument: _SOME_TEXT})
                return plain
            if all("class_path" in each for each in namespaces(parsed)):
                return self._components(plain, parsed)
            whole = parser.parse_object({self.argument: bare})
            return Component(lambda: parser.instantiate(whole)[self.argument])  # dataclasses among it
        except (ArgumentError, TypeError, ValueError) as error:
            if isinstance(error, WeightsmithError):
                raise
            if isinstance(plain, str) and is_short_name(plain):
                return self._component(plain)
            raise ConfigurationError(reason(plain, str(error))) from error

    def _components(self, plain: Any, parsed: Any) -> Any:
        """What jsonargparse parsed, with components in the places of classes; these check what is further down."""
        if isinstance(parsed, Namespace):
            return component(plain, offered=self.offered)
        if isinstance(parsed, (list, tuple)):
            return type(parsed)(itertools.starmap(self._components, zip(plain, parsed, strict=True)))
        if type(parsed) is dict:
            return {key: self._components(plain[key], value) for key, value in parsed.items()}
        return parsed


def _slot(hint: Any, offered: Sequence[str]) -> _Slot:
    """The place of an item or a value of a mapping."""
    return _Slot(hint, offered, functools.partial(parser_of_hint, hint), VALUE)


def _tensor(plain: list[Any]) -> Component:
    """A tensor of a nested list: of floats, or of true and false."""
    values = without_places(plain)
    try:
        is_bool = torch.tensor(values).dtype is torch.bool
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{values!r} is no tensor: {error}") from error
    dtype = torch.bool if is_bool else torch.get_default_dtype()
    return Component(torch.tensor, {"data": values, "dtype": dtype})


_PLAIN = (bool, int, float, list, dict, type(None))
_SOME_TEXT = "a text that is nothing else"
