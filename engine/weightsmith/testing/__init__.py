"""One suite that every plugin must pass: a table row a plugin, what is special said in the row.

In a test file of your own, with the plugin of pytest that comes with weightsmith::

    from weightsmith.testing import Case, missing

    CASES = [Case(MaxNorm(0.5), holds=lambda w: w.flatten(1).norm(dim=1) <= 0.5 + 1e-6)]

    def test_conformance(check, case):
        check(case)

    def test_no_plugin_is_forgotten():
        assert missing(CASES, "my_package") == []

``@pytest.mark.parametrize(("check", "case"), conformance(CASES), ids=str)`` says the same in full. Without a test file,
``print(check_plugins("my_plugin.py"))``.

The checks use real trainers and real tensors; each raises ``AssertionError`` with what was found.
"""

from weightsmith.testing import checks as _checks  # importing them is what lists them
from weightsmith.testing.cases import Case, Check, conformance, missing
from weightsmith.testing.checking import check_plugins
from weightsmith.testing.findings import Finding, Report, Result

__all__ = ["Case", "Check", "Finding", "Report", "Result", "check_plugins", "conformance", "missing"]

del _checks
