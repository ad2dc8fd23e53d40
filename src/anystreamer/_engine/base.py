"""What all kinds of engine share: admission, the line, each request's block and task, the end."""

from __future__ import annotations

import inspect
import threading
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any

from anyio import CancelScope, CapacityLimiter, get_cancelled_exc_class, sleep
from anyio.lowlevel import EventLoopToken, checkpoint, current_token

from .._bridge import (
    QUEUE_POLL,
    Phase,
    SafeEvent,
    StreamContext,
    UngroupedTaskGroup,
    WorkerTask,
    run_sync_joined,
)
from .._errors import EngineBusy, EngineClosed, EngineDied, raise_preserving_context
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

# A task has made its first step after so many checkpoints of another, or never will.
FIRST_STEP = 5


class BaseEngine:
    """An engine: owned by the block that opened it, used by any task of its event loop."""

    def __init__(self, max_running: float, max_waiting: int | None) -> None:
        self.queue = AdmissionQueue(max_running)
        self.metrics = EngineMetrics()
        self.left = SafeEvent()  # once what it does has ended
        self.ready = SafeEvent()  # once it takes requests, or never will
        self.token: EventLoopToken
        self._max_waiting = max_waiting
        self._requests: set[EngineTask] = set()
        self._tasks: UngroupedTaskGroup
        self._watch_scope = CancelScope(shield=True)
        self._has_queued = SafeEvent()  # has not had its turn
        self._visits = 0  # of other threads that are about to cross to the loop, or have
        self._visits_lock = threading.Lock()
        self._takes_visits = True
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
        for task in self._requests:
            task.fail(self.unavailable_error())

    # -- for its owner's block

    async def open(self, tasks: UngroupedTaskGroup) -> None:
        """Start it, and wait until it takes requests. Raises what it could not start of."""
        self.token = current_token()
        self._tasks = tasks
        self._coroutine = self._serve()
        tasks.start(self._coroutine)
        tasks.start(self._watch())
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
        for task in self._requests:
            task.close()
        self._watch_scope.cancel()
        self._wake()

    def finish_if_never_started(self) -> None:
        """As `WorkerTask.finish_if_never_started`, for the engine's own task."""
        if inspect.getcoroutinestate(self._coroutine) == inspect.CORO_CLOSED:
            self.left.set()

    async def _serve(self) -> None:
        try:
            await self._run()
        except get_cancelled_exc_class():
            pass
        except BaseException as exc:
            self._on_death(exc)
            if not isinstance(exc, Exception):
                raise  # a Ctrl-C that struck while a thread was crossing
        finally:
            self.close()
            for task in self._requests:  # those that nobody else can end any more
                task.fail(self.unavailable_error())
                task.state.scope.cancel()
            self.ready.set()
            self.left.set()

    async def _watch(self) -> None:
        """Look after those who do not see by themselves that `stop` was called: it sets a flag."""
        # Shielded as in `_bridge.guard`.
        with suppress(get_cancelled_exc_class()), self._watch_scope:
            while True:
                if not any(task.is_watched for task in self._requests):
                    self._has_queued = SafeEvent()
                    await self._has_queued.wait()
                for task in self._requests:
                    if task.is_watched and task.state.should_end:
                        task.state.scope.cancel()
                await sleep(QUEUE_POLL)

    # -- for a request's block

    def check_loop(self) -> None:
        """Raises RuntimeError in another event loop than the engine's."""
        if current_token() != self.token:
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
        if most is not None and len(self._requests) >= most:
            raise self._busy(len(self.queue.waiting))
        task = new_task()
        self._requests.add(task)
        self._has_queued.set()
        return task

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start a task for a request."""
        self._tasks.start(coroutine)

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
        self._requests.discard(task)

    def unavailable_error(self) -> Exception:
        """What is raised in place of serving a request."""
        if self._died_of is None:
            return EngineClosed()
        died = EngineDied()
        died.__cause__ = self._died_of
        return died

    # -- for other threads

    @contextmanager
    def allow_cross_thread_call(self) -> Iterator[bool]:
        """Whether the loop may be crossed to. It does not end before this block does."""
        with self._visits_lock:
            if takes_visits := self._takes_visits:
                self._visits += 1
        try:
            yield takes_visits
        finally:
            if takes_visits:
                with self._visits_lock:
                    self._visits -= 1

    def end_visits(self) -> None:
        """Let nobody cross any more."""
        with self._visits_lock:
            self._takes_visits = False

    @property
    def is_visited(self) -> bool:
        """Whether somebody is still crossing."""
        return bool(self._visits)


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

    async def open(self, tasks: UngroupedTaskGroup) -> None:
        self.encoding = CapacityLimiter(1)
        await super().open(tasks)

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
        self.context_collected = False  # its block was collected: nobody can leave it any more

    @property
    def is_watched(self) -> bool:
        """Whether somebody else has to see that its stream was stopped."""
        return self.state.phase is Phase.QUEUED

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
        if self.context_collected:
            self.state.close_and_take_error()
        self.engine.metrics.on_end(
            self.state.clock.timing(self.state.started_at, self.state.exited_at)
        )


class RequestContext(StreamContext[TextStream]):
    """The block of a request. It opens no scope in its task: it may be held across a ``yield``."""

    _cancels_task = False

    def __init__(self, engine: BaseEngine, name: str, new_task: Callable[[], EngineTask]) -> None:
        super().__init__(name, new_task)
        self._engine = engine
        self._new_engine_task = new_task

    async def _start(self) -> WorkerTask[TextStream]:
        return self._engine.admit(self._new_engine_task)

    def _launch(self, task: WorkerTask[TextStream]) -> None:
        self._engine.start(task.coroutine)

    async def _join(
        self, task: WorkerTask[TextStream], body: BaseException | None
    ) -> BaseException | None:
        raised = body if isinstance(body, task.cancellation) else None
        # Its task makes the first step as soon as the loop comes to it. If it was cancelled
        # natively before that, it will make none, and nobody would tell us.
        for _ in range(FIRST_STEP):
            if inspect.getcoroutinestate(task.coroutine) != inspect.CORO_CREATED:
                return raised
            with CancelScope(shield=True):
                try:
                    await checkpoint()
                except BaseException as exc:
                    raised = exc if raised is None else raised
        task.coroutine.close()
        return raised

    def __del__(self) -> None:
        # Collected without having been left. Any thread may be collecting: take no lock, wake
        # nobody; the worker looks.
        if isinstance(task := getattr(self, "task", None), EngineTask):
            task.context_collected = True  # first: either we see the end, or the end sees this
            if task.state.has_exited:
                task.state.close_and_take_error()
            else:
                task.state.abandon()
