"""Write docs/plugins.md: every built-in plugin and function in one line, from its docstring."""

import argparse
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path

import weightsmith_plugins
from weightsmith.kinds import (
    Average,
    Constraint,
    GradientEditor,
    Initializer,
    Parametrization,
    Penalty,
    Probe,
    WeightEditor,
)
from weightsmith.plugin import Plugin

PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"
KINDS = [Initializer, Penalty, GradientEditor, WeightEditor, Constraint, Parametrization, Average, Probe, Plugin]


def page() -> str:
    """The page's text."""
    exported = [getattr(weightsmith_plugins, name) for name in weightsmith_plugins.__all__]
    plugins = [found for found in exported if isinstance(found, type)]
    functions = sorted((found for found in exported if inspect.isfunction(found)), key=lambda found: found.__name__)
    lines = ["# The built-in plugins", "", "Made by `scripts/list_plugins.py`; the docstrings say more.", ""]
    for kind in KINDS:
        mine = sorted((p for p in plugins if kind_of(p) is kind), key=lambda plugin: plugin.__name__)
        if mine:
            lines += [f"## {kind.__name__ if kind is not Plugin else 'Other plugins'}", ""]
            lines += [f"- `{call(plugin)}` — {first_sentence(plugin)}" for plugin in mine] + [""]
    lines += [
        "## Functions",
        "",
        *(f"- `{called(function)}` — {first_sentence(function)}" for function in functions),
        "",
    ]
    return "\n".join(lines)


def kind_of(plugin: type[Plugin]) -> type[Plugin]:
    return next(kind for kind in KINDS if issubclass(plugin, kind))


def call(plugin: type[Plugin]) -> str:
    """How it is made, with the fields of its own and their defaults."""
    own = [field for field in fields(plugin) if not field.kw_only]
    shown = [field.name if field.default is MISSING else f"{field.name}={field.default!r}" for field in own]
    return f"{plugin.__name__}({', '.join(shown)})"


def called(function: Callable[..., object]) -> str:
    return f"{function.__name__}({', '.join(inspect.signature(function).parameters)})"


def first_sentence(found: object) -> str:
    paragraph = " ".join(inspect.getdoc(found).partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}")
