"""Try the clients: `python -m tests.clients [--write] [names]`. `nox -s tests_clients` calls it.

It fails where something does not work. With `--write` it writes docs/reference/clients.md as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .page import PAGE, RECORDED, page_of, read_recorded
from .run import record
from .table import CLIENTS, WAYS, is_wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="the clients to try; by default all")
    parser.add_argument("--write", action="store_true", help="write the page of the documentation")
    parser.add_argument("--environments", type=Path, required=True, help="where to install them")
    arguments = parser.parse_args()
    names = [each.name for each in CLIENTS]
    if unknown := sorted(set(arguments.names) - set(names)):
        parser.error(f"no such client: {', '.join(unknown)}; there are: {', '.join(names)}")
    recorded = record(arguments.environments.resolve(), arguments.names)
    fails = False
    for name, client in recorded.items():
        for way in WAYS:
            outcome = client["ways"][way]["outcome"]
            fails = fails or is_wrong(outcome)
            print(f"{name} {client['version']}, {way}: {outcome}")
    if arguments.write:
        known = (read_recorded() if RECORDED.exists() else {}) | recorded
        ordered = {name: known[name] for name in names if name in known}
        RECORDED.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page_of(ordered), encoding="utf-8")
    sys.exit(fails)


if __name__ == "__main__":
    main()
