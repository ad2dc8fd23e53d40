"""A hook of mkdocs: pages of the site that are made from files at the top of the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
# Where a page wants the table of the section of the README that has this name.
MARK = re.compile(r"^<!-- table of README.md: (.+) -->$", re.MULTILINE)


def on_files(files: Any, config: Any) -> None:
    """Add the changelog as a page."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changelog.md", content=text))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the README's tables into the page."""
    return MARK.sub(lambda mark: table_of_readme(mark[1]), markdown)


def table_of_readme(section: str) -> str:
    """The table of a section, with links as the site has them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(section)}\n\n((?:\|.*\n)+)", readme, re.MULTILINE)
    if found is None:
        raise PluginError(f"README.md has no table below the heading {section!r}")
    return found[1].replace("](docs/", "](")
