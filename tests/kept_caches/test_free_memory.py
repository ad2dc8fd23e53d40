"""How much memory an engine can keep conversations in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anystreamer._kept_caches import free_memory
from anystreamer.demo import load_demo

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")


def test_some_of_the_machine_s_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with_psutil = free_memory.free_bytes(CPU)
    assert 2**20 < with_psutil < 2**46
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert 2**20 < free_memory.free_bytes(CPU) < 2**46


def limit_container(path: Path, limit: str, *, used: int, files: int = 0, mapped: int = 0) -> None:
    """Write what the kernel tells about a container (cgroup v2), of which *files* can give way.

    Of these, programs use the part that is *mapped* where it is.
    """
    (path / "memory.max").write_text(f"{limit}\n")
    (path / "memory.current").write_text(f"{used}\n")
    inactive = files // 3
    stat = {"anon": used - files, "file": files, "active_file": files - inactive}
    stat |= {"inactive_file": inactive, "file_mapped": mapped, "slab": 0}
    (path / "memory.stat").write_text("".join(f"{name} {size}\n" for name, size in stat.items()))


@pytest.mark.parametrize(("used", "free"), [(100, 900), (1000, 0), (1500, 0)])
def test_a_container_leaves_what_its_limit_leaves(
    used: int, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_memory, "_CGROUP", tmp_path)
    without = free_memory.free_bytes(CPU)
    limit_container(tmp_path, "1000", used=used)
    assert free_memory.free_bytes(CPU) == free < without
    limit_container(tmp_path, "max", used=used)
    assert free_memory.free_bytes(CPU) > 2**20


def test_files_that_were_read_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that has read the weights of its model is full of them, and not out of memory."""
    monkeypatch.setattr(free_memory, "_CGROUP", tmp_path)
    limit_container(tmp_path, "1000", used=990, files=700)
    assert free_memory.free_bytes(CPU) == 710
    limit_container(tmp_path, "1000", used=990, files=700, mapped=600)  # the weights are in use
    assert free_memory.free_bytes(CPU) == 110
    limit_container(tmp_path, "1000", used=990, files=700, mapped=800)  # with pages of devices
    assert free_memory.free_bytes(CPU) == 10


@pytest.mark.parametrize("stat", [None, "", "active_file 700 kB\n", "active_file\n", "a much\n"])
def test_without_a_count_of_files_all_memory_counts_as_used(
    stat: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_memory, "_CGROUP", tmp_path)
    limit_container(tmp_path, "1000", used=990, files=700)
    if stat is None:
        (tmp_path / "memory.stat").unlink()
    else:
        (tmp_path / "memory.stat").write_text(stat)
    assert free_memory.free_bytes(CPU) == 10


def test_continuous_batching_fits_into_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache takes a share of what the container can get, and not of the whole machine."""
    pytest.importorskip("transformers.generation.continuous_batching.cb_logits_processors")
    from anystreamer._engine.cb_config import MEMORY_SHARE_ON_CPU, validate_cb_config

    model, _ = load_demo()
    settings = validate_cb_config(model, None, None)
    unlimited = settings.for_manager(model)
    monkeypatch.setattr(free_memory, "_CGROUP", tmp_path)
    limit_container(tmp_path, str(10 * 2**20), used=8 * 2**20)
    config = settings.for_manager(model)
    text: Any = model.config
    heads = text.num_key_value_heads * text.head_dim
    token_bytes = 2 * text.num_hidden_layers * heads * model.dtype.itemsize
    cache = config.num_blocks * config.page_size * token_bytes
    page = config.page_size * token_bytes
    assert config.num_blocks < unlimited.num_blocks
    assert cache < MEMORY_SHARE_ON_CPU * 2 * 2**20 + page
