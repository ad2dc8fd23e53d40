"""Sets the version of a release in all files that name it, and checks them against the tag.

``prepare 0.2.0`` writes the version, and closes the changelog's "Unreleased". ``check v0.2.0``
fails if a file has another version, and prints what the changelog says about this one. The workflow
of a release runs it before anything is built. It needs Python only.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")
# Each file that names the version, and where: one group before the version, and the version.
PLACES = {
    "pyproject.toml": r'(^version = ")([^"]+)',
    "CITATION.cff": r"(^version: )(\S+)",
    # Without the last number: the reference is the same for all patches.
    "docs/reference/index.md": r"(from the docstrings of version )(\d+\.\d+)",
}
UNRELEASED = "## Unreleased\n"


def text_of(root: Path, name: str) -> str:
    return (root / name).read_text(encoding="utf-8")


def named_in(root: Path, name: str) -> str:
    """The version that a file names, once."""
    (found,) = re.findall(PLACES[name], text_of(root, name), re.MULTILINE)
    return str(found[1])


def expected_in(name: str, version: str) -> str:
    """How a file names this version."""
    return ".".join(version.split(".")[:2]) if name.endswith(".md") else version


def sections(changelog: str) -> dict[str, str]:
    """What the changelog says about each version, by its heading without the date."""
    _, *found = re.split(r"^## ", changelog, flags=re.MULTILINE)
    heads_and_bodies = (section.partition("\n") for section in found)
    return {head.split(" ")[0]: body.strip() for head, _, body in heads_and_bodies}


def prepare(root: Path, version: str, date: str) -> None:
    """Write the version into each file. The changelog's "Unreleased" becomes its section."""
    if VERSION.fullmatch(version) is None:
        raise SystemExit(f"the version must be like 1.2.3 or 1.2.3rc1, got {version!r}")
    known = sections(text_of(root, "CHANGELOG.md"))
    if version in known:
        raise SystemExit(f"CHANGELOG.md has a section {version} already")
    if not known.get("Unreleased"):
        raise SystemExit('CHANGELOG.md has nothing below "Unreleased"')
    for name, place in PLACES.items():
        new = rf"\g<1>{expected_in(name, version)}"
        text = re.sub(place, new, text_of(root, name), count=1, flags=re.MULTILINE)
        (root / name).write_text(text, encoding="utf-8")
    closed = f"{UNRELEASED}\n## {version} ({date})\n"
    changelog = text_of(root, "CHANGELOG.md").replace(UNRELEASED, closed, 1)
    (root / "CHANGELOG.md").write_text(changelog, encoding="utf-8")


def check(root: Path, tag: str) -> str:
    """What the changelog says about the version of this tag. Each file must name that version."""
    version = tag.removeprefix("v")
    if tag == version or VERSION.fullmatch(version) is None:
        raise SystemExit(f"the tag must be like v1.2.3, got {tag!r}")
    for name in PLACES:
        if (found := named_in(root, name)) != expected_in(name, version):
            raise SystemExit(f"{name} has the version {found}, but the tag is {tag}")
    changelog = text_of(root, "CHANGELOG.md")
    dated = rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$"
    if re.search(dated, changelog, re.MULTILINE) is None:
        raise SystemExit(f'CHANGELOG.md needs the heading "## {version} (YYYY-MM-DD)"')
    known = sections(changelog)
    if known.get("Unreleased"):
        raise SystemExit(f'CHANGELOG.md has entries below "Unreleased", which {tag} would contain')
    if not known[version]:
        raise SystemExit(f"CHANGELOG.md says nothing about {version}")
    return known[version]


def main(command: str, argument: str) -> None:
    if command == "prepare":
        prepare(ROOT, argument, datetime.now(UTC).date().isoformat())
    elif command == "check":
        print(check(ROOT, argument))
    else:
        raise SystemExit(f"the command must be prepare or check, got {command!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
