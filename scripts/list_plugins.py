"""Write docs/plugins.md: every built-in plugin and function in one line, from its docstring."""

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path

import weightsmith_plugins
from weightsmith import Plugin
from weightsmith.catalogue import KINDS, call, first_sentence, kind_of

PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"


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
            lines += [f"- `{call(plugin)}` — {in_a_table(first_sentence(plugin))}" for plugin in mine] + [""]
    lines += ["## Functions", ""]
    lines += [f"- `{called(function)}` — {in_a_table(first_sentence(function))}" for function in functions] + [""]
    return "\n".join(lines)


def called(function: Callable[..., object]) -> str:
    return f"{function.__name__}({', '.join(inspect.signature(function).parameters)})"


def in_a_table(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}")
