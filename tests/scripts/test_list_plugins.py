"""The page of plugins is what its script makes of the docstrings."""

import runpy
from pathlib import Path

import weightsmith_plugins

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date_and_names_every_plugin():
    made = runpy.run_path(str(ROOT / "scripts" / "list_plugins.py"))["page"]()
    written = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    assert written == made, "run scripts/list_plugins.py"
    assert all(f"`{name}(" in written for name in weightsmith_plugins.__all__)
