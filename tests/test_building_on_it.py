"""A library that builds on this one needs anyio alone: its page, with nothing else to import."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "library.md"

# As if they were not installed. trio is the other loop, not a dependency.
HIDE = "import sys\nfor name in ('torch', 'transformers', 'tokenizers', 'numpy', 'trio'):\n"
HIDE += "    sys.modules[name] = None\n"


def test_a_library_of_your_own_needs_no_torch() -> None:
    [(code, output)] = re.findall(
        r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.M
    )
    program = [sys.executable, "-W", "error", "-c", HIDE + code]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", output)
