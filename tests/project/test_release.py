"""A release has one version in all files, and the changelog says what is in it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from .release import PLACES, ROOT, check, named_in, prepare

DATE = "2030-01-31"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The repository's own files that name the version, to be changed."""
    for name in (*PLACES, "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    # Right after a release it has no entries.
    edit(tmp_path / "CHANGELOG.md", "## Unreleased\n", "## Unreleased\n\n- A new entry.\n")
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize("version", ["9.8.7", "9.8.0rc1"])
def test_what_is_prepared_passes_the_check(checkout: Path, version: str) -> None:
    prepare(checkout, version, DATE)
    notes = check(checkout, f"v{version}")
    assert notes.startswith("- A new entry.")
    after = (checkout / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## Unreleased\n\n## {version} ({DATE})\n\n- A new entry." in after
    edit(checkout / "CHANGELOG.md", "## Unreleased\n", "## Unreleased\n\n- One more.\n")
    prepare(checkout, "9.9.0", DATE)
    assert check(checkout, "v9.9.0") == "- One more."


def test_the_files_agree_now() -> None:
    versions = {named_in(ROOT, name) for name in PLACES}
    (whole,) = {version for version in versions if version.count(".") > 1}
    assert versions == {whole, ".".join(whole.split(".")[:2])}


@pytest.mark.parametrize("name", PLACES)
def test_a_file_with_another_version_is_named(checkout: Path, name: str) -> None:
    prepare(checkout, "9.8.7", DATE)
    edit(checkout / name, "9.8", "9.7")
    with pytest.raises(SystemExit, match=rf"^{re.escape(name)} has the version 9\.7"):
        check(checkout, "v9.8.7")


@pytest.mark.parametrize("tag", ["9.8.7", "v9.8", "v9.8.7-1", "vx"])
def test_a_tag_of_another_form_is_refused(checkout: Path, tag: str) -> None:
    with pytest.raises(SystemExit, match="the tag must be like"):
        check(checkout, tag)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (f" ({DATE})", "", "needs the heading"),
        ("## Unreleased\n", "## Unreleased\n\n- Forgotten.\n", "which v9.8.7 would contain"),
        (f"({DATE})\n", f"({DATE})\n\n## 9.8.6 (2029-01-31)\n", "says nothing about 9.8.7"),
    ],
    ids=["no date", "unreleased entries", "no entries"],
)
def test_an_unfinished_changelog_is_refused(
    checkout: Path, old: str, new: str, message: str
) -> None:
    prepare(checkout, "9.8.7", DATE)
    edit(checkout / "CHANGELOG.md", old, new)
    with pytest.raises(SystemExit, match=message):
        check(checkout, "v9.8.7")


def test_a_version_is_prepared_once_and_never_empty(checkout: Path) -> None:
    prepare(checkout, "9.8.7", DATE)
    before = (checkout / "CHANGELOG.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match=r"section 9\.8\.7 already"):
        prepare(checkout, "9.8.7", DATE)
    with pytest.raises(SystemExit, match='nothing below "Unreleased"'):
        prepare(checkout, "9.8.8", DATE)
    with pytest.raises(SystemExit, match="must be like"):
        prepare(checkout, "v9.8.8", DATE)
    assert (checkout / "CHANGELOG.md").read_text(encoding="utf-8") == before
    assert named_in(checkout, "pyproject.toml") == "9.8.7"
