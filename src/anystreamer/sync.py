"""The same streams for callers with no event loop: Flask, Django, Gradio, notebooks, scripts."""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import anyio

from ._bridge import (
    DetachedContext,
    DetachedTasks,
    LoopGone,
    SafeEvent,
    StreamContext,
    UngroupedTaskGroup,
)
from ._engine import Engine, EngineContext, EngineStatistics
from ._engine import open_engine as _open_engine
from ._errors import add_note, describe, is_kind, raise_preserving_context
from ._generation import stream_batch as _stream_batch
from ._generation import stream_text as _stream_text
from ._streams import (
    BatchStream,
    FinishReason,
    GenerationStream,
    TextChunk,
    TextStream,
    Timing,
    Usage,
)

__all__ = [
    "OwnedSyncEngine",
    "SyncBatchStream",
    "SyncEngine",
    "SyncStream",
    "SyncTextStream",
    "open_engine",
    "stream_batch",
    "stream_text",
]

P = ParamSpec("P")
T = TypeVar("T")
ResultT = TypeVar("ResultT")
StreamT = TypeVar("StreamT", bound=GenerationStream)

_Tasks = DetachedTasks[Any]

# Seconds that the interpreter's exit waits for streams that were left open.
_EXIT_PATIENCE = 5.0

# How often the loop looks whether an open engine has been forgotten (seconds).
_OWNER_POLL = 1.0


class _Portal:
    """The one event loop that all callers of a process share, in a daemon thread of its own.

    Shared, because one model runs one generation at a time in one event loop: a loop for each of a
    server's threads would break that rule. Started on first use.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew, in a forked child: it has none of its parent's threads."""
        self._lock = threading.Lock()
        self._started: Future[tuple[_Tasks, SafeEvent]] | None = None
        self._thread: threading.Thread

    def tasks(self) -> _Tasks:
        """The tasks of the loop, which is started if it does not run.

        Raises:
            BaseException: the loop cannot start. The next call tries again.
        """
        with self._lock:
            started = self._started
            if started is None or (started.done() and started.exception() is not None):
                started = Future()
                self._thread = threading.Thread(
                    target=self._run,
                    args=(started,),
                    name="anystreamer portal",
                    daemon=True,  # its workers inherit it: an open stream must not keep a process
                )
                self._thread.start()
                self._started = started
        tasks, _ = started.result()
        return tasks

    def _run(self, started: Future[tuple[_Tasks, SafeEvent]]) -> None:
        try:
            anyio.run(self._serve, started)
        except BaseException as exc:
            if started.done():
                raise
            started.set_exception(exc)

    async def _serve(self, started: Future[tuple[_Tasks, SafeEvent]]) -> None:
        closing = SafeEvent()
        with anyio.CancelScope() as scope:
            group = UngroupedTaskGroup()
            await group.open()
            tasks: _Tasks = DetachedTasks(group)
            tasks.open()
            started.set_result((tasks, closing))
            await closing.wait()
            tasks.end_calls()
            tasks.end_watch()
            scope.cancel()
            await group.close(None)

    def close(self) -> None:
        """Stop what is open, so that no thread is inside a model when the interpreter goes."""
        started, self._started = self._started, None
        if started is None or not started.done() or started.exception() is not None:
            return
        tasks, closing = started.result()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            anyio.from_thread.run_sync(closing.set, token=tasks.token)
            self._thread.join(_EXIT_PATIENCE)


_portal = _Portal()
atexit.register(_portal.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_portal.forget)


class SyncStream(Generic[StreamT]):
    """A stream of text for a ``with`` block and a ``for`` loop.

    It can be opened in one thread, and read or closed in others. A second ``for`` loop goes on
    where the first one ended. A stream that is forgotten stops its model when it is collected.

    Args:
        name: of the public function, for messages.
        new_context: returns the loop's tasks, and the stream's block on that loop.
    """

    def __init__(
        self, name: str, new_context: Callable[[], tuple[_Tasks, StreamContext[StreamT]]]
    ) -> None:
        self._name = name
        self._new_context = new_context
        self._tasks: _Tasks
        self._context: StreamContext[StreamT] | None = None
        self._opened: StreamT | None = None
        self._lock = threading.Lock()
        self._closed: Future[None] | None = None  # once somebody closes it

    def __enter__(self) -> Self:
        if self._context is not None:
            raise RuntimeError(f"this {self._name}() has been opened before; call it again")
        self._tasks, self._context = self._new_context()
        self._opened = self._call(self._context.__aenter__)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except BaseException as error:
            if exc is None or is_kind(error, KeyboardInterrupt):
                raise
            if error is not exc:
                add_note(exc, f"The worker of {self._name}() failed as well: {describe(error)}")

    def __iter__(self) -> Iterator[TextChunk]:
        self._check_opened()
        return self

    def __next__(self) -> TextChunk:
        """Return the next chunk; block until there is one.

        Raises:
            BaseException: the exception of ``generate()``, after all text that came before it.
        """
        ended = (anyio.EndOfStream, anyio.ClosedResourceError)  # closed: from another thread
        try:
            return self._call(self._stream.receive)
        except ended:
            pass
        except LoopGone:  # no other thread touches the stream any more
            with contextlib.suppress(anyio.WouldBlock, *ended):
                return self._stream.receive_nowait()
        raise StopIteration

    def stop(self) -> None:
        """Ask the model to end after the current step, as `TextStream.stop` does."""
        self._stream.stop()

    def close(self) -> None:
        """Stop the model, and wait until its thread has left it. Called by the end of the block.

        Raises:
            BaseException: the exception of ``generate()``, if no one has seen it.
        """
        context = self._context
        if context is None or self._opened is None:
            return
        with self._lock:
            closed, is_first = self._closed, self._closed is None
            if closed is None:
                self._closed = closed = Future()
        if not is_first:
            return closed.result()
        assert context.task is not None
        state = context.task.state
        try:
            state.abandon()
            self._call(partial(context.__aexit__, None, None, None))
        except LoopGone:
            if (error := state.close_and_take_error()) is not None:
                raise_preserving_context(error)
        finally:
            closed.set_result(None)

    @property
    def timing(self) -> Timing | None:
        """Seconds that it took; None until the end."""
        return self._stream.timing

    @property
    def queue_position(self) -> int | None:
        """As `TextStream.queue_position`."""
        return self._stream.queue_position

    @property
    def output(self) -> Any:
        """The return value of ``generate()``; None until the end, and where it did not return."""
        return self._stream.output

    @property
    def _stream(self) -> StreamT:
        self._check_opened()
        assert self._opened is not None
        return self._opened

    def _check_opened(self) -> None:
        if self._opened is None:
            raise TypeError(
                f"{self._name}() must be opened first: "
                f"'with {self._name}(...) as stream:', then 'for text in stream:'"
            )

    def _call(self, func: Callable[[], Awaitable[T]]) -> T:
        return self._tasks.call_from_thread(func)

    def _receive_all(self) -> None:
        """Receive the rest of the stream. What it gives is in the stream's ``text``."""
        try:
            self._call(self._stream.read)  # type: ignore[attr-defined]
        except LoopGone:
            for _ in self:
                pass


class SyncTextStream(SyncStream[TextStream]):
    """A `TextStream` for a ``with`` block and a ``for`` loop. Attributes have the same meaning."""

    def read(self) -> str:
        """Return the rest of the text, once it is complete.

        Raises:
            BaseException: the exception of ``generate()``; `text` has what came before.
        """
        start = len(self.text)
        self._receive_all()
        return self.text[start:]

    @property
    def text(self) -> str:
        """All the text delivered so far."""
        return self._stream.text

    @property
    def token_ids(self) -> list[int]:
        """The ids of all tokens delivered so far."""
        return self._stream.token_ids

    @property
    def textless_end(self) -> TextChunk | None:
        """The tokens after the last chunk, as a chunk without text; None if there are none."""
        return self._stream.textless_end

    @property
    def prompt_token_ids(self) -> list[int]:
        """The ids of the prompt's tokens."""
        return self._stream.prompt_token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None until the end."""
        return self._stream.finish_reason

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it."""
        return self._stream.stop_string

    @property
    def usage(self) -> Usage | None:
        """Numbers of tokens; None until the end."""
        return self._stream.usage

    @property
    def message(self) -> dict[str, Any] | None:
        """The answer as a chat message, with ``parse_response``; None until the end."""
        return self._stream.message


class SyncBatchStream(SyncStream[BatchStream]):
    """A `BatchStream` for a ``with`` block and a ``for`` loop. Attributes have the same meaning."""

    def read(self) -> list[str]:
        """Return the rest of each row's text, once all rows are complete.

        Raises:
            BaseException: the exception of ``generate()``; `text` has what came before.
        """
        starts = [len(text) for text in self.text]
        self._receive_all()
        return [text[start:] for text, start in zip(self.text, starts, strict=True)]

    def stop(self, row: int | None = None) -> None:
        """Ask one row to end after the current step, or all rows.

        Raises:
            IndexError: there is no such row.
        """
        self._stream.stop(row)

    @property
    def text(self) -> list[str]:
        """All the text of each row delivered so far."""
        return self._stream.text

    @property
    def token_ids(self) -> list[list[int]]:
        """The ids of all tokens of each row delivered so far."""
        return self._stream.token_ids

    @property
    def textless_end(self) -> list[TextChunk | None]:
        """The tokens after the last chunk of each row, as a chunk without text."""
        return self._stream.textless_end

    @property
    def prompt_token_ids(self) -> list[list[int]]:
        """The ids of each row's prompt, without padding."""
        return self._stream.prompt_token_ids

    @property
    def finish_reason(self) -> list[FinishReason | None]:
        """Why each row ended; None until all rows have ended."""
        return self._stream.finish_reason

    @property
    def stop_string(self) -> list[str | None]:
        """The stop string that ended each row."""
        return self._stream.stop_string

    @property
    def usage(self) -> list[Usage | None]:
        """Numbers of tokens of each row; None until the end."""
        return self._stream.usage

    @property
    def message(self) -> list[dict[str, Any] | None]:
        """Each row's answer as a chat message, with ``parse_response``; None until the end."""
        return self._stream.message


def _with_signature_of(
    source: Callable[P, object],
) -> Callable[[Callable[..., ResultT]], Callable[P, ResultT]]:
    """Give a function the parameters of another one, for type checkers and for notebooks."""

    def decorate(function: Callable[..., ResultT]) -> Callable[P, ResultT]:
        returns = inspect.signature(function).return_annotation
        signature = inspect.signature(source).replace(return_annotation=returns)
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate


def _method_with_signature_of(
    source: Callable[Concatenate[Any, P], object],
) -> Callable[[Callable[..., ResultT]], Callable[Concatenate[Any, P], ResultT]]:
    return _with_signature_of(source)


class SyncEngine:
    """An open engine for callers with no event loop, in any number of threads at once.

    `open_engine` gives one. An engine that is open in an event loop can be used from other threads
    as ``SyncEngine(engine)``: from the ``def`` routes of an async application, for instance.

    Raises:
        TypeError: *engine* is not from `anystreamer.open_engine` or `open_remote_engine`.
    """

    def __init__(self, engine: Engine) -> None:
        if not isinstance(getattr(engine, "tasks", None), DetachedTasks):
            raise TypeError(
                "engine must be an open engine, from 'async with open_engine(...) as engine:', "
                f"not {type(engine).__name__}"
            )
        self._borrowed = engine

    @property
    def _engine(self) -> Any:
        return self._borrowed

    @_method_with_signature_of(Engine.stream_text)  # type: ignore[arg-type]  # **kwargs could be "self"
    def stream_text(self, *args: Any, **kwargs: Any) -> SyncTextStream:
        """As `Engine.stream_text`, with the same arguments, for ``with`` and ``for``."""
        engine = self._engine
        context = engine.stream_text(*args, **kwargs)
        return SyncTextStream("stream_text", lambda: (engine.tasks, context))

    def statistics(self) -> EngineStatistics:
        """As `Engine.statistics`."""
        statistics: EngineStatistics = self._engine.statistics()
        return statistics


class OwnedSyncEngine(SyncEngine):
    """An engine of its own, for ``with``; or for `open`, and `close` when you need it no more.

    An engine that is forgotten closes by itself.
    """

    def __init__(self, context: EngineContext) -> None:
        self._context = context
        self._keeper: _EngineKeeper | None = None

    def open(self) -> Self:
        """Open it, and return it.

        Raises:
            RuntimeError: it has been opened before.
            BaseException: the engine cannot start.
        """
        if self._keeper is not None:
            raise RuntimeError("this open_engine() has been opened before; call it again")
        tasks = _portal.tasks()
        self._keeper = _EngineKeeper(self._context, tasks, weakref.ref(self))
        tasks.call_from_thread(self._keeper.open)
        return self

    def close(self) -> None:
        """End the streams that are open, and wait for the engine's thread. Again, it does nothing.

        Raises:
            BaseException: the engine's end failed.
        """
        if self._keeper is not None:
            with contextlib.suppress(LoopGone):  # and with it the engine
                self._keeper.tasks.call_from_thread(self._keeper.close)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _engine(self) -> Any:
        if self._keeper is None or self._keeper.engine is None:
            raise TypeError(
                "open_engine() must be opened first: 'with open_engine(...) as engine:', "
                "or 'engine = open_engine(...).open()' and later 'engine.close()'"
            )
        return self._keeper.engine


class _EngineKeeper:
    """Keeps an engine's block open in one task of the loop, since one task has to leave it."""

    def __init__(
        self, context: EngineContext, tasks: _Tasks, owner: weakref.ref[OwnedSyncEngine]
    ) -> None:
        self.tasks = tasks
        self.engine: Engine | None = None
        self._context = context
        self._owner = owner
        self._opened_or_failed = SafeEvent()
        self._closing = SafeEvent()
        self._ended = SafeEvent()
        self._error: BaseException | None = None

    async def open(self) -> None:
        """Open the block. Raises the exception of its entry."""
        self.tasks.start(self._keep())
        await self._opened_or_failed.wait()
        self._raise_error()

    async def close(self) -> None:
        """Leave the block. Raises the exception of its end, once."""
        self._closing.set()
        await self._ended.wait()
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def _keep(self) -> None:
        try:
            async with self._context as self.engine:
                self._opened_or_failed.set()
                while self._owner() is not None and not self._closing.is_set():
                    with anyio.move_on_after(_OWNER_POLL):
                        await self._closing.wait()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as exc:  # one that is not an Exception would end the whole loop
            self._error = exc
        finally:
            self._opened_or_failed.set()
            self._ended.set()


@_with_signature_of(_stream_text)
def stream_text(*args: Any, **kwargs: Any) -> SyncTextStream:
    """As `anystreamer.stream_text`, with the same arguments, for ``with`` and ``for``."""
    return SyncTextStream("stream_text", _in_portal("stream_text", _stream_text(*args, **kwargs)))


@_with_signature_of(_stream_batch)
def stream_batch(*args: Any, **kwargs: Any) -> SyncBatchStream:
    """As `anystreamer.stream_batch`, with the same arguments, for ``with`` and ``for``."""
    return SyncBatchStream(
        "stream_batch", _in_portal("stream_batch", _stream_batch(*args, **kwargs))
    )


def _in_portal(
    name: str, context: StreamContext[StreamT]
) -> Callable[[], tuple[_Tasks, StreamContext[StreamT]]]:
    def new_context() -> tuple[_Tasks, StreamContext[StreamT]]:
        tasks = _portal.tasks()
        return tasks, DetachedContext(name, context.new_task, tasks)

    return new_context


@_with_signature_of(_open_engine)
def open_engine(*args: Any, **kwargs: Any) -> OwnedSyncEngine:
    """As `anystreamer.open_engine`, with the same arguments, for ``with`` and many threads."""
    return OwnedSyncEngine(_open_engine(*args, **kwargs))
