"""The page of the documentation about clients: made from what was recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .table import WAYS

__all__ = ["PAGE", "RECORDED", "page_of", "read_recorded"]

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "clients.md"
RECORDED = Path(__file__).parent / "recorded.json"

_TEXT = """# Clients

`nox -s tests_clients -- --write` writes this page, in a clone of the repository. It installs each
client in an environment of its own, starts `anystreamer serve` with a model that counts and calls a
tool, and tries what the client does by default:

- **whole**, **stream**: an answer at once, and as it is made.
- **tools**: the model calls a tool, and its result is sent back.
- **forced tool**: the request says that the model calls one, or which one.
- **structured output**: the answer matches a schema.
- **cancel**: the client leaves in the middle of a long answer. The server's metrics then show that
  the model has stopped, long before the end of the answer.

The same runs every night, with the newest version of each client, and for each change of the
server.

"""


def read_recorded() -> dict[str, Any]:
    """What was recorded last."""
    recorded: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return recorded


def page_of(recorded: Mapping[str, Any]) -> str:
    """The text of the page."""
    lines = [
        f"| client | version | {' | '.join(WAYS.values())} |",
        f"|---|---|{'---|' * len(WAYS)}",
    ]
    for name, client in recorded.items():
        cells = [client["ways"][way]["outcome"] for way in WAYS]
        lines.append(f"| {name} | {client['version']} | {' | '.join(cells)} |")
    lines += ["", "## What each of them uses", ""]
    for name, client in recorded.items():
        uses = [(title, client["ways"][way]["uses"]) for way, title in WAYS.items()]
        lines += [f"**{name}**", ""]
        lines += [f"- {title}: {text}" for title, text in uses if text]
        lines.append("")
    return _TEXT + "\n".join(lines)
