"""What the documentation site promises its readers, as far as its sources show it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('TextStreamResponse(stream, format="sse")', {"TextStreamResponse", "format", "sse"}),
        ("load(name, device_map='auto')", {"device_map", "auto"}),
        ("`stream.finish_reason`", {"finish_reason"}),
        ("anystreamer[server]", {"server"}),
        ("transformers 5.18", {"5.18"}),
    ],
)
def test_search_finds_words_inside_code(code: str, words: set[str]) -> None:
    (quoted,) = re.findall(
        r"^      separator: '(.+)'$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE
    )
    separator = str(quoted).replace("''", "'")  # as YAML writes one
    assert words <= set(re.split(separator, code))


SEARCHED: dict[str, list[str]] = tomllib.loads((DOCS / "searched.toml").read_text("utf-8"))["words"]


@pytest.mark.parametrize("page", SEARCHED)
def test_a_page_has_the_words_that_it_is_searched_by_in_its_headings(page: str) -> None:
    """In its title, or in that of a section: the search shows these first."""
    text = re.sub(r"^```.*?^```", "", (DOCS / page).read_text("utf-8"), flags=re.S | re.M)
    headings = "\n".join(re.findall(r"^#+ .*", text, re.MULTILINE)).lower()
    assert headings.startswith("# ")
    # The search finds "stream" for "streaming", too.
    words = [word.lower().replace("streaming", "stream") for word in SEARCHED[page]]
    assert [each for each in words if each not in headings] == []


def test_each_option_that_the_pages_name_for_the_server_exists() -> None:
    source = (ROOT / "src/anystreamer/cli/commands.py").read_text("utf-8")
    page = (DOCS / "how-to/openai-server.md").read_text("utf-8")
    _, _, table = page.partition("| Ollama | vLLM | `anystreamer serve` |\n")
    ours = [row.split("|")[3] for row in table.partition("\n\n")[0].splitlines()[1:]]
    options = re.findall(r"--([a-z-]+)", "".join(ours))
    assert len(options) > 5
    names = [name.replace("-", "_") for name in options]
    assert [each for each in names if f"\n    {each}: " not in source] == []


def test_the_first_page_has_a_table_that_the_readme_has() -> None:
    first = (DOCS / "index.md").read_text("utf-8")
    (section,) = re.findall(r"^<!-- table of README.md: (.+) -->$", first, re.MULTILINE)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"\n## {section}\n\n| " in readme


@pytest.mark.parametrize("path", sorted(DOCS.glob("images/*.svg")), ids=lambda path: path.name)
def test_a_diagram_can_be_read_on_a_phone(path: Path) -> None:
    """It is not made smaller on a screen that is 390 pixels wide, and its letters are large."""
    svg = ElementTree.parse(path).getroot()
    width = float(svg.get("viewBox", "").split()[2])
    assert width <= 380
    sizes = [
        float(size) for size in re.findall(r"font(?:-size)?: (\d+)px", path.read_text("utf-8"))
    ]
    assert all(size >= 13 for size in sizes)
    assert sizes or path.name == "mark.svg"
