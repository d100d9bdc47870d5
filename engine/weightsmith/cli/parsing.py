"""Commands from functions: their type hints say what they take, their docstrings what it means."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser

__all__ = ["Command", "add_commands", "parser_of"]

Command = Callable[..., int | None]
"""Does something, prints it, and returns the process's exit code; ``None`` for 0."""


def add_commands(parser: ArgumentParser, commands: Mapping[str, Any], into: str = "command") -> None:
    """Add a subcommand for each function, and for each mapping a group of them.

    Parameters that are not keyword-only become positional, those that are true or false flags, and ``changes`` becomes
    ``--set``.
    """
    subcommands = parser.add_subcommands(required=True, dest=into, metavar="COMMAND", title="commands", description="")
    for name, command in commands.items():
        if isinstance(command, Mapping):
            group = ArgumentParser(description=command[""])
            subcommands.add_subcommand(name, group, help=_first_line(command[""]))
            add_commands(group, {key: value for key, value in command.items() if key}, "what")
        else:
            subcommands.add_subcommand(name, parser_of(command), help=_first_line(_description(command)))


def _first_line(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split()).replace("%", "%%")


class _Changes(argparse.Action):
    """Gathers settings, and refuses what is none, such as a recipe that was written behind them."""

    def __call__(self, _parser: Any, namespace: Any, values: Any, _option_string: str | None = None) -> None:
        for text in values:
            if "=" not in text:
                problem = f"{text!r} sets nothing: write path=value, and what is no setting before --set"
                raise argparse.ArgumentError(self, problem)
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *values])


def _description(command: Command) -> str:
    return docstring_parser.parse(inspect.getdoc(command) or "").description or ""


def parser_of(command: Command) -> ArgumentParser:
    """The parser of a command's arguments, from its type hints and its docstring."""
    parser = ArgumentParser(description=_description(command).replace("``", ""))
    parameters = inspect.signature(command).parameters
    flags = {name for name, parameter in parameters.items() if parameter.default is False}
    last = {n: p for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty}
    parser.add_function_arguments(
        command, as_group=False, as_positional=True, fail_untyped=False, skip={*flags, *last, "changes"}
    )
    help_of = {each.arg_name: each.description for each in docstring_parser.parse(inspect.getdoc(command) or "").params}
    hints = get_type_hints(command)
    for name, parameter in last.items():
        parser.add_argument(name, nargs="?", type=hints[name], default=parameter.default, help=help_of.get(name))
    for flag in sorted(flags):
        parser.add_argument(f"--{flag.replace('_', '-')}", dest=flag, action="store_true", help=help_of.get(flag))
    if "changes" in parameters:
        parser.add_argument(
            "--set",
            dest="changes",
            nargs="+",
            action=_Changes,
            default=[],
            metavar="PATH=VALUE",
            help=help_of["changes"],
        )
    return parser
