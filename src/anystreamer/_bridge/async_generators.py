"""Whether code runs in an async generator, which can be left in the middle of a block."""

from __future__ import annotations

import inspect
import sys
from types import FrameType

__all__ = ["is_in_async_generator"]

# They resume a generator to enter and to leave a block, in one task: as a context manager, or as a
# fixture of tests.
DRIVERS = frozenset({"contextlib", "anyio", "pytest_asyncio", "pytest_trio"})


def is_in_async_generator(depth: int) -> bool:
    """Whether an async generator awaits the coroutine that is *depth* frames above the caller.

    Generators that are context managers, as of ``contextlib.asynccontextmanager``, do not count.
    """
    frame: FrameType | None = sys._getframe(depth + 1)  # noqa: SLF001  # the only way to see it
    # AsyncExitStack.enter_async_context() is between the block and the generator.
    while frame is not None and frame.f_globals.get("__name__") == "contextlib":
        frame = frame.f_back
    if frame is None or not frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR:
        return False
    driver = frame.f_back
    name = "" if driver is None else str(driver.f_globals.get("__name__"))
    return name.partition(".")[0] not in DRIVERS
