"""Writes each program of the README and of the pages into a folder, for type checkers.

python -m tests.project.write_examples FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from .test_docs import BLOCK, PAGES, ROOT, missing_libraries

__all__ = ["write_examples"]

# transformers declares the `self` of generate() as a type that its own models do not match.
# Programs that call it themselves, as those to migrate from, pass no checker for that reason.
UNTYPED = "model.generate"


def write_examples(folder: Path) -> None:
    for path in PAGES:
        page = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "_").replace("-", "_")
        for number, match in enumerate(BLOCK.finditer(path.read_text(encoding="utf-8")), 1):
            # `nox -s night_with_frameworks` checks what is missing elsewhere.
            if UNTYPED not in match[2] and not missing_libraries(match[2]):
                (folder / f"{page}_{number}.py").write_text(match[2], encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_examples(target)
