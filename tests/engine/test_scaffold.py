"""What is written for a new plugin works as it stands, and nothing is ever overwritten."""

import email
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import get_args

import pytest
import weightsmith
import yaml
from weightsmith import ConfigurationError
from weightsmith.scaffold import Kind, new_package, new_plugin
from weightsmith.scaffold.naming import Names
from weightsmith.testing import check_plugins

ROOT = Path(__file__).parents[2]
# Of different lengths, since the formatter looks at the length of lines.
NAMES = dict(
    zip(
        get_args(Kind),
        [
            "Start",
            "Charge",
            "TangentOnly",
            "AgreeingDecay",
            "unit-ball",
            "Bounded",
            "Fading",
            "share_that_matters",
            "Guard",
        ],
        strict=True,
    )
)


def run(*command, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flat")
    for kind, name in NAMES.items():
        new_plugin(name, kind=kind, folder=folder)
    return folder


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    for kind, name in NAMES.items():
        new_package(name, kind=kind, folder=folder)
    return sorted(folder.iterdir())


def test_every_kind_passes_its_tests_its_examples_and_the_whole_suite(flat):
    quiet = ["-q", "-p", "no:cacheprovider", "-W", "error", "-W", "ignore::DeprecationWarning"]
    told = run("pytest", "--doctest-modules", "--rootdir", ".", *quiet, ".", folder=flat)
    assert "failed" not in told
    assert int(re.search(r"(\d+) passed", told)[1]) >= 14 * len(NAMES)  # rows × checks, and two of its own


def test_every_kind_is_formatted_linted_and_typed(flat):
    run("ruff", "check", "--isolated", ".", folder=flat)
    run("ruff", "format", "--check", "--isolated", ".", folder=flat)
    run("mypy", "--strict", ".", folder=flat)


def test_every_kind_is_what_it_says(flat):
    kinds = {
        kind: getattr(weightsmith, "".join(word.capitalize() for word in kind.split("_"))) for kind in get_args(Kind)
    }
    for kind, name in NAMES.items():
        file = flat / f"{Names.of(name).module}.py"
        spec = importlib.util.spec_from_file_location(f"made_{kind}", file)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        cls = getattr(loaded, Names.of(name).class_name)
        assert cls.__mro__[1] is kinds[kind]
        field = next(name for name in cls.__annotations__ if name != "default_where")
        with pytest.raises(ConfigurationError, match=f"{field} must be"):
            cls(**{field: -1.0})


def test_packages_pass_their_tests_from_their_sources(packages, flat):
    for package in packages:
        assert {path.name for path in package.iterdir()} == {"README.md", "pyproject.toml", "src", "tests"}
        run("ruff", "check", ".", folder=package)
        run("ruff", "format", "--check", ".", folder=package)
    ball = next(package for package in packages if package.name == "unit-ball")
    told = run("pytest", "-q", "-p", "no:cacheprovider", folder=ball, PYTHONPATH="src")
    assert "16 passed" in told
    assert check_plugins(str(ball)).passed
    run("mypy", "--strict", "--cache-dir", str(flat / ".mypy_cache"), "src", "tests", folder=ball, MYPYPATH="src")


def test_a_package_that_forgets_a_plugin_fails(tmp_path):
    new_package("unit-ball", folder=tmp_path)
    ball = tmp_path / "unit-ball"
    second = "\n\nclass Second(UnitBall):\n    pass\n"
    plugin = ball / "src/unit_ball/unit_ball.py"
    plugin.write_text(plugin.read_text(encoding="utf-8") + second, encoding="utf-8")
    with pytest.raises(AssertionError, match=r"unit_ball\.unit_ball\.Second"):
        run("pytest", "-q", "-p", "no:cacheprovider", "-k", "forgotten", folder=ball, PYTHONPATH="src")


def test_a_packages_wheel_has_the_entry_point_and_its_readme_runs(packages, tmp_path):
    ball = next(package for package in packages if package.name == "unit-ball")
    run("pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), ".", folder=ball)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as built:
        metadata = "unit_ball-0.1.0.dist-info"
        assert built.read(f"{metadata}/entry_points.txt").decode().split() == [
            "[weightsmith.plugins]",
            "UnitBall",
            "=",
            "unit_ball:UnitBall",
        ]
        assert "unit_ball/py.typed" in built.namelist()
        assert email.message_from_bytes(built.read(f"{metadata}/METADATA"))["Requires-Dist"] == "weightsmith"
    scripts = ""
    for package in packages:
        readme = (package / "README.md").read_text(encoding="utf-8")
        (script,) = re.findall(r"^```python\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
        (recipe,) = re.findall(r"^```yaml\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
        ((name, settings),) = yaml.safe_load(recipe)["plugins"][0].items()
        ((field, value),) = settings.items()
        assert f"plugins = [{name}({field}={value})]" in script
        scripts += script
    (tmp_path / "readmes.py").write_text(scripts, encoding="utf-8")
    run("readmes", folder=tmp_path, PYTHONPATH=os.pathsep.join([".", *(str(p / "src") for p in packages)]))


def test_the_wheel_of_weightsmith_has_the_templates_and_the_entry_point(tmp_path):
    run("pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), ".", folder=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as built:
        templates = {Path(name).name for name in built.namelist() if name.endswith(".template")}
        (entry_points,) = [name for name in built.namelist() if name.endswith("entry_points.txt")]
        assert "weightsmith = pytest_weightsmith" in built.read(entry_points).decode()
        assert "pytest_weightsmith/__init__.py" in built.namelist()
    assert templates == {path.name for path in (ROOT / "engine/weightsmith/scaffold/templates").iterdir()}
    assert templates >= {f"{kind}{end}" for kind in get_args(Kind) for end in (".py.template", "_test.py.template")}


@pytest.mark.parametrize("name", ["UnitBall", "unit_ball", "unit-ball"])
def test_the_forms_of_a_name(tmp_path, name):
    assert new_plugin(name, folder=tmp_path) == [tmp_path / "unit_ball.py", tmp_path / "test_unit_ball.py"]
    assert "class UnitBall(Constraint)" in (tmp_path / "unit_ball.py").read_text(encoding="utf-8")
    written = new_package(name, folder=tmp_path)
    assert written[0] == tmp_path / "unit-ball" / "README.md"
    assert all(path.is_file() for path in written)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unit ball", "'unit ball' cannot be the name of a plugin: give a name such as UnitBall"),
        ("2ball", "cannot be the name of a plugin"),
        ("../ball", "cannot be the name of a plugin"),
        ("Größe", "of ASCII letters and digits"),
        ("", "cannot be the name of a plugin"),
        ("Lambda", "lambda is a word of Python"),
        ("none", "None is a word of Python"),
        ("TestBall", "pytest would take test_ball.py for tests"),
        ("max-norm", "weightsmith_plugins has a MaxNorm already"),
        ("Constraint", "weightsmith has a Constraint already"),
        ("Case", r"weightsmith\.testing has a Case already"),
        ("Tensor", "torch has a Tensor already"),
        ("Random", r"there is a module random already \(.*random\.py\)"),
        ("Sys", r"there is a module sys already \(part of Python\)"),
        ("Weightsmith", "there is a module weightsmith already"),
    ],
)
@pytest.mark.parametrize("new", [new_plugin, new_package])
def test_names_that_would_do_harm_are_refused(tmp_path, new, name, message):
    with pytest.raises(ConfigurationError, match=message):
        new(name, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_other_kind(tmp_path):
    with pytest.raises(ConfigurationError, match="'constrain' is no kind of plugin: did you mean 'constraint'"):
        new_plugin("UnitBall", kind="constrain", folder=tmp_path)
    with pytest.raises(ConfigurationError, match="there are initializer, penalty, gradient_editor"):
        new_package("UnitBall", kind="x", folder=tmp_path)


def test_nothing_is_overwritten_and_nothing_written_unless_all_can_be(tmp_path):
    (tmp_path / "test_unit_ball.py").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"test_unit_ball\.py would be overwritten, so nothing was written"):
        new_plugin("UnitBall", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["test_unit_ball.py"]
    assert (tmp_path / "test_unit_ball.py").read_text(encoding="utf-8") == "mine"
    new_package("UnitBall", folder=tmp_path)
    with pytest.raises(ConfigurationError, match=r"README\.md and .* would be overwritten"):
        new_package("UnitBall", folder=tmp_path)
    (tmp_path / "cubes" / "unit-cube").mkdir(parents=True)
    (tmp_path / "cubes" / "unit-cube" / "src").write_text("a file where a folder would be", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="cannot be written, so nothing was"):
        new_package("UnitCube", folder=tmp_path / "cubes")
    assert [path.name for path in (tmp_path / "cubes" / "unit-cube").iterdir()] == ["src"]


def test_a_plugin_becomes_a_package_in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m` has it
    new_plugin("UnitBall", folder=tmp_path)
    new_package("UnitBall", folder=tmp_path)
    with pytest.raises(ConfigurationError, match=r"there is a module unit_ball already"):
        new_plugin("UnitBall", folder=tmp_path / "elsewhere")
