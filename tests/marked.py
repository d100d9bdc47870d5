"""Pages of which commands write a part, between two marks."""

from pathlib import Path

__all__ = ["put"]


def put(page: Path, name: str, text: str) -> None:
    """Put a text in its place on a page, between ``<!-- name -->`` and ``<!-- /name -->``."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    end = f"<!-- /{name} -->"
    page.write_text(before + begin + text.rstrip("\n") + "\n" + rest[rest.index(end) :], encoding="utf-8")
