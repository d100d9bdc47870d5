"""What the README shows is run, and what it names exists."""

import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import weightsmith
import weightsmith_plugins
from weightsmith.cli import main
from weightsmith.testing import conformance

DATA = """
import torch
from torch.utils.data import TensorDataset


def points(count: int) -> TensorDataset:
    return TensorDataset(torch.randn(count, 20), torch.randint(0, 3, (count,)))
"""
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOW_TO = (ROOT / "docs" / "how_to.md").read_text(encoding="utf-8")


def blocks(language, page=README):
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```", page, flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(text) for found, text in fenced if found == language]


def test_the_python_blocks_run_one_after_the_other_and_those_of_the_next_page_after_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)  # so that its classes can be pickled
    for name, page in {"README.md": README, "how_to.md": HOW_TO}.items():
        found = blocks("python", page)
        assert len(found) >= 5
        for block in found:
            exec(compile(block, name, "exec"), vars(module))
    assert list((tmp_path / "runs" / "first").glob("events.out.tfevents.*"))
    for check, case in conformance(module.CASES):
        module.test_conformance(check, case)


def test_the_recipe_is_planned_and_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (recipe,) = blocks("yaml")
    Path("first.yaml").write_text(recipe, encoding="utf-8")
    Path("my_data.py").write_text(DATA, encoding="utf-8")
    (commands,) = [block for block in blocks("console") if block.startswith("weightsmith")]
    plan, train, report = [line.partition("#")[0].split()[1:] for line in commands.splitlines()]
    assert main(plan) == 0
    assert "limit: 3 at 0%, 2.75 at 25%" in capsys.readouterr().out
    assert main(train) == 0
    (first,) = Path("runs/first").iterdir()
    assert main(train) == 0
    (second,) = set(Path("runs/first").iterdir()) - {first}
    assert main(report) == 0
    assert (second / "report.html").is_file()
    assert not (first / "report.html").exists()
    sys.modules.pop("my_data")


def test_the_page_on_durability_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "durability.md").read_text(encoding="utf-8")
    module = ModuleType("durability")
    monkeypatch.setitem(sys.modules, "durability", module)
    saving, keeping = blocks("python", page)

    class Killed(BaseException):
        pass

    def die_at(trainer, update):
        def die():
            raise Killed

        trainer.add_event_handler(weightsmith.WeightEvents.UPDATE_COMPLETED(once=update), die)

    first, resuming, rest = saving.partition("trainer = make_trainer()  # in a new process")
    assert resuming
    module.die_at = die_at
    with pytest.raises(Killed):
        exec(compile(first.replace("trainer.run(", "die_at(trainer, 17)\ntrainer.run("), "page", "exec"), vars(module))
    assert module.trainer.state.updates == {"optimizer": 17}
    exec(compile(resuming + rest, "page", "exec"), vars(module))
    assert module.trainer.state.updates == {"optimizer": 30}
    exec(compile(keeping, "page", "exec"), vars(module))
    module.make_trainer().attach(module.LargestLoss())


def test_the_first_script_and_the_first_plugin_take_about_ten_lines():
    script, plugin = blocks("python")[:2]
    assert len([line for line in script.splitlines() if line]) <= 12
    assert len([line for line in plugin.partition("class")[2].partition("trainer.")[0].splitlines() if line]) <= 10


def test_the_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)`", HOW_TO) + re.findall(r"make (\w+)", "".join(blocks("console"))):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target} is no target"


def test_ci_runs_the_readmes_test_command():
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "exec make test"


def test_the_loop_names_the_events_in_the_order_of_the_loop():
    (drawing,) = [block for block in blocks("") if "INITIALIZING" in block]
    drawn = re.findall(r"WeightEvents\.(\w+)", drawing)
    assert [name for i, name in enumerate(drawn) if name not in drawn[:i] or name == "WEIGHTS_EDITED"] == [
        "INITIALIZING",
        "WEIGHTS_EDITED",
        "MICROBATCH_COMPLETED",
        "GRADIENTS_COMPUTED",
        "GRADIENTS_READY",
        "STEP_COMPLETED",
        "WEIGHTS_EDITED",
        "UPDATE_COMPLETED",
        "MEASURED",
        "PLUGIN_STARTED",
        "PLUGIN_COMPLETED",
    ]
    assert set(drawn) == set(weightsmith.WeightEvents.__members__)


def test_the_table_of_kinds_names_every_built_in_plugin():
    table = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    plugins = {name for name in weightsmith_plugins.__all__ if isinstance(getattr(weightsmith_plugins, name), type)}
    assert plugins <= set(re.findall(r"`(\w+)`", table))


def test_every_function_beside_the_plugins_is_named():
    functions = [n for n in weightsmith_plugins.__all__ if not isinstance(getattr(weightsmith_plugins, n), type)]
    assert functions
    assert [name for name in functions if name not in README + HOW_TO] == []


def test_pictures_and_files_exist():
    """And headings that are linked to."""
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", README) + re.findall(r"`((?:engine|plugins)/[\w/]+\.py)`", README):
        path, _, heading = link.partition("#")
        assert (ROOT / path).is_file(), path
        if heading:
            headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", found).lower().replace(" ", "-") for found in headings]
