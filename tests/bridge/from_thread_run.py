"""A fault of anyio, for a report: on asyncio, a call into a cancelled scope is never cancelled.

python tests/bridge/from_thread_run.py asyncio
python tests/bridge/from_thread_run.py trio

A worker thread calls `anyio.from_thread.run` after the scope around it was cancelled, and after the
last other task in the scope has seen that. On trio the call is cancelled at once. On asyncio its
task is put into the cancelled scope, but the scope looks at its tasks no more: the call waits for
ever, and so does the block, which waits for the thread. Here a bystander sets the event in the end.
"""

from __future__ import annotations

import sys
import threading

import anyio
from anyio import CancelScope, create_task_group, from_thread, get_cancelled_exc_class, to_thread

SECONDS = 0.5  # that the call is given to be cancelled, which takes no time on trio


async def outcome() -> str:
    """Return "cancelled", or "waits" if the call was not cancelled."""
    event = anyio.Event()
    told = threading.Event()
    cancelled = get_cancelled_exc_class()
    found = ""

    def call_late() -> None:
        nonlocal found
        told.wait()
        try:
            from_thread.run(event.wait)
            found = "waits"
        except cancelled:
            found = "cancelled"

    async with create_task_group() as bystanders:
        with CancelScope() as scope:
            async with create_task_group() as tasks:
                tasks.start_soon(to_thread.run_sync, call_late)
                await anyio.wait_all_tasks_blocked()  # the thread has begun
                scope.cancel()
                bystanders.start_soon(_help, told, event)
    return found


async def _help(told: threading.Event, event: anyio.Event) -> None:
    with CancelScope(shield=True):
        await anyio.wait_all_tasks_blocked()  # each task has seen the cancellation
        told.set()
        await anyio.sleep(SECONDS)
        event.set()


if __name__ == "__main__":
    backend = sys.argv[1]
    print(f"{backend}: the call", anyio.run(outcome, backend=backend))
