"""What is in the built sdist and wheel: `nox -s dist` runs this with the folder that they are in.

The wheel has the files of the package as the checkout has them, no more and no less. So what the
build leaves out, and what lies about in the checkout and gets in, is found in the same way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path
from tempfile import TemporaryDirectory

# Bytes; twice of what they were in version 0.1, most of it the embedded model.
LARGEST = {".whl": 2_200_000, ".gz": 2_900_000}
# What somebody needs who builds, tests and documents from the sdist alone.
IN_THE_SDIST = (
    *("src/", "tests/", "docs/", "benchmarks/"),
    *("pyproject.toml", "noxfile.py", "constraints.txt", "mkdocs.yml", ".github/workflows/"),
    *("LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff"),
)
# What made the embedded model: for the repository alone.
NOT_IN_THE_WHEEL = {"anystreamer/demo/sequences.py", "anystreamer/demo/train.py"}
# Without these the package is there and does not work, or is not typed.
IN_THE_WHEEL = (
    "py.typed",
    "demo/model/model.safetensors",
    "demo/model/tokenizer.json",
    "demo/model/chat_template.jinja",
    "server/page/chat.html",
    "server/page/chat.js",
    "server/page/chat.css",
)


def files_of_the_checkout(*folders: str) -> set[str]:
    """Those that git knows or would add: in an unpacked sdist all that .gitignore does not name."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders]
    with TemporaryDirectory() as empty:
        if Path(".git").exists():
            env = None
        else:
            # Another repository can be around this folder, and ignore it.
            subprocess.run(["git", "init", "-q", "--bare", empty], check=True)
            env = os.environ | {"GIT_DIR": empty, "GIT_WORK_TREE": "."}
        listed = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    return {name for name in listed.split("\0") if name and Path(name).exists()}


def check_wheel(path: Path, version: str) -> None:
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        metadata = message_from_bytes(wheel.read(f"anystreamer-{version}.dist-info/METADATA"))
    described = {name for name in names if name.startswith(f"anystreamer-{version}.dist-info/")}
    expected = {name.removeprefix("src/") for name in files_of_the_checkout("src/anystreamer")}
    assert expected > NOT_IN_THE_WHEEL
    expected -= NOT_IN_THE_WHEEL
    assert names - described == expected, sorted((names - described) ^ expected)
    assert {f"anystreamer/{name}" for name in IN_THE_WHEEL} <= names
    assert metadata["Version"] == version
    needs = metadata.get_all("Requires-Dist", [])
    assert [need for need in needs if "extra ==" not in need] == ["anyio>=4.11"]


def check_sdist(path: Path, version: str) -> None:
    with tarfile.open(path) as sdist:
        members = [member for member in sdist if not member.isdir()]
    assert all(member.isfile() for member in members), "no links"
    names = {member.name.removeprefix(f"anystreamer-{version}/") for member in members}
    assert "PKG-INFO" in names
    added = names - files_of_the_checkout() - {"PKG-INFO"}
    assert not added, sorted(added)
    for needed in IN_THE_SDIST:
        assert any(name.startswith(needed) for name in names), f"the sdist lacks {needed}"
    missing = files_of_the_checkout("src", "tests", "docs", "benchmarks") - names
    assert not missing, sorted(missing)


def main(folder: Path) -> None:
    """Check all that is in a folder: one sdist and one wheel."""
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    assert sorted(folder.iterdir()) == sorted([sdist, wheel])
    for path in (sdist, wheel):
        assert path.stat().st_size < LARGEST[path.suffix], f"{path.name} has grown"
    version = sdist.name.removeprefix("anystreamer-").removesuffix(".tar.gz")
    assert wheel.name == f"anystreamer-{version}-py3-none-any.whl"
    citation = Path("CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in citation, "CITATION.cff has another version"
    check_wheel(wheel, version)
    check_sdist(sdist, version)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
