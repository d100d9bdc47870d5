"""The command line, ``weightsmith``.

Exit codes: 0, done; 1, the run failed, or a comparison or a check found something; 2, what was asked for cannot work
(an option, a recipe, a folder), and nothing was begun; 130 and 143, Ctrl-C and SIGTERM stopped the run, which is saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from weightsmith.cli.authoring import check, new_package, new_plugin
from weightsmith.cli.comparing import compare
from weightsmith.cli.guarding import guarded
from weightsmith.cli.launching import Launch, Script, script
from weightsmith.cli.listing import plan, plugins
from weightsmith.cli.others import others
from weightsmith.cli.parsing import Command, add_commands
from weightsmith.cli.training import export, resume, train

__all__ = ["Command", "Launch", "Script", "guarded", "main", "script"]

_OWN: dict[str, Any] = {
    "train": train,
    "plan": plan,
    "resume": resume,
    "export": export,
    "compare": compare,
    "plugins": plugins,
    "new": {"": "Write a new plugin, or a package for one.", "plugin": new_plugin, "package": new_package},
    "check": check,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; the process's exit code."""
    set_parsing_settings(add_print_completion_argument=True)
    parser = ArgumentParser(
        prog="weightsmith",
        description="Train from recipes, plan, look and compare; write plugins and check them.",
        version=metadata.version("weightsmith"),
    )
    commands = {**others(_OWN), **_OWN}
    add_commands(parser, commands)
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    return guarded(lambda: _run(commands, chosen))


def _run(commands: Mapping[str, Any], chosen: Namespace) -> int | None:
    command, options = commands[chosen.command], chosen[chosen.command]
    if isinstance(command, Mapping):
        command, options = command[options.what], options[options.what]
    code: int | None = command(**(vars(options) if options is not None else {}))
    return code
