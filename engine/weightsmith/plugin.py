"""What makes a plugin a plugin: its fields are its configuration, and ``subscriptions`` yields what it listens to."""

from __future__ import annotations

import functools
import inspect
import os
from abc import ABCMeta, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

from torch import Tensor

from weightsmith.annotations import as_annotated, takes_number, type_names
from weightsmith.definition import (
    refuse_missing_methods,
    refuse_near_misses,
    refuse_unannotated_fields,
    refuse_wrong_signatures,
    restore_defaults,
)
from weightsmith.errors import ConfigurationError, PluginDefinitionError
from weightsmith.importing import import_path, imported
from weightsmith.schedules import Function, Progress, Schedule
from weightsmith.selection import Selector
from weightsmith.spelling import nearest
from weightsmith.values import bare

if TYPE_CHECKING:
    from weightsmith.trainer import Trainer

__all__ = ["DETACHED", "KEPT", "Notes", "Plugin", "Subscription", "refuse_unknown_length"]

Subscription = tuple[Any, Any]
Self = TypeVar("Self", bound="Plugin")

DETACHED = object()
"""In place of an event: ``yield DETACHED, close`` calls ``close()`` when the plugin is detached."""

KEPT = object()
"""In place of an event: ``yield KEPT, part`` saves ``part.state_dict()`` with the run, and hands it to
``part.load_state_dict(…)`` when a run is resumed, before its STARTED."""


class Notes(dict[Any, Any]):
    """What a plugin notes of the run in progress; with ``yield KEPT, notes`` it is saved and restored with it.

    Keys are texts, numbers or tuples of these; values what a checkpoint can hold: tensors, numbers, texts, histograms,
    and dicts, lists and tuples of these.
    """

    def state_dict(self) -> dict[Any, Any]:
        return dict(self)

    def load_state_dict(self, state: Mapping[Any, Any]) -> None:
        self.clear()
        self.update(state)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class PluginType(ABCMeta):
    """Makes every plugin class a frozen dataclass, and refuses one that could not work, when the class is made."""

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, abstract: bool = False) -> Any:
        cls: Any = super().__new__(mcls, name, bases, namespace)
        if bases:
            refuse_unannotated_fields(cls, namespace)
        dataclass(frozen=True, repr=False)(cls)
        if bases:
            _refuse_defaults_that_cannot_be_written(cls)
        restore_defaults(cls, namespace)
        if not abstract:
            refuse_near_misses(cls, namespace)
            refuse_missing_methods(cls)
            refuse_wrong_signatures(cls, namespace)
        cls._is_made = True
        return cls

    if not TYPE_CHECKING:  # type checkers know the fields from the dataclass itself

        def __call__(cls, *args: Any, **settings: Any) -> Any:
            known = [field_.name for field_ in fields(cls)]
            for name in settings:
                if name not in known:
                    raise ConfigurationError(f"{cls.__name__} has no field {name!r}{nearest(name, known)}")
            if cls.gathers is not None and args:
                gathered = tuple(args[0]) if len(args) == 1 and isinstance(args[0], (list, tuple)) else args
                args, settings = (), {cls.gathers: gathered, **settings}
            _refuse_wrong_count(cls, args, settings)
            return super().__call__(*args, **settings)

        @property
        def __signature__(cls) -> inspect.Signature:
            """What ``help()`` shows: the fields."""
            _, *parameters = inspect.signature(cls.__init__).parameters.values()
            gathered = [p.replace(kind=p.VAR_POSITIONAL) for p in parameters if p.name == cls.gathers]
            return inspect.Signature([*gathered, *(p for p in parameters if p.name != cls.gathers)])

    def __setattr__(cls, name: str, value: Any) -> None:
        if name == "__dataclass_params__" and cls.__dict__.get("_is_made"):
            raise PluginDefinitionError(
                f"{cls.__name__} is decorated with @dataclass: remove the decorator. "
                "A subclass of a plugin kind is made a frozen dataclass by itself"
            )
        super().__setattr__(name, value)


class Plugin(metaclass=PluginType, abstract=True):
    """Something that listens to events of a :class:`~weightsmith.trainer.Trainer`.

    The class's annotated fields are its configuration. Subclasses become frozen dataclasses by themselves, so plugins
    can be compared, hashed, printed, pickled and written to YAML. What belongs to a run lives in the handlers.

    >>> from ignite.engine import Events
    >>> class Announce(Plugin):
    ...     text: str = "done"
    ...
    ...     def subscriptions(self, trainer):
    ...         yield Events.COMPLETED, lambda engine: print(self.text)
    >>> Announce("finished")
    Announce(text='finished')

    Raises:
        PluginDefinitionError: when the class is made: a method is missing or misspelt, a field has no annotation or a
            default that YAML cannot hold, or the class is decorated with ``@dataclass``.
        ConfigurationError: when a plugin is made: a field's value cannot be compared or written to YAML, or
            :meth:`validate` refuses it.
    """

    gathers: ClassVar[str | None] = None
    """The field into which all positional arguments go, for a plugin that is made of any number of others."""
    derived: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Method to what a kind makes of it by default: a class that writes the method anew gets these defaults back."""
    order: ClassVar[int] = 70
    """Where the kind stands among plugins that listen to one event; within a kind the list's order counts."""

    @abstractmethod
    def subscriptions(self, trainer: Trainer) -> Iterator[Subscription]:
        """Yield ``(event, handler)`` pairs: any event of Ignite or of weightsmith, filtered or not, and what to call.

        A handler may take the trainer as its first argument. Runs when the plugin is attached. In place of an event
        stands ``DETACHED`` for what is to be called, without an argument, when the plugin is detached; or ``KEPT`` for
        a part with a ``state_dict`` and a ``load_state_dict``, such as :class:`Notes`, that is saved with the run.
        """

    def validate(self) -> None:
        """Raise :class:`ConfigurationError` where a field has a value that makes no sense.

        Called when the plugin is made, with the first and the last value of every schedule, and again with each value
        that a schedule takes.
        """

    def metrics_needed(self) -> Sequence[str]:
        """The names in ``state.metrics`` that it reads: a recipe whose run will not have them is refused."""
        return ()

    def metrics_given(self) -> Sequence[str]:
        """The names in ``state.metrics`` that it writes, for others that need them."""
        return ()

    def __post_init__(self) -> None:
        for field_ in fields(self):
            try:
                value = self._normal(field_, getattr(self, field_.name))
            except ConfigurationError as error:
                blamed = type(error)(f"{type(self).__name__}.{field_.name}: {error}")
                vars(blamed)["field"] = field_.name
                raise blamed from None
            object.__setattr__(self, field_.name, value)
        for twin in self._extremes():
            try:
                twin.validate()
            except ConfigurationError as error:
                if twin == self:
                    raise
                raise type(error)(f"{error}; a schedule in {self!r} gives that") from None

    def _normal(self, field_: Field[Any], value: Any) -> Any:
        """The value in its one hashable form, or an error that says how to write it."""
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, Mapping) and not takes_number(field_):
            value = tuple(value.items())
        value = _as_tuple(value)
        if inspect.isroutine(value) and takes_number(field_):
            value = Function(import_path(value))
        plain(value)
        return as_annotated(field_, value)

    @functools.cached_property
    def scheduled(self) -> bool:
        """Whether a schedule stands in for a number, in a field or in a plugin that a field holds."""
        return any(True for _ in _schedules(self))

    def resolved(self: Self, progress: Progress) -> Self:
        """This plugin with every schedule replaced by its number at ``progress``."""
        if not self.scheduled:
            return self
        twin = self._with({f.name: _rounded(f, _resolved(getattr(self, f.name), progress)) for f in fields(self)})
        twin.validate()
        return twin

    def _with(self: Self, values: dict[str, Any]) -> Self:
        """As dataclasses.replace, without normalising again what was normalised when the plugin was made."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.__dict__.update(values)
        twin.__dict__.pop("scheduled", None)
        return twin

    def _extremes(self: Self) -> Iterator[Self]:
        """This plugin with each schedule at each of the values that it is known to take."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if not all(schedule.known_values() for value in values.values() for schedule in _schedules(value)):
            return  # a user's own function: every value is checked when it is taken
        typed = {f.name: f for f in fields(self)}
        firsts = {name: _rounded(typed[name], _picked(value, 0)) for name, value in values.items()}
        yield self._with(firsts)
        for name, value in values.items():
            longest = max((len(schedule.known_values()) for schedule in _schedules(value)), default=0)
            for place in range(1, longest):
                yield self._with({**firsts, name: _rounded(typed[name], _picked(value, place))})

    def to_plain(self) -> dict[str, Any]:
        """As YAML writes it: the class's import path to the fields that differ from their defaults.

        :func:`weightsmith.recipe.from_plain` reads it back.

        Raises:
            ConfigurationError: the class is defined inside a function, so nobody could import it again.
        """
        import_path(type(self))
        return {class_path(type(self)): {name: plain(value) for name, value in self._chosen().items()}}

    def _chosen(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        own_first = sorted(fields(self), key=lambda field_: field_.kw_only is True)
        values = {field_.name: (getattr(self, field_.name), self._default(field_)) for field_ in own_first}
        return {name: value for name, (value, default) in values.items() if default is MISSING or value != default}

    def _default(self, field_: Field[Any]) -> Any:
        default = field_.default_factory() if field_.default_factory is not MISSING else field_.default
        return default if default is MISSING else self._normal(field_, default)

    def __repr__(self) -> str:
        chosen = ", ".join(f"{name}={_shown(value)}" for name, value in self._chosen().items())
        return f"{type(self).__name__}({chosen})"


def refuse_unknown_length(plugin: Plugin) -> None:
    """Raise :class:`ConfigurationError` where a schedule needs the length of a run that does not know it."""
    for schedule in _schedules(plugin):
        if schedule.needs_length:
            raise schedule.without_length()


def plain(value: Any) -> Any:
    """``value`` as YAML can hold it.

    >>> plain((1, "a", None))
    [1, 'a', None]

    Raises:
        ConfigurationError: it cannot be compared, hashed and written to YAML.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (Schedule, Selector, Plugin)):
        return value.to_plain()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if inspect.isroutine(value):
        return {"import": import_path(value)}
    if isinstance(value, Tensor):
        raise ConfigurationError(
            "a tensor cannot be compared and written to YAML: give a nested list, or a file's path"
        )
    if isinstance(value, PluginType):
        raise ConfigurationError(f"{value.__name__} is a class: give a plugin made of it, {value.__name__}(…)")
    raise ConfigurationError(
        f"{value!r} cannot be compared and written to YAML: use numbers, texts, booleans, None, lists of these, "
        "schedules, selectors, or functions defined at the top of a module"
    )


def _shown(value: Any) -> str:
    return import_path(value) if inspect.isroutine(value) else repr(value)


def _schedules(value: Any) -> Iterator[Schedule]:
    """The schedules in a field's value: itself, those of a tuple, those of a plugin."""
    if isinstance(value, Schedule):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _schedules(item)
    elif isinstance(value, Plugin):
        for field_ in fields(value):
            yield from _schedules(getattr(value, field_.name))


def _picked(value: Any, place: int) -> Any:
    """The value with each of its own schedules at the ``place``-th value that it is known to take, or at its last."""
    if isinstance(value, tuple):
        return tuple(_picked(item, place) for item in value)
    return value.known_values()[: place + 1][-1] if isinstance(value, Schedule) else value


def _resolved(value: Any, progress: Progress) -> Any:
    if isinstance(value, tuple):
        return tuple(_resolved(item, progress) for item in value)
    if isinstance(value, Plugin):
        return value.resolved(progress)
    return value(progress) if isinstance(value, Schedule) else value


def _rounded(field_: Field[Any], value: Any) -> Any:
    """A number that a schedule gave, in the field's type."""
    names = type_names(field_)
    return round(value) if isinstance(value, float) and "int" in names and "float" not in names else value


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, (list, tuple)) else bare(value)


def class_path(cls: type) -> str:
    """The class's path, the short one where its package exports it; unique, though a local class cannot be imported."""
    short = f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}"
    try:
        is_exported = imported(short) is cls
    except ConfigurationError:
        is_exported = False
    return short if is_exported else f"{cls.__module__}.{cls.__qualname__}"


def _refuse_wrong_count(cls: Any, args: tuple[Any, ...], settings: dict[str, Any]) -> None:
    """Say which values are missing, or that there are too many."""
    positional = [field_.name for field_ in fields(cls) if not field_.kw_only]
    if len(args) > len(positional):
        takes = f"takes {', '.join(positional)}" if positional else "takes none"
        others = [field_.name for field_ in fields(cls) if field_.kw_only]
        mend = f"; name the others: {others[0]}=…" if others else " (a plugin's values are its annotated fields)"
        raise ConfigurationError(f"{cls.__name__} was given {len(args)} values, and {takes}{mend}")
    given = {*positional[: len(args)], *settings}
    missing = [
        field_.name
        for field_ in fields(cls)
        if field_.default is MISSING and field_.default_factory is MISSING and field_.name not in given
    ]
    if missing:
        raise ConfigurationError(f"{cls.__name__} needs {', '.join(missing)}: {cls.__name__}({missing[0]}=…)")


def _refuse_defaults_that_cannot_be_written(cls: Any) -> None:
    for field_ in fields(cls):
        if field_.default is MISSING or inspect.isroutine(field_.default):
            continue
        try:
            plain(field_.default)
        except ConfigurationError as error:
            raise PluginDefinitionError(f"{cls.__name__}.{field_.name}: {error}") from None
