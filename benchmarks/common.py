"""What the programs share: their options, the loops, figures, the environment. No torch."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from argparse import ArgumentParser, Namespace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("HF_HUB_OFFLINE", "1")

Table: TypeAlias = dict[str, Any]  # as JSON has it

LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
PACKAGES = (
    *("anystreamer", "anyio", "trio", "uvloop", "torch", "transformers", "tokenizers"),
    *("starlette", "uvicorn", "fastapi", "pydantic", "openai", "ray"),
)


def options_of(doc: str | None) -> ArgumentParser:
    """The options that each program has."""
    parser = ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    return parser


def write(results: Table, out: Path | None) -> None:
    """Called after each part: a run takes long, and may be cut short."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def quartiles(values: list[float]) -> dict[str, float]:
    """Of a single value too."""
    first, median, third = statistics.quantiles(
        values if len(values) > 1 else values * 2, n=4, method="inclusive"
    )
    return {"median": median, "q1": first, "q3": third}


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def environment(options: Namespace) -> Table:
    """When and where it was measured, and with what."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "is_quick": options.quick,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch_threads": torch.get_num_threads() if torch else None,
        "versions": versions,
    }
