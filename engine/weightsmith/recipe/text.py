"""YAML as plain values that know where they were written, so that an error can name file and line; and back."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.emitter import Emitter
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.representer import SafeRepresenter
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner
from yaml.serializer import Serializer

from weightsmith.errors import ConfigurationError, RecipeError

__all__ = ["Items", "Problems", "Section", "located", "place_of", "read_text", "read_yaml", "written"]


class Section(dict[Any, Any]):
    """A mapping that knows where it, and each of its keys, was written."""

    def __init__(self, values: dict[Any, Any] | None = None, place: str = "", places: dict[Any, str] | None = None):
        super().__init__(values or {})
        self.place = place
        self.places = dict(places or {})


class Items(list[Any]):
    """A list that knows where it, and each of its items, was written."""

    def __init__(self, values: list[Any], place: str, places: list[str]) -> None:
        super().__init__(values)
        self.place = place
        self.places = dict(enumerate(places))


def place_of(container: Any, key: Any = None) -> str:
    """Where a key or an item was written, else where its container was, such as ``"shaping.yaml:7"``; empty if it is
    not known."""
    places = getattr(container, "places", {})
    return str(places[key]) if key in places else str(getattr(container, "place", ""))


@contextlib.contextmanager
def located(container: Any, key: Any = None) -> Iterator[None]:
    """Say in errors of configuration where the key was written, unless they say a place already."""
    try:
        yield
    except RecipeError:
        raise
    except ConfigurationError as error:
        place = place_of(container, key)
        if not place:
            raise
        raise RecipeError([f"{place}: {error}"]) from error


class Problems:
    """Gathers errors of configuration, so that all are told together."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._has_places = False
        self._first: BaseException | None = None

    @contextlib.contextmanager
    def gathering(self, container: Any = None, key: Any = None) -> Iterator[None]:
        try:
            with located(container, key):
                yield
        except ConfigurationError as error:
            self._has_places |= isinstance(error, RecipeError)
            self._found += error.problems if isinstance(error, RecipeError) else [str(error)]
            self._first = self._first or error

    def raise_any(self) -> None:
        """Raise a :class:`RecipeError` with all that was gathered; where no place is known, a
        :class:`ConfigurationError`, to which somebody further out may know the place."""
        found = list(dict.fromkeys(self._found))
        if found and not self._has_places:
            raise ConfigurationError("\n".join(found)) from self._first
        if found:
            raise RecipeError(found) from self._first


# -------------------------------------------------------------------- reading


def read_yaml(path: str | Path) -> Any:
    """The values in a YAML file.

    Raises:
        RecipeError: there is no such file, it is no YAML, a key stands twice, or a tag asks for more than plain values.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise RecipeError([f"{path}: it cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise RecipeError([f"{path}: it is no text in UTF-8: {error.reason} at byte {error.start}"]) from error
    return read_text(text, str(path))


def read_text(text: str, source: str) -> Any:
    """The values in a YAML text (YAML 1.2's core schema: ``1e-4`` is a number, ``no`` a text).

    Args:
        text: one document.
        source: what to call it in errors; lines are counted from 1.

    Raises:
        RecipeError: as :func:`read_yaml`.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Constructor(source).value(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = str(error.problem or error.context)
        hints = [hint for part, hint in _HINTS.items() if part in problem]
        raise RecipeError([f"{source}{line}: it is no YAML: {'; '.join([problem, *hints])}"]) from error
    except yaml.YAMLError as error:
        raise RecipeError([f"{source}: it is no YAML: {error}"]) from error
    except RecursionError:
        raise RecipeError([f"{source}: it is nested too deeply"]) from None


_LINES = "look at this line and the one before"
_HINTS = {
    "mapping values are not allowed here": f"{_LINES}: the indentation, a blank after each colon, quotes around a text "
    "with a colon in it",
    "could not find expected ':'": f"{_LINES}: a key needs a colon and a blank after it, `epochs: 1`",
    "expected <block end>": f"{_LINES}: what belongs together is indented by as many blanks, and `-` has a blank after "
    "it",
    "found character '\\t'": "indent with blanks, not with tabs",
    "but got": "a bracket of this line or of one before is not closed",
}
"""What to look at, by a part of what the parser says."""


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)


_TAG = "tag:yaml.org,2002:"
_CORE: dict[str, tuple[str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", lambda _: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", lambda text: int(text, 0 if text[1:2] in ("o", "x") else 10)),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())),
    ),
}
for _name, (_pattern, _) in _CORE.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), None)


class _Dumper(Emitter, Serializer, SafeRepresenter, BaseResolver):
    """Quotes what :class:`_Loader` would not read as a text."""

    def __init__(self, stream: Any) -> None:
        Emitter.__init__(self, stream, allow_unicode=True, width=120)
        Serializer.__init__(self)
        SafeRepresenter.__init__(self, sort_keys=False, default_flow_style=None)  # type: ignore[arg-type]  # None: flat ones in a line
        BaseResolver.__init__(self)

    def choose_scalar_style(self) -> Any:
        """In double quotes where a line break of Unicode's would otherwise be read as a space."""
        breaks = isinstance(self.event, yaml.ScalarEvent) and not {"\x85", "\u2028", "\u2029"}.isdisjoint(
            self.event.value
        )
        return '"' if breaks else super().choose_scalar_style()


for _name, (_pattern, _) in _CORE.items():
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), None)
_Dumper.add_representer(Section, SafeRepresenter.represent_dict)
_Dumper.add_representer(Items, SafeRepresenter.represent_list)
_Dumper.add_multi_representer(int, lambda dumper, number: dumper.represent_int(int(number)))
_Dumper.add_multi_representer(float, lambda dumper, number: dumper.represent_float(float(number)))


def written(values: Any) -> str:
    """Plain values as YAML; :func:`read_text` gives them back.

    >>> print(written({"rate": 1e-4, "text": "1e-4"}), end="")
    {rate: 0.0001, text: '1e-4'}
    """
    stream = io.StringIO()
    dumper = _Dumper(stream)
    dumper.open()
    dumper.represent(values)
    dumper.close()
    return stream.getvalue()


# -------------------------------------------------------------------- making values

_MOST = 100_000
"""Values in one document: more than anybody writes; a few lines of aliases can stand for billions."""


_MOST_DIGITS = 1000


class _Constructor:
    """Makes plain values of YAML's nodes."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._open: list[Any] = []
        self._made = 0

    def value(self, node: yaml.Node) -> Any:
        self._made += 1
        if self._made > _MOST:
            raise RecipeError([f"{self._source}: it stands for more than {_MOST} values"])
        if any(node is outer for outer in self._open):
            raise RecipeError([f"{self._at(node)}: the alias stands for something that it is a part of"])
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node)
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                values = [self.value(item) for item in node.value]
                return Items(values, self._at(node), [self._at(item) for item in node.value])
            return self._scalar(node)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode) -> Section:
        section = Section(place=self._at(node))
        for key_node, value_node in node.value:
            key, place = self.value(key_node), self._at(key_node)
            if not isinstance(key, Hashable) or isinstance(key, (dict, list)):
                raise RecipeError([f"{place}: a key must be a text or a number"])
            if key in section:
                raise RecipeError([f"{place}: the key {key!r} stands here a second time, first {section.places[key]}"])
            section[key] = self.value(value_node)
            section.places[key] = place
        return section

    def _scalar(self, node: yaml.Node) -> Any:
        name = node.tag.removeprefix(_TAG)
        if name == "str":
            return node.value
        if not isinstance(node, yaml.ScalarNode) or name not in _CORE:
            raise RecipeError(
                [f"{self._at(node)}: the tag {node.tag.replace(_TAG, '!!')!r} is not taken: only plain values are"]
            )
        pattern, made = _CORE[name]
        if re.fullmatch(pattern, node.value) is None:
            raise RecipeError([f"{self._at(node)}: {node.value!r} is no {name}"])
        if len(node.value) > _MOST_DIGITS and name == "int":
            raise RecipeError([f"{self._at(node)}: the number has more than {_MOST_DIGITS} digits"])
        try:
            return made(node.value)
        except ValueError as error:  # an integer of more digits than Python reads
            raise RecipeError([f"{self._at(node)}: {error}"]) from error

    def _at(self, node: yaml.Node) -> str:
        return f"{self._source}:{node.start_mark.line + 1}"
