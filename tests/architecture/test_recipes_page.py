"""The page on recipes is followed, and what it shows is what comes out."""

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest
from weightsmith.cli import main
from weightsmith.plugin import Plugin
from weightsmith.recipe import read_plugins

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
MORE = """
def strength(progress):
    return 0.1


def is_small(name, parameter, module):
    return parameter.numel() < 10
"""


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code, *_ = blocks("python")
    recipe, plugins = blocks("yaml")
    Path("flowers.py").write_text(code, encoding="utf-8")
    Path("flowers_more.py").write_text(MORE, encoding="utf-8")
    Path("flowers.yaml").write_text(recipe, encoding="utf-8")
    Path("plugins.yaml").write_text(plugins, encoding="utf-8")
    yield tmp_path
    for module in ("flowers", "flowers_more"):
        sys.modules.pop(module, None)


def test_the_commands_do_what_is_shown(here):
    (text,) = blocks("console")
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert main(command.split()[1:]) == 0
        if shown:
            assert printed.getvalue() == shown
    assert len(list(Path("runs/flowers").iterdir())) == 2
    assert len(list(Path("runs/flowers-one-batch").iterdir())) == 1


def test_the_python_runs(here):
    read_plugins("flowers.yaml")  # as a script's own folder, this one is looked in
    for block in blocks("python")[1:]:
        exec(compile(block, "recipes.md", "exec"), {})


def test_every_form_of_plugin_is_read(here):
    found = read_plugins("plugins.yaml")
    assert len(found) == 8
    assert all(isinstance(plugin, Plugin) for plugin in found)


def test_every_command_is_in_the_table():
    table = [line for line in PAGE.splitlines() if line.startswith("| `")]
    named = {word for line in table for word in re.findall(r"`(\w+)", line.split("|")[1])}
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as printed:
        main(["--help"])
    listed = set(re.findall(r"^    (\w+) ", printed.getvalue(), flags=re.MULTILINE))
    assert named == listed
    assert {"train", "report", "view", "check"} <= listed
