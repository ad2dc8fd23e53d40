"""How much memory an engine can keep conversations in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from anystreamer._kept_caches import free_memory

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")


def test_some_of_the_machine_s_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with_psutil = free_memory.free_bytes(CPU)
    assert 2**20 < with_psutil < 2**46
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert 2**20 < free_memory.free_bytes(CPU) < 2**46


@pytest.mark.parametrize(("used", "free"), [("100", 900), ("1000", 0), ("1500", 0)])
def test_a_container_leaves_what_its_limit_leaves(
    used: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_memory, "_CGROUP", tmp_path)
    without = free_memory.free_bytes(CPU)
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_memory.free_bytes(CPU) == free < without
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory.free_bytes(CPU) > 2**20
