"""What all kinds of engine share: admission, the line, each request's block and task, the end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

from anyio import CapacityLimiter, get_cancelled_exc_class
from anyio.lowlevel import checkpoint, current_token

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
from .._errors import EngineBusy, EngineClosed, EngineDied, is_kind, raise_preserving_context
from .._generation import (
    GenerationRequest,
    Prompt,
    as_prompts,
    main_input_name,
    validate_prompt,
)
from .._streams import GenerationState, TextStream
from .metrics import EngineMetrics, EngineStatistics
from .queue import AdmissionQueue, Ticket

__all__ = ["BaseEngine", "EngineTask", "RequestContext", "ThreadEngine"]


class BaseEngine:
    """An engine: owned by the block that opened it, used by any task of its event loop."""

    def __init__(self, max_running: float, max_waiting: int | None) -> None:
        self.queue = AdmissionQueue(max_running)
        self.metrics = EngineMetrics()
        self.left = SafeEvent()  # once what it does has ended
        self.ready = SafeEvent()  # once it takes requests, or never will
        self.tasks: DetachedTasks[EngineTask]  #: of its requests, once it is open
        self._max_waiting = max_waiting
        self._coroutine: Coroutine[Any, Any, None] | None = None  # of its own task
        self._is_closed = False
        self._died_of: BaseException | None = None

    # -- for its users

    @abstractmethod
    def stream_text(self, prompt: Prompt, **arguments: Any) -> StreamContext[TextStream]:
        """As `Engine.stream_text` says."""

    def statistics(self) -> EngineStatistics:
        """As `Engine.statistics` says."""
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
        """Whether it takes no more requests."""
        return self._is_closed

    def __repr__(self) -> str:
        waiting, running = len(self.queue.waiting), len(self.queue.running)
        return f"<anystreamer.Engine {self.state}, {running} running, {waiting} waiting>"

    # -- for the kinds of engine

    @abstractmethod
    async def _run(self) -> None:
        """What the engine does, until `_wake` after `_is_closed`. It sets `ready`."""

    @abstractmethod
    def _wake(self) -> None:
        """Let `_run` see that the engine has been closed."""

    def _cache_used(self) -> float | None:
        return None

    def _on_death(self, cause: BaseException) -> None:
        """It can serve nobody any more. On the loop."""
        self._died_of = cause
        for task in self.tasks:
            task.fail(self.unavailable_error())

    # -- for its owner's block

    async def open(self, task_group: UngroupedTaskGroup) -> None:
        """Start it, and wait until it takes requests. Raises what it could not start of."""
        self.tasks = DetachedTasks(task_group)
        self._coroutine = self._serve()
        task_group.start(self._coroutine)
        self.tasks.open()
        await self.ready.wait()
        if self._died_of is not None:
            raise_preserving_context(self._died_of)
        if self._is_closed:
            await checkpoint()  # it was cancelled, and so are we

    def close(self) -> None:
        """Take no more requests, and end those that are open."""
        if self._is_closed:
            return
        self._is_closed = True
        for task in self.tasks:
            task.close()
        self.tasks.end_watch()
        self._wake()

    def finish_if_never_started(self) -> None:
        """As `WorkerTask.finish_if_never_started`, for the engine's own task."""
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
            for task in self.tasks:  # those that nobody else can end any more
                task.fail(self.unavailable_error())
                task.state.scope.cancel()
            self.ready.set()
            self.left.set()

    # -- for a request's block

    def check_loop(self) -> None:
        """Raises RuntimeError in another event loop than the engine's."""
        if current_token() != self.tasks.token:
            raise RuntimeError(
                "this engine belongs to another event loop; "
                "from other threads use it through anystreamer.sync"
            )

    def admit(self, new_task: Callable[[], EngineTask]) -> EngineTask:
        """Let a request join the line.

        Raises:
            EngineBusy, EngineClosed, EngineDied
        """
        self.check_loop()
        if self._is_closed or self._died_of is not None:
            raise self.unavailable_error()
        most = None if self._max_waiting is None else self.queue.max_running + self._max_waiting
        if most is not None and len(self.tasks) >= most:
            raise self._busy(len(self.queue.waiting))
        task = new_task()
        self.tasks.add(task)
        return task

    def check_room(self, ticket: Ticket) -> None:
        """Raises EngineBusy if it would have to wait, and as many wait as may."""
        if self._max_waiting is None:
            return
        queue = self.queue
        waiting = sum(each.is_ready for each in queue.waiting)
        if waiting >= self._max_waiting and (waiting or not queue.has_capacity_for(ticket)):
            raise self._busy(waiting)

    def _busy(self, waiting: int) -> EngineBusy:
        return EngineBusy(waiting, self.metrics.estimated_wait(waiting, len(self.queue.running)))

    def forget(self, task: EngineTask) -> None:
        """A request has ended."""
        self.tasks.discard(task)

    def unavailable_error(self) -> Exception:
        """What is raised in place of serving a request."""
        if self._died_of is None:
            return EngineClosed()
        died = EngineDied()
        died.__cause__ = self._died_of
        return died


class ThreadEngine(BaseEngine):
    """An engine whose model works in a thread of this process."""

    def __init__(
        self, model: Any, tokenizer: Any, max_running: int, max_waiting: int | None
    ) -> None:
        super().__init__(max_running, max_waiting)
        self.model = model
        self.tokenizer = tokenizer
        self.encoding: CapacityLimiter  # one at a time: so do tokenizers, and each takes a thread

    def stream_text(self, prompt: Prompt, **arguments: Any) -> StreamContext[TextStream]:
        request = GenerationRequest("stream_text", self.model, self.tokenizer, arguments)
        validate_prompt("stream_text", prompt, main_input_name(self.model))
        return RequestContext(self, request.name, self._new_task_for(request, as_prompts(prompt)))

    @abstractmethod
    def _new_task_for(self, request: GenerationRequest, prompts: Any) -> Callable[[], EngineTask]:
        """Refuse what this kind of engine cannot do. Returns what makes the request's task."""

    @abstractmethod
    def _main(self) -> None:
        """What the engine's thread does, until `_wake` after `_is_closed`. It sets `ready`."""

    async def open(self, task_group: UngroupedTaskGroup) -> None:
        self.encoding = CapacityLimiter(1)
        await super().open(task_group)

    async def _run(self) -> None:
        await run_sync_joined(self._main, when_cancelled=self.close, is_tracked=False)


class EngineTask(WorkerTask[TextStream]):
    """A request's task, in the engine's task group: its consumer may be any task, or none."""

    state: GenerationState

    def __init__(self, engine: BaseEngine, name: str, state: GenerationState) -> None:
        super().__init__(name, state, TextStream(state))
        self.engine = engine
        self.ticket = engine.queue.enqueue()
        state.ticket = self.ticket
        state.clock.metrics = engine.metrics

    def fail(self, error: Exception) -> None:
        """End it with an error, after the text that has been made."""
        self.state.fail(error)
        self.state.stop_requested = True
        if self.is_watched:
            self.state.scope.cancel()

    def close(self) -> None:
        """Its engine closes: end it so. From any thread."""
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


class RequestContext(DetachedContext[TextStream]):
    """The block of a request: the engine admits it, or refuses it."""

    def __init__(self, engine: BaseEngine, name: str, new_task: Callable[[], EngineTask]) -> None:
        super().__init__(name, new_task, engine.tasks)
        self._engine = engine
        self._new_engine_task = new_task

    async def _start(self) -> WorkerTask[TextStream]:
        return self._engine.admit(self._new_engine_task)
