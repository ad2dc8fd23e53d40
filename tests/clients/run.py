"""Makes each client's environment, and runs its program against a server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .model import save_model
from .table import CLIENTS, WAYS, WRONG, Client

__all__ = ["record"]

_PROGRAMS = Path(__file__).parent / "programs"
_PATIENCE = 600.0  # seconds for a client's program, on a busy machine

# What clients would send to their makers, or fetch from them.
_QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
}


def record(environments: Path, names: Iterable[str]) -> dict[str, Any]:
    """For each client its version, and what came of each way.

    Args:
        environments: a folder to install the clients into. Those that are there are updated.
        names: of the clients; none are all.
    """
    wanted = set(names) or {each.name for each in CLIENTS}
    recorded = {}
    with tempfile.TemporaryDirectory() as temporary, _served(Path(temporary)) as server:
        for client in CLIENTS:
            if client.name in wanted:
                print(f"{client.name} ...", flush=True)
                recorded[client.name] = _record_one(client, environments, server)
    return recorded


def _record_one(client: Client, environments: Path, server: dict[str, str]) -> dict[str, Any]:
    folder = environments / Path(client.program).stem
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    env = {**os.environ, **_QUIET, **server, "PYTHONPATH": ""}
    env.pop("HF_HUB_OFFLINE", None)  # it would refuse any server
    try:
        command = _install(client, folder)
        subprocess.run([*command, str(result)], env=env, check=True, timeout=_PATIENCE, cwd=folder)
        recorded: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    except (subprocess.SubprocessError, OSError) as exc:
        outcome = {"uses": "", "outcome": f"{WRONG}{type(exc).__name__}"}
        return {"version": "", "ways": dict.fromkeys(WAYS, outcome)}
    return recorded


def _install(client: Client, folder: Path) -> list[str]:
    """Install a client. Returns the command that runs its program."""
    source = _PROGRAMS / client.program
    if source.suffix == ".mjs":
        # node looks for packages beside the program.
        for each in (source, _PROGRAMS / "checks.mjs"):
            (folder / each.name).write_bytes(each.read_bytes())
        (folder / "package.json").write_text("{}")
        quiet = ("--no-audit", "--no-fund", "--silent")
        subprocess.run(["npm", "install", *quiet, *client.requirements], cwd=folder, check=True)
        return ["node", str(folder / client.program)]
    uv = (sys.executable, "-m", "uv", "--quiet")
    if not (folder / "pyvenv.cfg").exists():
        make = (*uv, "venv", "--allow-existing", "--python", sys.executable, str(folder))
        subprocess.run(make, check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = (*uv, "pip", "install", "--upgrade", "--python", str(python))
    subprocess.run([*install, *client.requirements], check=True)
    return [str(python), str(source)]


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[dict[str, str]]:
    """`anystreamer serve` with the model of the clients. Yields what its clients need to know."""
    save_model(folder)
    command = [sys.executable, "-m", "anystreamer", "serve", str(folder), "--port", "0"]
    # Not every client can be told a limit, and an answer that goes on for ever is not to end before
    # the client leaves: it is that of programs/checks.py.
    limit = ("--default-max-tokens", "20000")
    options = ("--served-model-name", "counter", "--backend", "asyncio", *limit)
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            found = next(filter(None, (re.search(r"http://[\d.]+:\d+", line) for line in lines)))
            yield {
                "SERVER_URL": found[0],
                "SERVER_MODEL": "counter",
                "MODEL_FOLDER": str(folder),
                "OPENAI_BASE_URL": f"{found[0]}/v1",
                "OPENAI_API_KEY": "key",
            }
        finally:
            process.kill()
