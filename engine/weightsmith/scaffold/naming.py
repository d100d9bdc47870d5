"""One name in its forms: of a class, of a module and of a distribution; and which names would do harm."""

from __future__ import annotations

import difflib
import importlib.util
import keyword
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from weightsmith.errors import ConfigurationError
from weightsmith.importing import imported

__all__ = ["Kind", "Names", "refuse_other_kinds"]

Kind = Literal[
    "initializer",
    "penalty",
    "gradient_editor",
    "weight_editor",
    "constraint",
    "parametrization",
    "average",
    "probe",
    "plugin",
]
"""The nine kinds of plugin."""

_FORMS = "give a name such as UnitBall, unit_ball or unit-ball, of ASCII letters and digits"
_WORDS = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*")
_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Whose classes a file would hide from its own imports, or a recipe could not tell from the new one.
_TAKEN_BY = ("weightsmith", "weightsmith_plugins", "weightsmith.testing", "torch", "typing", "builtins")


@dataclass(frozen=True)
class Names:
    """One name in its three forms.

    >>> Names.of("UnitBall")
    Names(class_name='UnitBall', module='unit_ball')
    >>> Names.of("l2-ball").class_name, Names.of("SVDBound").module, Names.of("UnitBall").distribution
    ('L2Ball', 'svd_bound', 'unit-ball')
    """

    class_name: str
    module: str

    @property
    def distribution(self) -> str:
        return self.module.replace("_", "-")

    @classmethod
    def of(cls, name: str) -> Names:
        """The forms of a name that is given in one of them.

        Raises:
            ConfigurationError: it is no identifier, a keyword, or what pytest would take for a test.
        """
        if not _WORDS.fullmatch(name):
            raise ConfigurationError(f"{name!r} cannot be the name of a plugin: {_FORMS}")
        words = re.split("[-_]", name)
        class_name = "".join(word[0].upper() + word[1:] for word in words)
        module = "_".join(words if len(words) > 1 else _HUMPS.split(name)).lower()
        for form in (class_name, module):
            if keyword.iskeyword(form):
                raise ConfigurationError(
                    f"{name!r} cannot be the name of a plugin: {form} is a word of Python; {_FORMS}"
                )
        if re.match("test(_|s?$)|conftest$", module):
            raise ConfigurationError(
                f"{name!r} cannot be the name of a plugin: pytest would take {module}.py for tests"
            )
        return cls(class_name, module)

    def refuse_taken(self, own: Sequence[Path]) -> None:
        """Raise where the class or the module would hide another; modules in the folders ``own`` are the author's."""
        for package in _TAKEN_BY:
            if _exists(f"{package}.{self.class_name}"):
                raise ConfigurationError(
                    f"{package} has a {self.class_name} already, which the new class would hide: choose another name"
                )
        origin = _origin(self.module)
        if origin is not None and not any(Path(origin).is_relative_to(folder.resolve()) for folder in own):
            raise ConfigurationError(
                f"there is a module {self.module} already ({origin}), which the new file would hide: choose another "
                "name"
            )


def refuse_other_kinds(kind: str) -> None:
    """Raise for a word that is no kind of plugin."""
    kinds = get_args(Kind)
    if kind not in kinds:
        close = difflib.get_close_matches(kind, kinds, n=1)
        mend = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(kinds)}"
        raise ConfigurationError(f"{kind!r} is no kind of plugin: {mend}")


def _exists(path: str) -> bool:
    try:
        imported(path)
    except ConfigurationError:
        return False
    return True


def _origin(module: str) -> str | None:
    """Where a module would be imported from; a folder without an ``__init__.py`` hides nothing, and is none."""
    if module in sys.modules:
        return getattr(sys.modules[module], "__file__", None) or "part of Python"
    spec = importlib.util.find_spec(module)
    return None if spec is None else spec.origin
