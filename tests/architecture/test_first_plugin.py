"""The page for newcomers is followed step by step, and what it shows is what comes out."""

import ast
import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from weightsmith.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "first_plugin.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


SMALL_AND_LARGE = """
torch.manual_seed(0)
for shape in [(3, 4), (300, 200)]:
    weight = torch.randn(shape) * torch.linspace(0, 3, shape[0]).unsqueeze(1)
    wanted, site = UnitBall(1.0)(weight), Site.alone(weight)
    assert not torch.equal(weight, wanted)
    InPlace(1.0).project_all_([weight], [site])
    torch.testing.assert_close(weight, wanted)
    once = weight.clone()
    InPlace(1.0).project_all_([weight], [site])
    assert torch.equal(weight, once)
    assert weight.norm(dim=1).amax() < shape[1]**0.5 * 1.0001
"""
"""Comes out as by the formula, and stays."""


def weightsmith(*arguments):
    """What the command prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(arguments)
    return printed.getvalue()


def console(text):
    """Each command of a block, with what it prints below it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        program, *arguments = command.split()
        if command == "weightsmith view runs":
            continue  # it serves until it is stopped; tests/engine/test_cli.py stops it
        if program == "weightsmith":
            assert weightsmith(*arguments).strip() == shown.strip(), command
        else:
            assert program == "pytest"
            python("-m", *command.split(), "-p", "no:cacheprovider")


def python(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_docstrings(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            del node.body[0]
    return [ast.dump(node) for node in tree.body]


def replaced(text):
    """Put a function of the page in the place of the one of its name in the author's files."""
    name = re.match(r" *def (\w+)", text)[1]
    for path in (Path("unit_ball.py"), Path("test_unit_ball.py")):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        for node in ast.walk(ast.parse("".join(lines))):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                lines[node.lineno - 1 : node.end_lineno] = [text]
                path.write_text("".join(lines), encoding="utf-8")
                return
    raise AssertionError(f"there is no function {name} to change")


def follow(language, text, printed):
    """Do what a block says; what it prints, for a block `text` that shows it."""
    if language == "console":
        console(text)
    elif language == "text":
        assert printed.strip() == text.strip()
    elif language == "yaml":
        Path("recipe.yaml").write_text(text, encoding="utf-8")
    elif re.match(r" *def ", text):
        replaced(text)
    elif "class UnitBall(" in text or "CASES = [" in text:
        file = Path("unit_ball.py" if "class UnitBall(" in text else "test_unit_ball.py")
        assert set(without_docstrings(text)) <= set(without_docstrings(file.read_text(encoding="utf-8")))
    else:
        return python("-c", text)
    return printed


def test_the_page_can_be_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ".")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # the page changes files within a second
    found = BLOCK.findall(PAGE)
    assert {language for language, _ in found} == {"console", "python", "text", "yaml"}
    printed = ""
    for language, text in found:
        printed = follow(language, text, printed)
    (in_place,) = [text for _, text in found if "class InPlace(" in text]
    python("-c", in_place + SMALL_AND_LARGE)
    (events,) = Path("runs/first").glob("events.out.tfevents.*")
    logged = EventAccumulator(str(events)).Reload().Tags()
    assert "weights/head/weight" in logged["histograms"]
