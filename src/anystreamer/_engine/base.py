"""What all kinds of engine share: admission, the queue, each request's block and task, the end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

from anyio import CapacityLimiter, get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from .._bridge import (
    DetachedContext,
    DetachedTasks,
    SafeEvent,
    StreamContext,
    UngroupedTaskGroup,
    WorkerTask,
    close_if_unstarted,
    run_sync_joined,
)
from .._errors import (
    EngineBusy,
    EngineClosed,
    EngineDied,
    is_kind,
    raise_preserving_context,
)
from .._generation import (
    GenerationRequest,
    Prompt,
    as_prompts,
    main_input_name,
    max_context_length,
    validate_prompt,
)
from .._streams import GenerationState, TextStream
from .metrics import EngineMetrics, EngineStatistics
from .queue import AdmissionQueue, Ticket

__all__ = ["BaseEngine", "EngineTask", "ThreadEngine"]


class BaseEngine:
    """An engine: owned by the block that opened it, used by any task of its event loop."""

    def __init__(self, max_running: float, max_waiting: int | None) -> None:
        self.queue = AdmissionQueue(max_running)
        self.metrics = EngineMetrics()
        self.left = SafeEvent()  # its own task has ended
        self.ready = SafeEvent()  # it accepts requests, or never will
        self.tasks: DetachedTasks[EngineTask]  #: of its requests, once it is open
        self._max_waiting = max_waiting
        self._coroutine: Coroutine[Any, Any, None] | None = None  # of its own task
        self._is_closed = False
        self._has_ended_requests = False
        self._died_of: BaseException | None = None

    # -- for its users

    @abstractmethod
    def stream_text(self, prompt: Prompt, **arguments: Any) -> StreamContext[TextStream]:
        """See `Engine.stream_text`."""

    def statistics(self) -> EngineStatistics:
        """See `Engine.statistics`."""
        return self.metrics.statistics(
            waiting=len(self.queue.waiting),
            running=len(self.queue.running),
            used=self._cache_used(),
        )

    @property
    def state(self) -> str:
        """``"open"``, ``"closed"`` or ``"died"``."""
        return "died" if self._died_of else "closed" if self._is_closed else "open"

    @property
    def is_closed(self) -> bool:
        """Whether it accepts no more requests."""
        return self._is_closed

    def __repr__(self) -> str:
        waiting, running = len(self.queue.waiting), len(self.queue.running)
        return f"<anystreamer.Engine {self.state}, {running} running, {waiting} waiting>"

    # -- for the kinds of engine

    @abstractmethod
    async def _run(self) -> None:
        """Serve requests until `_is_closed`. Sets `ready`."""

    @abstractmethod
    def _wake(self) -> None:
        """Make `_run` look at `_is_closed`."""

    def _cache_used(self) -> float | None:
        return None

    def _on_death(self, cause: BaseException) -> None:
        """It can serve no request any more. On the loop."""
        self._died_of = cause
        for task in self.tasks:
            task.fail(self.unavailable_error())

    # -- for its owner's block

    def own_tasks(self, task_group: UngroupedTaskGroup) -> None:
        """Take the task group for its own task, and for those of its requests."""
        self.tasks = DetachedTasks(task_group)

    async def open(self) -> None:
        """Start it, and wait until it accepts requests. Raises the error if it could not start."""
        self._coroutine = self._serve()
        self.tasks.start(self._coroutine)
        self.tasks.open()
        await self.ready.wait()
        if self._died_of is not None:
            raise_preserving_context(self._died_of)
        if self._is_closed:
            await checkpoint()  # it was cancelled, and so are we

    def close(self) -> None:
        """Accept no more requests, and end those that are open."""
        if self._has_ended_requests:
            return
        self._is_closed = True
        for task in self.tasks:
            task.close()
        self.tasks.end_watch()
        self._wake()
        self._has_ended_requests = True  # last: on trio a Ctrl-C can strike before

    def finish_if_never_started(self) -> None:
        """See `WorkerTask.finish_if_never_started`: the same for the engine's own task."""
        if self._coroutine is None or close_if_unstarted(self._coroutine):
            self.left.set()

    async def _serve(self) -> None:
        try:
            await self._run()
        except get_cancelled_exc_class():
            pass
        except BaseException as exc:
            self._on_death(exc)
            if not is_kind(exc, Exception):
                raise  # a Ctrl-C that struck while a thread was crossing
        finally:
            self.close()
            for task in self.tasks:  # nothing else can end them any more
                task.fail(self.unavailable_error())
                task.state.scope.cancel()
            self.ready.set()
            self.left.set()

    # -- for a request's block

    def check_loop(self) -> None:
        """Raises RuntimeError in another event loop than the engine's, and in a forked child."""
        self.tasks.home.check()

    def new_context(
        self, name: str, new_task: Callable[[], EngineTask]
    ) -> StreamContext[TextStream]:
        """The block of a request. Entering it lets the request join the queue, or refuses it."""
        return DetachedContext(name, lambda: self._admit(new_task), self.tasks)

    def _admit(self, new_task: Callable[[], EngineTask]) -> EngineTask:
        """Make the task of a request.

        Raises:
            EngineBusy, EngineClosed, EngineDied
        """
        self.check_loop()
        if self._is_closed or self._died_of is not None:
            raise self.unavailable_error()
        if self._max_waiting is not None:
            limit = self.queue.max_running + self._max_waiting
            if len(self.tasks) >= limit:
                raise self._busy_error(len(self.queue.waiting))
        return new_task()

    def check_queue_limit(self, ticket: Ticket) -> None:
        """Raises EngineBusy if it would have to wait, and the queue is full."""
        if self._max_waiting is None:
            return
        queue = self.queue
        waiting = sum(each.is_ready for each in queue.waiting)
        if waiting >= self._max_waiting and (waiting or not queue.has_capacity_for(ticket)):
            raise self._busy_error(waiting)

    def _busy_error(self, waiting: int) -> EngineBusy:
        return EngineBusy(waiting, self.metrics.estimated_wait(waiting, self.queue.slots))

    def forget(self, task: EngineTask) -> None:
        """A request has ended."""
        self.tasks.discard(task)

    def unavailable_error(self) -> Exception:
        """The error for a request that cannot be served."""
        if self._died_of is None:
            return EngineClosed()
        died = EngineDied()
        died.__cause__ = self._died_of
        return died


class ThreadEngine(BaseEngine):
    """An engine whose model works in a thread of this process."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_running: int,
        max_waiting: int | None,
        context_length: int | None,
    ) -> None:
        super().__init__(max_running, max_waiting)
        self.model = model
        self.tokenizer = tokenizer
        #: how many tokens the model takes, prompt and answer together; None where it is not known
        self.context_length = context_length or max_context_length(model)
        self.encoding: CapacityLimiter  # one at a time, as tokenizers do; each takes a thread

    def stream_text(self, prompt: Prompt, **arguments: Any) -> StreamContext[TextStream]:
        request = GenerationRequest("stream_text", self.model, self.tokenizer, arguments)
        validate_prompt("stream_text", prompt, main_input_name(self.model))
        return self.new_context(request.name, self._new_task_for(request, as_prompts(prompt)))

    @abstractmethod
    def _new_task_for(self, request: GenerationRequest, prompts: Any) -> Callable[[], EngineTask]:
        """Refuse what this kind of engine cannot do. Returns a function that makes the task."""

    @abstractmethod
    def _main(self) -> None:
        """Run in the engine's thread until `_is_closed`. Sets `ready`."""

    async def open(self) -> None:
        self.encoding = CapacityLimiter(1)
        await super().open()

    async def _run(self) -> None:
        await run_sync_joined(self._main, when_cancelled=self.close, is_tracked=False)


class EngineTask(WorkerTask[TextStream]):
    """A request's task, in the engine's task group: any task can be its consumer, or none."""

    state: GenerationState

    def __init__(self, engine: BaseEngine, name: str, state: GenerationState) -> None:
        super().__init__(name, state, TextStream(state))
        self.engine = engine
        self.ticket = engine.queue.enqueue()
        state.ticket = self.ticket
        state.clock.metrics = engine.metrics

    def fail(self, error: Exception) -> None:
        """End it with an error, after the text that was generated."""
        self.state.fail(error)
        self.state.request_stop()
        if self.is_watched:
            self.state.scope.cancel()

    def close(self) -> None:
        """End it because its engine closes. From any thread."""
        self.fail(EngineClosed())

    def turns(self) -> Iterable[AbstractAsyncContextManager[object]]:
        return (self.ticket,)

    def on_cancelled(self) -> None:
        if not self.state.closed:
            self.state.fail(EngineClosed())

    def on_worker_exit(self) -> None:
        self.ticket.leave()
        self.engine.forget(self)
        self.engine.metrics.on_end(
            self.state.clock.timing(self.state.started_at, self.state.exited_at)
        )
