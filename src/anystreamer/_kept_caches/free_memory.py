"""How much memory is free on a device. Needs torch when it is called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["free_bytes"]

# Where neither the device nor the system says how much is free.
UNKNOWN = 2**32

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """How many bytes are free on a device; on a CPU those that this process can get."""
    if device.type != "cpu":
        import torch

        module: Any = torch.get_device_module(device)
        if hasattr(module, "mem_get_info"):
            return int(module.mem_get_info(device)[0])
    return min(_of_system(), _of_container())


def _of_system() -> int:
    try:
        import psutil
    except ImportError:
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):  # not on every system
            return UNKNOWN
    return int(psutil.virtual_memory().available)


def _of_container() -> int:
    """What the limit of this container leaves, which the system's numbers do not know."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        return max(0, int(limit) - used + _reclaimable())
    except (OSError, ValueError):  # there is no container, or its limit is "max"
        return 2**63


def _reclaimable() -> int:
    """Bytes of files that the system keeps in memory, and that give way where memory is needed.

    Such are the files of weights that were read into memory of the model's own. A model can use
    weights where they are mapped from their file: those are needed, and stay counted.
    """
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        sizes = {name: int(size) for name, size in map(str.split, lines)}
    except (OSError, ValueError):  # then all of it counts as used
        return 0
    files = sizes.get("active_file", 0) + sizes.get("inactive_file", 0)
    return max(0, files - sizes.get("file_mapped", 0))
