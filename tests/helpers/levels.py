"""Counts what a process has, between rounds of a test, to see whether anything piles up."""

from __future__ import annotations

import gc
import linecache
import os
import threading
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.lowlevel

__all__ = ["Level"]


@dataclass
class Level:
    """Counts and bytes, now."""

    threads: int
    files: int
    tasks: int
    objects: int
    traced: int  # bytes
    resident: int  # bytes

    @classmethod
    async def now(cls) -> Level:
        await _let_trio_drop_scopes()
        linecache.clearcache()
        gc.collect()
        assert not gc.garbage
        proc = Path("/proc/self")
        return cls(
            threads=threading.active_count(),
            files=len(os.listdir(proc / "fd")) if proc.exists() else 0,
            tasks=len(anyio.get_running_tasks()),
            objects=len(gc.get_objects()),
            traced=tracemalloc.get_traced_memory()[0],
            resident=(
                int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                if proc.exists()
                else 0
            ),
        )


async def _let_trio_drop_scopes() -> None:
    """trio keeps scopes with a deadline after they were left, until there are 1,000 of them."""
    for _ in range(2000):
        with anyio.move_on_after(3600):
            pass
    await anyio.lowlevel.checkpoint()
