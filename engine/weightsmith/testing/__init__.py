"""One suite that every plugin must pass: a table row a plugin, what is special said in the row.

In a test file of your own::

    import pytest
    from weightsmith.testing import Case, conformance, missing

    CASES = [Case(MaxNorm(0.5), holds=lambda w: w.flatten(1).norm(dim=1) <= 0.5 + 1e-6)]

    @pytest.mark.parametrize(("check", "case"), conformance(CASES), ids=str)
    def test_conformance(check, case):
        check(case)

    def test_no_plugin_is_forgotten():
        assert missing(CASES, "my_package") == []

The checks use real trainers and real tensors; each raises ``AssertionError`` with what was found.
"""

from weightsmith.testing import checks as _checks  # importing them is what lists them
from weightsmith.testing.cases import Case, Check, conformance, missing

__all__ = ["Case", "Check", "conformance", "missing"]

del _checks
