"""The plugin of pytest: a table and a test that takes ``check`` and ``case`` are all that an author writes."""

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

PLUGIN = """
from weightsmith import Constraint
from weightsmith.testing import Case, conformance

class Inside(Constraint):
    limit: float = 0.5

    def project(self, weight, site):
        return weight.clamp(-self.limit, self.limit)

def inside(weight):
    return weight.abs() <= 0.5
"""

TEST = """
def test_conformance(check, case):
    check(case)
"""


GOOD = "CASES = [Case(Inside(), holds=inside)]"


def run(pytester, *options, **modules):
    paths = [str(pytester.makepyfile(**{name: PLUGIN + text})) for name, text in modules.items()]
    return pytester.runpytest_subprocess(*options, "-W", "ignore::DeprecationWarning", *paths)


def collected(result):
    return [line.partition("::")[2] for line in result.outlines if "::" in line]


def test_a_table_and_a_test_are_enough_and_a_broken_plugin_fails(pytester):
    smaller = "CASES = [Case(Inside(), holds=lambda weight: weight.abs() <= 0.25)]"
    result = run(pytester, "-v", test_good=GOOD + TEST, test_broken=smaller + TEST)
    result.assert_outcomes(passed=24, failed=2)
    result.stdout.fnmatch_lines(
        [
            "test_good.py::test_conformance[[]projection_is_stable-Inside()[]] PASSED*",
            "FAILED test_broken.py::test_conformance[[]projection_lands_in_the_set-Inside()[]]*",
        ]
    )


def test_what_torch_says_of_itself_when_ignite_is_imported_is_no_warning_of_the_authors(pytester):
    warns = 'import warnings\nwarnings.warn("`torch.jit.mine` is deprecated", DeprecationWarning)\n'
    own = "warnings.warn('mine', DeprecationWarning)\n"
    path = pytester.makepyfile(test_good=warns + own + PLUGIN + GOOD + TEST)
    result = pytester.runpytest_subprocess(path)
    result.assert_outcomes(passed=13, warnings=1)
    result.stdout.fnmatch_lines(["*DeprecationWarning: mine"])


def test_a_module_that_does_not_name_it_keeps_its_warnings(pytester):
    path = pytester.makepyfile(
        """
        import warnings

        warnings.warn("`torch.jit.mine` is deprecated", DeprecationWarning)

        def test_own():
            pass
        """
    )
    pytester.runpytest_subprocess(path).assert_outcomes(passed=1, warnings=1)


def test_equal_rows_have_ids_of_their_own_and_the_same_in_every_process(pytester, monkeypatch):
    found = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        twice = "CASES = [Case(Inside(), holds=inside), Case(Inside(), holds=inside)]"
        found.append(collected(run(pytester, "--collect-only", "-q", test_twice=twice + TEST)))
    assert found[0] == found[1]
    assert len(set(found[0])) == len(found[0]) == 26


def test_parameters_and_fixtures_of_the_authors_own_stand(pytester):
    marked = """
import pytest

@pytest.mark.parametrize({names}, conformance(CASES)[:2])
def test_marked(check, case):
    check(case)
"""
    taken = """
import pytest

@pytest.fixture
def check():  # as another plugin of pytest has one
    return print

class TestInside:
    def test_method(self, check, case, tmp_path):
        check(case)
"""
    fixture = """
@pytest.fixture
def case():
    return 3
"""
    modules = {
        "test_text": GOOD + marked.format(names='"check, case"'),
        "test_tuple": GOOD + marked.format(names='("check", "case")'),
        "test_method": GOOD + taken,
        "test_fixture": GOOD + taken + fixture,
    }
    found = collected(run(pytester, "--collect-only", "-q", **modules))
    assert len([name for name in found if name.startswith("test_marked[")]) == 4
    assert len([name for name in found if name.startswith("TestInside::test_method[")]) == 13
    assert found.count("TestInside::test_method") == 1


def test_a_module_without_a_table_is_told_what_to_write(pytester):
    modules = {"test_none": TEST, "test_empty": "CASES = []" + TEST, "test_bare": "CASES = [Inside()]" + TEST}
    result = run(pytester, "--collect-only", **modules)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    for message in (
        "test_none.test_conformance takes check and case, and its module has no table of plugins: write CASES = *",
        "test_empty.test_conformance: CASES is [[][]]: write a list of at least one Case(…)",
        "test_bare.test_conformance: CASES[[]0] is Inside(): write Case(Inside())",
        "*3 errors*",
    ):
        result.stdout.fnmatch_lines([message])


def test_a_project_without_weightsmith_notices_nothing(pytester):
    path = pytester.makepyfile(
        """
        import sys

        import pytest

        CASES = [1, 2]

        @pytest.mark.parametrize("case", CASES)
        @pytest.mark.parametrize("check", [bool])
        def test_own(check, case):
            assert check(case)

        def test_nothing_heavy_was_loaded():
            assert not {"torch", "ignite", "weightsmith"} & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess(path).assert_outcomes(passed=3)
    path = pytester.makepyfile(TEST)
    pytester.runpytest_subprocess(path).stdout.fnmatch_lines(["*fixture 'check' not found*"])


def test_pytest_is_needed_by_nobody_else():
    blocked = "import sys; sys.modules['pytest'] = None; import weightsmith.testing, weightsmith.scaffold"
    subprocess.run([sys.executable, "-c", blocked], check=True)
