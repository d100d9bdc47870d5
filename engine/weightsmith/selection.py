"""Which weights a plugin touches: the values that ``where=`` takes."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from weightsmith.errors import SelectionError
from weightsmith.importing import import_path, looked_up
from weightsmith.weights import Weight, is_lazy

__all__ = ["Selector", "Where", "added", "biases", "everything", "matrices", "named", "norms", "of_type", "select"]


class Selector(ABC):
    """A test on a weight. Selectors compose with ``&``, ``|`` and ``~``."""

    @abstractmethod
    def matches(self, weight: Weight) -> bool:
        """Whether the weight is selected. Of tied weights, any of the names counts."""

    @abstractmethod
    def to_plain(self) -> Any:
        """As YAML writes it; :func:`selector` reads it back."""

    def patterns(self) -> list[Selector]:
        """The parts that must each match something, or nothing is what they silently do."""
        return [self]

    def __and__(self, other: Where) -> Selector:
        return AllOf((self, selector(other)))

    def __or__(self, other: Where) -> Selector:
        return AnyOf((self, selector(other)))

    def __rand__(self, other: Where) -> Selector:
        return AllOf((selector(other), self))

    def __ror__(self, other: Where) -> Selector:
        return AnyOf((selector(other), self))

    def __invert__(self) -> Selector:
        return Not(self)


Where: TypeAlias = "Selector | str | type[nn.Module] | Callable[[str, Tensor, nn.Module], bool] | Sequence[Any]"
"""What ``where=`` takes: a glob, ``"re:…"``, ``"@Conv2d"``, a module type, a predicate, a list of these, a selector."""


@dataclass(frozen=True)
class Named(Selector):
    """Weights whose name, or that of a module above them, matches a glob, or after ``re:`` a regular expression."""

    pattern: str

    def __post_init__(self) -> None:
        if self.pattern.startswith("re:"):
            try:
                re.compile(self.pattern[3:])
            except re.error as error:
                raise SelectionError(f"{self.pattern!r} is no regular expression: {error}") from error

    def matches(self, weight: Weight) -> bool:
        return any(self._accepts(candidate) for name in weight.names for candidate in _with_parents(name))

    def _accepts(self, name: str) -> bool:
        if self.pattern.startswith("re:"):
            return re.fullmatch(self.pattern[3:], name) is not None
        return fnmatch.fnmatchcase(name, self.pattern)

    def to_plain(self) -> str | dict[str, str]:
        return {"named": self.pattern} if self._means_something_else() else self.pattern

    def __repr__(self) -> str:
        return f"named({self.pattern!r})" if self._means_something_else() else repr(self.pattern)

    def _means_something_else(self) -> bool:
        return self.pattern in _FAMILIES or self.pattern.startswith("@")


@dataclass(frozen=True)
class OfType(Selector):
    """The own parameters of modules of a type."""

    module_type: type[nn.Module]

    def matches(self, weight: Weight) -> bool:
        return isinstance(weight.module, self.module_type)

    def to_plain(self) -> str:
        name = self.module_type.__name__
        return f"@{name}" if getattr(nn, name, None) is self.module_type else f"@{import_path(self.module_type)}"

    def __repr__(self) -> str:
        return repr(self.to_plain())


@dataclass(frozen=True)
class Satisfying(Selector):
    """Weights for which a predicate ``(name, parameter, module) -> bool`` is true."""

    predicate: Callable[[str, Tensor, nn.Module], bool]

    def __post_init__(self) -> None:
        import_path(self.predicate)

    def matches(self, weight: Weight) -> bool:
        return any(self.predicate(name, weight.raw[0], weight.module) for name in weight.names)

    def to_plain(self) -> dict[str, str]:
        return {"satisfying": import_path(self.predicate)}

    def __repr__(self) -> str:
        return import_path(self.predicate)


@dataclass(frozen=True)
class AllOf(Selector):
    """Weights that every part selects."""

    parts: tuple[Selector, ...]

    def matches(self, weight: Weight) -> bool:
        return all(part.matches(weight) for part in self.parts)

    def patterns(self) -> list[Selector]:
        return [pattern for part in self.parts for pattern in part.patterns()]

    def to_plain(self) -> dict[str, list[Any]]:
        return {"all": [part.to_plain() for part in self.parts]}

    def __repr__(self) -> str:
        return "(" + " & ".join(_operand(part) for part in self.parts) + ")"


@dataclass(frozen=True)
class AnyOf(Selector):
    """Weights that at least one part selects."""

    parts: tuple[Selector, ...]

    def matches(self, weight: Weight) -> bool:
        return any(part.matches(weight) for part in self.parts)

    def patterns(self) -> list[Selector]:
        return [pattern for part in self.parts for pattern in part.patterns()]

    def to_plain(self) -> list[Any]:
        return [part.to_plain() for part in self.parts]

    def __repr__(self) -> str:
        return "[" + ", ".join(repr(part) for part in self.parts) + "]"


@dataclass(frozen=True)
class Not(Selector):
    """Weights that the part does not select."""

    part: Selector

    def matches(self, weight: Weight) -> bool:
        return not self.part.matches(weight)

    def patterns(self) -> list[Selector]:
        # A misspelt name would exclude nothing; a type or a family may well be absent from one model and not another.
        return [pattern for pattern in self.part.patterns() if isinstance(pattern, Named)]

    def to_plain(self) -> dict[str, Any]:
        return {"not": self.part.to_plain()}

    def __repr__(self) -> str:
        return f"~{_operand(self.part)}"


@dataclass(frozen=True)
class Family(Selector):
    """One of the built-in selectors, by its name."""

    name: str

    def matches(self, weight: Weight) -> bool:
        return _FAMILIES[self.name](weight)

    def to_plain(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name


def _is_matrix(weight: Weight) -> bool:
    if is_lazy(weight.raw[0]):  # no shape yet: taken by its name, so that whoever selects it is told
        return not weight.leaf.startswith("bias")
    return weight.effective().ndim >= 2


_NORM_LAYERS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)

_FAMILIES: dict[str, Callable[[Weight], bool]] = {
    "everything": lambda _: True,
    "matrices": lambda weight: _is_matrix(weight),
    "biases": lambda weight: weight.leaf.startswith("bias"),
    "norms": lambda weight: isinstance(weight.module, _NORM_LAYERS),
    "added": lambda weight: weight.is_added,
}

everything: Selector = Family("everything")
"""Every weight."""
matrices: Selector = Family("matrices")
"""Weights with two axes or more, whatever they are called: linear, convolution, embedding, recurrent, and parameters of
your own; no biases, no normalisation scales."""
biases: Selector = Family("biases")
"""Parameters whose own name begins with ``bias``."""
norms: Selector = Family("norms")
"""The parameters of normalisation layers."""
added: Selector = Family("added")
"""What parametrizations train besides the raw parameter, such as the factors of a low-rank adapter: seen by gradient
editors, weight editors, averages and probes."""


def named(*patterns: str) -> Selector:
    """Weights by name: globs, or regular expressions after ``re:``. A module's name stands for all below it.

    >>> named("encoder", "re:head.[0-9].weight")
    ['encoder', 're:head.[0-9].weight']
    """
    return Named(patterns[0]) if len(patterns) == 1 else AnyOf(tuple(map(Named, patterns)))


def of_type(*types: type[nn.Module]) -> Selector:
    """The own parameters of modules of these types.

    >>> of_type(nn.Conv2d) & ~biases
    (selector('@Conv2d') & ~biases)
    """
    return OfType(types[0]) if len(types) == 1 else AnyOf(tuple(map(OfType, types)))


def selector(where: Where) -> Selector:
    """The selector that a value of ``where=`` means.

    >>> selector(["fc1", "@Conv2d", biases])
    ['fc1', '@Conv2d', biases]

    Raises:
        SelectionError: the value is none of what :data:`Where` lists.
    """
    if isinstance(where, Selector):
        return where
    if isinstance(where, str):
        return _from_text(where)
    if isinstance(where, dict):
        return _from_plain(where)
    if isinstance(where, type) and issubclass(where, nn.Module):
        return OfType(where)
    if isinstance(where, (Tensor, nn.Module)):
        raise SelectionError(
            f"where= was given a {type(where).__name__} itself: give its name, such as 'encoder.fc', or a module type"
        )
    if isinstance(where, Iterable):
        parts = tuple(selector(part) for part in where)
        if not parts:
            raise SelectionError("where=[] selects nothing: name at least one weight")
        return AnyOf(parts)
    if inspect.isroutine(where):
        return Satisfying(where)
    raise SelectionError(f"where={where!r} selects nothing: give a glob, a module type, a predicate or a list of these")


def select(where: Where, weights: Sequence[Weight]) -> list[Weight]:
    """The weights that ``where`` selects, in their order.

    Raises:
        SelectionError: ``where``, or one part of a list, matches nothing; the message names the nearest names.
    """
    wanted = selector(where)
    chosen = [weight for weight in weights if wanted.matches(weight)]
    for pattern in wanted.patterns():
        if not any(pattern.matches(weight) for weight in weights):
            raise SelectionError(f"where={pattern!r} matches no weight{_nearest(pattern, weights)}")
    if not chosen:
        raise SelectionError(f"where={wanted!r} matches no weight{_nearest(wanted, weights)}")
    return chosen


def _from_text(text: str) -> Selector:
    if text in _FAMILIES:
        return Family(text)
    if not text.startswith("@"):
        return Named(text)
    found = looked_up(text[1:]) if "." in text else getattr(nn, text[1:], None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        close = difflib.get_close_matches(text[1:], dir(nn), n=1)
        hint = f"; the nearest is '@{close[0]}'" if close else ""
        raise SelectionError(
            f"{text!r} names no module type of torch.nn{hint}; write others as '@package.module.Class'"
        )
    return OfType(found)


def _from_plain(plain: dict[str, Any]) -> Selector:
    match list(plain.items()):
        case [("all", parts)]:
            return AllOf(tuple(selector(part) for part in parts))
        case [("not", part)]:
            return Not(selector(part))
        case [("named", pattern)]:
            return Named(pattern)
        case [("satisfying", path)]:
            return Satisfying(looked_up(path))
    raise SelectionError(
        f"where={plain!r}: write {{all: […]}}, {{not: …}}, {{named: …}} or {{satisfying: import.path}}"
    )


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _operand(part: Selector) -> str:
    """``part`` as one side of ``&`` or ``~``, so that evaluating the text gives the selector again."""
    if isinstance(part, Named):
        return f"named({part.pattern!r})"
    if isinstance(part, Satisfying):
        return f"selector({part!r})"
    return f"selector({part!r})" if isinstance(part, (AnyOf, OfType)) else repr(part)


def _nearest(pattern: Selector, weights: Sequence[Weight]) -> str:
    if isinstance(pattern, OfType):
        types = dict.fromkeys(type(weight.module).__name__ for weight in weights)
        return f"; there are {', '.join(f'@{name}' for name in types)}" if types else ": the models have none"
    names = list(dict.fromkeys(part for weight in weights for name in weight.names for part in _with_parents(name)))
    text = str(pattern.to_plain()).removeprefix("re:")
    words = difflib.get_close_matches(text, _FAMILIES, n=1, cutoff=0.7)
    close = difflib.get_close_matches(text, names, n=3, cutoff=0.4) or [weight.name for weight in weights][:3]
    close = [*words, *close][:3]
    return f"; the nearest are {', '.join(map(repr, close))}" if close else ": the models have none"
