"""`ThreadOwner`: the threads of a worker, the queue before them, and the task of each stream."""

from __future__ import annotations

import math
from contextvars import Context, copy_context
from time import perf_counter
from typing import Any, TypeVar

from anyio import CancelScope, from_thread, sleep, sleep_forever
from anyio.lowlevel import checkpoint

from .._bridge import (
    QUEUE_POLL,
    Producer,
    Source,
    StreamContext,
    StreamState,
    ThreadStream,
    UngroupedTaskGroup,
    cancel_again,
    guard,
    run_named,
    run_sync_joined,
    uninterrupted,
    validate_seconds,
)
from .._errors import raise_preserving_context
from .metrics import TurnMetrics
from .owner import OwnedTask, Owner
from .threads import WorkItem, WorkThreads

__all__ = ["OwnedThreadTask", "ThreadOwner"]

T = TypeVar("T")


class ThreadOwner(Owner):
    """Runs each producer in one of its threads, when its turn has come."""

    advice = "from other threads use it through anystreamer.sync.SyncWorker"

    def __init__(self, threads: int, max_waiting: int | None, name: str | None) -> None:
        super().__init__(threads, max_waiting)
        self.kind = "worker" if name is None else f"worker {name!r}"
        self.threads = WorkThreads(threads)
        self.metrics = TurnMetrics()
        self._started = 0  # threads
        self._around_threads = CancelScope()  # cancels what producers await on the loop
        self._thread_scopes: list[CancelScope] = []  # of those that run

    def new_stream(
        self, source: Source[T], queue_timeout: float | None
    ) -> StreamContext[ThreadStream[T]]:
        """The block of a stream whose producer runs in one of the threads.

        Raises:
            TypeError, ValueError: *queue_timeout* is not a number of seconds.
        """
        validate_seconds("queue_timeout", queue_timeout)
        return self.new_context(source.name, lambda: OwnedThreadTask(self, source, queue_timeout))

    def check_caller(self) -> None:
        self.threads.check_caller(self.kind)

    def has_waiting(self) -> bool:
        """Whether a stream waits for its turn."""
        return bool(self.queue.waiting)

    async def _run(self) -> None:
        with self._around_threads:
            await self._keep_threads()

    async def _keep_threads(self) -> None:
        group = UngroupedTaskGroup()
        await group.open()
        failure: BaseException | None = None
        try:
            group.start(self._close_when_cancelled())
            for _ in range(self.threads.count):
                group.start(self._keep_thread())
        except BaseException as exc:  # a Ctrl-C: the threads that have started must end
            self.close()
            failure = exc
        raised = await group.close(failure)
        failure = raised if failure is None else failure
        if failure is not None:
            raise_preserving_context(failure)

    async def _keep_thread(self) -> None:
        scope = CancelScope()
        self._thread_scopes.append(scope)
        try:
            await run_sync_joined(
                self._work, when_cancelled=self.close, within=scope, is_tracked=False
            )
        finally:
            self._thread_scopes.remove(scope)

    def _work(self) -> None:
        from_thread.run_sync(self._note_start)
        self.threads.work()

    @uninterrupted
    def _note_start(self) -> None:
        self._started += 1
        if self._started == self.threads.count:
            self.ready.set()

    async def _close_when_cancelled(self) -> None:
        """Close when a scope around the worker is cancelled, or when a thread has failed.

        A producer sees such a scope at its next look. This is for those that block, and for idle
        threads.
        """
        try:
            await sleep_forever()
        finally:
            self.close()
            with CancelScope(shield=True):
                while self._thread_scopes:
                    for scope in self._thread_scopes:
                        cancel_again(scope)  # what a producer has begun to await since then
                    await sleep(QUEUE_POLL)

    def _wake(self) -> None:
        self.threads.end()
        self._around_threads.cancel()


class OwnedThreadTask(OwnedTask[ThreadStream[Any]]):
    """The task of a stream whose producer runs in a thread of a `ThreadOwner`."""

    owner: ThreadOwner

    def __init__(
        self, owner: ThreadOwner, source: Source[Any], queue_timeout: float | None
    ) -> None:
        state = StreamState[Any](source.max_buffer_size)
        super().__init__(owner, source.label, state, ThreadStream(state))
        self.kind = f"stream of the {owner.kind}"
        self._queue_timeout = math.inf if queue_timeout is None else queue_timeout
        self._source = source
        self._called_at = perf_counter()
        self._context: Context

    async def prepare(self) -> None:
        await run_sync_joined(self._copy_context)
        await checkpoint()  # raises a cancellation that came meanwhile

    def queue_deadline(self) -> tuple[float, str]:
        return self._queue_timeout, "queued"

    def _copy_context(self) -> None:
        # The context variables of the caller, with which the task was started. Copied in a thread:
        # on the loop they also contain that the event loop runs in the current thread.
        self._context = copy_context()

    async def work(self) -> None:
        owner = self.owner
        if owner.is_closed:  # no thread is there to call it
            return
        producer = Producer[Any](self.state, owner.has_waiting, self.close)
        owner.tasks.start(guard(self.state))
        item = WorkItem(self._context, self._produce, producer)
        await owner.threads.call(item, self.state, self.close)

    def _produce(self, producer: Producer[Any]) -> None:
        if not self.state.should_end:  # it can have been stopped on the way to the thread
            run_named(self.state.label, producer.run, self._source.run)

    def on_worker_exit(self) -> None:
        super().on_worker_exit()
        started_at, exited_at = self.state.started_at, self.state.exited_at
        assert exited_at is not None
        queued = None if started_at is None else started_at - self._called_at
        self.owner.metrics.on_turn_end(queued, exited_at - self._called_at)
