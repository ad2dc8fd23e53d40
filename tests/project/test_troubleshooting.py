"""The page on error messages quotes messages that the package has, in its own words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import anystreamer

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
PACKAGE = Path(anystreamer.__file__).parent


def strings() -> str:
    """All strings of the package. What a message fills in is not among them."""
    return "\n".join(
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_each_message_of_the_page_is_one_of_the_package() -> None:
    rows = re.findall(r"^\| (`.*?) \| ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    quoted = [part for row in rows for part in re.findall(r"`(.*?)`", row)]
    assert len(quoted) > 25
    found = strings()
    assert [part for part in quoted if part not in found] == []
