"""What an author is told of a plugin that is wrong: what is demanded, what was found, and where."""

import sys
import textwrap

import pytest
from weightsmith import ConfigurationError, Plugin
from weightsmith.testing import check_plugins

HEAD = "import torch\nfrom weightsmith import Constraint, Plugin\n"
ROW = "\nfrom weightsmith.testing import Case\nCASES = [Case({}(), holds=lambda weight: weight.abs() <= 0.5)]\n"


def constraint(name, *lines):
    body = textwrap.indent("\n".join(lines), " " * 8)
    return f"class {name}(Constraint):\n    def project(self, weight, site):\n{body}\n"


SOUND = HEAD + constraint("Sound", "return weight.clamp(-0.5, 0.5)")


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """The report on files of these texts, as seen from their folder."""
    monkeypatch.chdir(tmp_path)

    def check(path="mine.py", files=(), **modules):
        for name, text in {**{f"{name}.py": text for name, text in modules.items()}, **dict(files)}.items():
            place = tmp_path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        return check_plugins(path)

    return check


def test_a_sound_plugin_passes(checked):
    report = checked(mine=SOUND + ROW.format("Sound"))
    assert report.passed
    assert str(report) == "Sound(): 13 of 13 checks passed"


FAULTS = {
    "not idempotent": (
        ["return torch.where(weight.abs() > 0.5, weight * 0.9, weight)"],
        "projection_is_stable",
        "mine.py:4",
        "project(project(w)) is off project(w) by 2 in torch.float32",
    ),
    "writes its input": (
        ["return weight.clamp_(-0.5, 0.5)"],
        "leaves_its_input_untouched",
        "mine.py:4",
        "it wrote to its input of (6, 5)",
    ),
    "wrong shape": (
        ["return weight.clamp(-0.5, 0.5).flatten()"],
        "runs_attaches_and_detaches",
        "mine.py:4",
        "Broken.project returned shape (24,) for a tensor of shape (6, 4): return a tensor of the same shape",
    ),
    "a crash": (
        ["limit = self.limits_", "return weight.clamp(-limit, limit)"],
        "is_finite_on_zeros",
        "mine.py:5",
        "AttributeError: 'Broken' object has no attribute 'limits_'",
    ),
}


@pytest.mark.parametrize(("body", "check", "place", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_with_its_place(checked, body, check, place, message):
    report = checked(mine=HEAD + constraint("Broken", *body) + ROW.format("Broken"))
    (finding,) = [finding for finding in report.findings if finding.check == check]
    assert finding.place == place
    assert finding.message.startswith(message)
    assert finding.demand.endswith(".")
    assert f"{place}: " in str(report)
    assert message in str(report)
    assert "Traceback" not in str(report)


def test_one_crash_is_told_once_with_all_that_fails_by_it(checked):
    report = checked(mine=HEAD + constraint("Broken", "return 1 / 0") + ROW.format("Broken"))
    assert len(report.findings) == 11
    assert str(report).count("ZeroDivisionError: division by zero") == 1
    assert "and so fail: goes_on_from_a_checkpoint, " in str(report)
    assert str(report).startswith("Broken(): 2 of 13 checks passed")


def test_other_plugins_are_checked_beside_a_broken_one(checked):
    rows = "CASES = [Case(Broken(), holds=torch.isfinite), Case(Sound(), holds=lambda weight: weight.abs() <= 0.5)]"
    both = SOUND + constraint("Broken", "return 1 / 0") + "\nfrom weightsmith.testing import Case\n" + rows
    assert "Sound(): 13 of 13 checks passed" in str(checked(mine=both))


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (HEAD + "class Half(Constraint:\n    pass\n", 3, "SyntaxError: invalid syntax"),
        (
            HEAD + "\nclass Misspelt(Constraint):\n    def projct(self, weight, site):\n        return weight\n",
            4,
            "Misspelt.projct is never called: did you mean `project`?",
        ),
        (HEAD + "\n\nimport no_such_module\n", 5, "ModuleNotFoundError: No module named 'no_such_module'"),
        (HEAD + "raise SystemExit('stop')", 3, "SystemExit: stop"),
    ],
)
def test_a_file_that_cannot_be_imported(checked, text, line, message):
    report = checked(mine=text, test_mine="from mine import Anything\n")
    (finding,) = report.findings
    assert (finding.check, finding.place) == ("import", f"mine.py:{line}")
    assert finding.message.startswith(message)
    assert str(report).startswith(f"mine.py:{line}: import\n  demanded: The file can be imported.\n  found: {message}")


def test_a_class_that_needs_values_is_told_what_row_to_write(checked):
    text = (
        HEAD
        + "class Ball(Constraint):\n    radius: float\n    def project(self, weight, site):\n        return weight\n"
    )
    (finding,) = checked(mine=text).findings
    assert finding.place == "mine.py:3"
    assert "write a row: CASES = [Case(Ball(radius=…), holds=lambda weight: …)]" in finding.message


def test_a_constraint_without_holds_is_told_what_to_write(checked):
    (finding,) = checked(mine=SOUND).findings
    assert finding.check == "projection_lands_in_the_set"
    assert "such as Case(Sound(), holds=lambda weight: weight.abs() <= 1 + 1e-6)" in finding.message
    assert finding.place == "mine.py:4"


def test_a_crash_in_holds_is_placed_in_the_tests(checked):
    table = "from mine import Sound\nfrom weightsmith.testing import Case\n\nCASES = [Case(Sound(), holds=len)]\n"
    crash = table.replace("holds=len", "holds=lambda weight: weight.nothing")
    report = checked(mine=SOUND, test_mine=crash)
    assert {finding.place for finding in report.findings} == {"test_mine.py:4"}


def test_a_row_that_is_no_case(checked):
    table = "from mine import Sound\n\nCASES = [Sound()]\n"
    (finding,) = checked(mine=SOUND, test_mine=table).findings
    assert finding.message.startswith("in CASES stands Sound(): write a list of rows")


TABLE = "from {} import Sound\nfrom weightsmith.testing import Case\nCASES = [Case(Sound(), holds=torch.isfinite)]\n"


@pytest.mark.parametrize(
    "path", ["shop/src/shop/good.py", "shop/src/shop", "shop", "shop/tests/test_good.py", "shop/tests"]
)
def test_files_packages_and_projects_find_their_tables(checked, path):
    files = {
        "shop/src/shop/__init__.py": "from shop.good import Sound",
        "shop/src/shop/good.py": SOUND,
        "shop/tests/test_good.py": "import torch\n" + TABLE.format("shop"),
    }
    report = checked(path, files)
    assert [str(result) for result in report.results] == ["Sound(): 13 of 13 checks passed"]


def test_a_dotted_name(checked, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    assert not checked("nothing_but_this", nothing_but_this=SOUND + ROW.format("Sound")).findings
    report = check_plugins("weightsmith_plugins.averaging")
    assert [result.plugin for result in report.results] == ["EMA()", "SWA()"]
    assert report.passed


def test_nothing_remains_of_the_authors_files(checked, tmp_path):
    path, modules = list(sys.path), set(sys.modules)
    helped = SOUND.replace("import torch\n", "import torch\nimport helper_of_mine\n")
    assert checked(mine=helped + ROW.format("Sound"), helper_of_mine="").passed
    assert sys.path == path
    assert not {"mine", "helper_of_mine", "test_mine"} & (set(sys.modules) - modules)
    assert not [cls for cls in Plugin.__subclasses__() if cls.__module__ == "mine"]
    assert not list(tmp_path.rglob("*.pyc"))
    changed = SOUND.replace("0.5, 0.5", "0.7, 0.7")  # of one length, and within a second
    assert not checked(mine=changed + ROW.format("Sound"), helper_of_mine="").passed


def test_what_cannot_be_looked_at_is_refused(checked, tmp_path):
    with pytest.raises(ConfigurationError, match=r"no plugin in mine\.py: looked in mine\.py for classes that derive"):
        checked(mine="import torch\n")
    with pytest.raises(ConfigurationError, match=r"there is no absent\.py: give a Python file, a folder"):
        check_plugins("absent.py")
    with pytest.raises(ConfigurationError, match="the name of Python's own module random: rename it"):
        checked("random.py", random=SOUND)
    with pytest.raises(ConfigurationError, match="another module of that name is there already"):
        checked("torch.py", torch=SOUND)
    (tmp_path / "notes.txt").write_text("no code", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="is no Python file"):
        check_plugins("notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no plugin in empty: looked in no Python file"):
        check_plugins("empty")
