"""Every example in the README and in docs/ runs on each loop and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio
import pytest

from anystreamer import sync

ROOT = Path(__file__).parent.parent
# A python block, and the text block right after it, which is its output.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
EXAMPLES = [
    pytest.param(*match.groups(), id=f"{path.relative_to(ROOT)}-{number}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    for number, match in enumerate(BLOCK.finditer(path.read_text(encoding="utf-8")), 1)
]


@pytest.mark.parametrize(("code", "output"), EXAMPLES)
def test_example(
    code: str,
    output: str | None,
    anyio_backend: tuple[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    sync._portal.get()  # its loop is not one of these, and stays
    run = anyio.run
    backend, options = anyio_backend
    monkeypatch.setattr(
        anyio,
        "run",
        lambda func, *args, **_: run(func, *args, backend=backend, backend_options=options),
    )
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})
    if output is not None:
        assert capsys.readouterr().out == output


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4
